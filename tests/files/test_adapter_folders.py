"""Folders of peft's adapters, of each kind that needs nothing but itself and its base, in and out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import FileRefusedError
from tests.files.folders import bert

IDS = torch.arange(20).view(4, 5)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoraConfig", {"r": 2}),
    "DoRA": ("LoraConfig", {"r": 2, "use_dora": True}),
    "PiSSA": ("LoraConfig", {"r": 2, "init_lora_weights": "pissa"}),
    "LoRA of a table": ("LoraConfig", {"r": 2, "target_modules": ["query", "word_embeddings"]}),
    "LoRA of parameters": ("LoraConfig", {"r": 2, "target_parameters": ["intermediate.dense.weight"]}),
    "a pattern": ("LoraConfig", {"r": 2, "target_modules": r".*\.(query|value)", "rank_pattern": {"query": 1}}),
    "AdaLoRA": ("AdaLoraConfig", {"r": 2, "total_step": 10}),
    "IA3": ("IA3Config", {"feedforward_modules": []}),
    "LoHa": ("LoHaConfig", {"r": 2}),
    "LoKr": ("LoKrConfig", {"r": 2}),
    "OFT": ("OFTConfig", {"oft_block_size": 4}),
    "VeRA": ("VeraConfig", {"r": 2}),
    "VB-LoRA": ("VBLoRAConfig", {"r": 2, "num_vectors": 16, "vector_length": 4}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 5}),
    "norms": ("LNTuningConfig", {"target_modules": ["LayerNorm"]}),
    "HRA": ("HRAConfig", {"r": 2}),
    "RoAd": ("RoadConfig", {"group_size": 4}),
    "C3A": ("C3AConfig", {"block_size": 4}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, vision: Any) -> Path:
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("base")
    bert().save_pretrained(place)  # type: ignore[operator]
    return place


def adapted(base: Path, kind: str, folder: Path) -> Any:
    """A classifier with adapters of the kind, beside a head of its own, and its folder by peft."""
    import peft

    name, options = KINDS[kind]
    settings = {"target_modules": ["query", "value"], **options}
    if "target_parameters" in options:
        settings["target_modules"] = ["query"]
    made = peft.get_peft_model(bert(), getattr(peft, name)(task_type="SEQ_CLS", **settings)).eval()
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    made.peft_config["default"].base_model_name_or_path = str(base)
    made.save_pretrained(folder)
    return made


def outputs(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_in_and_out_again(kind: str, base: Path, tmp_path: Path) -> None:
    import peft

    expected = outputs(adapted(base, kind, tmp_path / "adapter"))
    model = bayesify.convert(bayesify.load(tmp_path / "adapter"), "flipout")
    bayesify.save(model, tmp_path / "out", like=tmp_path / "adapter")
    again = bayesify.load(tmp_path / "out")
    with bayesify.posterior_mean(again):
        assert torch.equal(outputs(again), expected)
    outputs(again).square().sum().backward()
    scales = [layer.scale_of(name) for _, layer in bayesify.variational_layers(again) for name in layer.means()]
    assert scales
    assert all(scale.grad.any() for scale in scales)  # type: ignore[union-attr]
    assert torch.equal(outputs(peft.PeftModel.from_pretrained(bert(), tmp_path / "out").eval()), expected)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"r": 2**31}, "its configuration says `r`: 2147483648"),
        ({"r": 2**20}, r"describes adapters of [\d,]+ numbers, for a base network of"),
        ({"target_modules": r"(\w+)+\.nothing"}, r"'\(\\\\w\+\)\+\\\\.nothing' repeats a repetition"),
        ({"target_modules": ["query", "(a+)+b"]}, "repeats a repetition"),
        ({"rank_pattern": {"(.*)*query": 1}}, "repeats a repetition"),
        ({"exclude_modules": "(query"}, "is not one: missing"),
        ({"peft_type": "PROMPT_TUNING"}, "of the kind 'PROMPT_TUNING'.*Open it by peft, and convert"),
        ({"init_lora_weights": "loftq"}, "from data elsewhere"),
    ],
)
def test_what_a_configuration_may_not_ask_for(changed: dict[str, Any], match: str, base: Path, tmp_path: Path) -> None:
    adapted(base, "LoRA", tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))
    with pytest.raises(FileRefusedError, match=match):
        bayesify.load(tmp_path)
