"""A converted model in transformers' own Trainer: the KL once for each step, also after a resume and on peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

import bayesify
from bayesify.errors import UsageError
from tests.files.folders import bert

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def _libraries(vision: Any) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")


class Texts(Dataset[dict[str, torch.Tensor]]):
    """Texts of one length, and their classes."""

    def __init__(self, count: int = 16) -> None:
        made = torch.Generator().manual_seed(0)
        self.ids = torch.randint(30, (count, 6), generator=made)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[at], "labels": self.ids[at].sum() % 3}


def trainer_of(place: Path, model: Any = None, cls: Any = None, beta: Any = 1.0, **options: Any) -> Any:
    from transformers import TrainingArguments

    from bayesify.integrations.transformers import VariationalTrainer

    how: dict[str, Any] = {
        "output_dir": str(place), "per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 1, "seed": 0,
        "weight_decay": 0.1, "learning_rate": 1e-2, "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "no", "max_grad_norm": 0.0, **options,
    }  # fmt: skip
    model = bayesify.convert(bert(), "lrt") if model is None else model
    made = cls or VariationalTrainer
    return made(model=model, args=TrainingArguments(**how), train_dataset=Texts(), eval_dataset=Texts(8), beta=beta)


def scales(model: Any) -> list[torch.nn.Parameter]:
    return [layer.scale_of("weight") for _, layer in bayesify.variational_layers(model)]  # type: ignore[misc]


def test_groups_logs_and_prediction(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    before = [scale.detach().clone() for scale in scales(trainer.model)]
    trainer.train()
    decaying = {id(p) for g in trainer.optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    held = {id(p): g["initial_lr"] for g in trainer.optimizer.param_groups for p in g["params"]}
    assert not decaying & {id(scale) for scale in scales(trainer.model)}
    assert {held[id(scale)] for scale in scales(trainer.model)} == {2e-2}
    assert len(held) == sum(p.requires_grad for p in trainer.model.parameters())
    assert all(not torch.equal(*pair) for pair in zip(before, scales(trainer.model), strict=True))
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 4
    assert all(entry["posterior/kl"] > 0 and entry["posterior/mean_std"] > 0 for entry in logged)
    assert logged[-1]["posterior/reached"] == 1
    assert logged[-1]["posterior/at_prior"] == 0
    found = trainer.predict(Texts(8), task="classification", samples=4, seed=0)
    assert isinstance(found, bayesify.Prediction)
    assert found.mean.shape == (8, 3)
    torch.testing.assert_close(found.mean.sum(1), torch.ones(8))


def gradients_of_scales(trainer: Any) -> list[torch.Tensor]:
    """The gradients that the first step of the optimizer uses."""
    seen: list[torch.Tensor] = []

    def remember(optimizer: Any, args: Any, kwargs: Any) -> None:
        if not seen:
            seen.extend(scale.grad.clone() for scale in scales(trainer.model))  # type: ignore[union-attr]

    make = trainer.create_optimizer

    def watched(*args: Any) -> Any:
        optimizer = make(*args)
        optimizer.register_step_post_hook(remember)
        return optimizer

    trainer.create_optimizer = watched
    trainer.train()
    return seen


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_kl_counts_once_for_each_step(accumulated: int, tmp_path: Path) -> None:
    """What beta=1000 adds to the gradient of beta=0 is 1000 times the KL's own, however many batches make a step."""
    options: dict[str, Any] = {"max_steps": 1, "gradient_accumulation_steps": accumulated}
    with_kl, without = (gradients_of_scales(trainer_of(tmp_path, beta=beta, **options)) for beta in (1000.0, 0.0))
    model = bayesify.convert(bert(), "lrt")
    expected = torch.autograd.grad(1000 * model.kl() / 16, scales(model))
    for one, other, kl in zip(with_kl, without, expected, strict=True):
        torch.testing.assert_close(one - other, kl, rtol=1e-3, atol=1e-4)


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def betas(step: int) -> float:
        return 0.1 * (step + 1)

    whole = trainer_of(tmp_path / "a", beta=betas, save_strategy="steps", save_steps=2)
    whole.train()
    torch.manual_seed(5)
    resumed = trainer_of(tmp_path / "b", beta=betas)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e][-2:] for t in (whole, resumed)]
    assert losses[0] == losses[1]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_best_model_at_the_end_has_its_scales(tmp_path: Path) -> None:
    how = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = trainer_of(tmp_path, load_best_model_at_end=True, metric_for_best_model="eval_loss", **how)
    trainer.train()
    from safetensors.torch import load_file

    best = load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    names = [name for name in best if name.endswith("_rho")]
    assert len(names) == len(scales(trainer.model))
    assert all(torch.equal(best[name], trainer.model.state_dict()[name]) for name in names)


def test_mixed_precision(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, bf16=True)
    trainer.train()
    assert all(scale.dtype == torch.float32 and scale.isfinite().all() for scale in scales(trainer.model))


def test_adapters_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = bayesify.convert(peft.get_peft_model(bert(), config), "lora")
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trainer = trainer_of(tmp_path, model=model, save_strategy="steps", save_steps=2)
    trainer.train()
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in frozen.items())
    again = trainer_of(tmp_path / "b", model=bayesify.convert(peft.get_peft_model(bert(), config), "lora"))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for one, other in zip(scales(trainer.model), scales(again.model), strict=True):
        assert torch.equal(one, other)


def test_a_trainer_of_ones_own_is_told_of_the_decay(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from bayesify.integrations.transformers import KLCallback

    model = bayesify.convert(bert())
    args = TrainingArguments(output_dir=str(tmp_path), weight_decay=0.1, report_to=[], use_cpu=True, max_steps=1)
    trainer = Trainer(model=model, args=args, train_dataset=Texts(), callbacks=[KLCallback()])
    with pytest.raises(UsageError, match=r"weight decay pulls on the posterior's scales.*VariationalTrainer"):
        trainer.train()
    optimizer = torch.optim.AdamW(bayesify.param_groups(model, lr=1e-3))
    trainer = Trainer(
        model=model, args=args, train_dataset=Texts(), callbacks=[KLCallback()], optimizers=(optimizer, None)
    )
    trainer.train()
    assert not optimizer._optimizer_step_pre_hooks  # type: ignore[attr-defined]
