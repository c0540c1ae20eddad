"""A converted language model in TRL's trainers: the KL once a step, and what they read past the model is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bayesify
from bayesify.errors import BypassError
from tests.integrations.test_transformers import scales


@pytest.fixture(scope="module", autouse=True)
def _libraries(vision: Any) -> None:
    for name in ("transformers", "datasets", "trl"):
        pytest.importorskip(name)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: at for at, word in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefghij"])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def language_model() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 13, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**sizes, pad_token_id=0, eos_token_id=1, bos_token_id=1, tie_word_embeddings=False)
    return GPT2LMHeadModel(config)


def options(place: Path) -> dict[str, Any]:
    return {
        "output_dir": str(place), "max_steps": 3, "logging_steps": 1, "report_to": [], "use_cpu": True, "bf16": False,
        "save_strategy": "no", "per_device_train_batch_size": 4, "disable_tqdm": True, "learning_rate": 1e-2,
    }  # fmt: skip


def trained(base: Any, args: Any, model: Any, data: dict[str, list[str]], **more: Any) -> Any:
    from datasets import Dataset

    from bayesify.integrations.transformers import Variational

    trainer_class = type("Trainer", (Variational, base), {})
    data_set = Dataset.from_dict(data)
    trainer = trainer_class(
        model=model, args=args, train_dataset=data_set, processing_class=tokenizer(), n_train=96, **more
    )
    trainer.train()
    return trainer


def supervised(place: Path, model: Any, **more: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(**options(place), max_length=16, **more)
    return trained(SFTTrainer, args, model, {"text": ["a b c d e f", "b c d e f g"] * 8})


def check(trainer: Any, before: list[torch.Tensor]) -> None:
    """The loss reached all scales, and each step moved all of them."""
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["posterior/reached"] for entry in logged] == [1, 1, 1]
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert all(not torch.equal(*pair) for pair in zip(before, scales(trainer.model), strict=True))


@pytest.mark.filterwarnings("error:in .* steps the loss gave no gradient")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_supervised(checkpointing: bool, tmp_path: Path) -> None:
    model = bayesify.convert(language_model(), {"method": "flipout", "ignore": ["lm_head"]})
    before = [scale.detach().clone() for scale in scales(model)]
    check(supervised(tmp_path, model, gradient_checkpointing=checkpointing), before)


def test_a_head_whose_weight_the_trainer_reads_is_told(tmp_path: Path) -> None:
    """SFTTrainer multiplies by `lm_head.weight` in a Function of its own: no noise, and no gradient for the scale."""
    with pytest.raises(BypassError, match=r"weight of the variational layer 'lm_head' past its noise"):
        supervised(tmp_path, bayesify.convert(language_model(), "lrt"))


def test_preferences(tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    model = bayesify.convert(language_model(), {"method": "lrt", "ignore": ["lm_head"]})
    before = [scale.detach().clone() for scale in scales(model)]
    data = {"prompt": ["a b"] * 16, "chosen": [" c d"] * 16, "rejected": [" e f"] * 16}
    args = DPOConfig(**options(tmp_path))
    check(trained(DPOTrainer, args, model, data, ref_model=language_model()), before)
