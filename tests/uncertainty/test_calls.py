"""What models are called with, by `predict`: loaders of all kinds, structures of outputs, modes, and progress."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bayesify
from bayesify.errors import UsageError
from bayesify.report import progress


class Forward(nn.Module):
    """A network whose forward is `function` of its only layer and the arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)


class Two(Forward):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        y: Tensor = self.layer(a + 2 * b)
        return y


class Optional(Forward):
    def forward(self, a: Tensor, labels: Tensor | None = None, scale: float = 1.0) -> Tensor:
        assert labels is None
        y: Tensor = self.layer(a) * scale
        return y


class AnyPlaces(Forward):
    def forward(self, *parts: Tensor) -> Tensor:
        y: Tensor = self.layer(parts[0])
        return y


class TakesMapping(Forward):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        y: Tensor = self.layer(batch["x"])
        return y


class NeedsTarget(Forward):
    def forward(self, a: Tensor, target: Tensor) -> Tensor:
        y: Tensor = self.layer(a) + target
        return y


class Batch(NamedTuple):
    x: Tensor


class TakesTuple(Forward):
    def forward(self, batch: Batch) -> Tensor:
        y: Tensor = self.layer(batch.x)
        return y


def mean(model: nn.Module, *inputs: Any, **options: Any) -> Any:
    """The prediction's mean without noise."""
    converted = bayesify.convert(model, "flipout")
    with bayesify.posterior_mean(converted):
        return bayesify.predict(converted, *inputs, samples=2, **options).mean


A, B, Y = torch.randn(6, 4), torch.randn(6, 4), torch.randn(6, 3)


def halves(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(4) for tensor in tensors), strict=True)


@pytest.mark.parametrize(
    ("model", "batches", "expected"),
    [
        (Two(), [(a, b) for a, b in halves(A, B)], (A, B)),
        (Two(), [(a, b, y) for a, b, y in halves(A, B, Y)], (A, B)),
        (Two(), [((a, b), y) for a, b, y in halves(A, B, Y)], (A, B)),
        (Two(), [({"a": a, "b": b}, y) for a, b, y in halves(A, B, Y)], (A, B)),
        (Optional(), [[a, y] for a, y in halves(A, Y)], (A,)),
        (Optional(), [{"a": a, "labels": y, "index": y} for a, y in halves(A, Y)], (A,)),
        (Optional(), [{"pixels": a, "labels": y} for a, y in halves(A, Y)], (A,)),
        (Optional(), list(A.split(4)), (A,)),
        (AnyPlaces(), [(a,) for a in A.split(4)], (A,)),
        (NeedsTarget(), [{"a": a, "target": y} for a, y in halves(A, Y)], (A, Y)),
        (TakesTuple(), [Batch(a) for a in A.split(4)], (Batch(A),)),
    ],
)
def test_batches_of_loaders(model: nn.Module, batches: list[Any], expected: tuple[Any, ...]) -> None:
    torch.testing.assert_close(mean(model, iter(batches)), model(*expected).detach())


def test_what_a_batch_means_is_not_guessed() -> None:
    with pytest.raises(UsageError, match=r"a batch of the loader has 2 parts.*AnyPlaces\.forward"):
        mean(AnyPlaces(), iter([(A, Y)]))
    with pytest.raises(UsageError, match=r"a batch has a, c, labels, and Two\.forward takes a, b: name the inputs"):
        mean(Two(), iter([{"a": A, "c": B, "labels": Y}]))
    with pytest.raises(UsageError, match="not a TensorDataset"):
        mean(Optional(), TensorDataset(A))
    with pytest.raises(UsageError, match="not a ndarray"):
        mean(Optional(), A.numpy())


def test_inputs_by_place_by_keyword_and_as_a_mapping() -> None:
    model = Two()
    for inputs in ((A, B), ({"a": A, "b": B},)):
        torch.testing.assert_close(mean(model, *inputs), model(A, B).detach())
    taker = TakesMapping()
    torch.testing.assert_close(mean(taker, {"x": A}), taker({"x": A}).detach())
    scaled = Optional()
    torch.testing.assert_close(mean(scaled, {"a": A, "scale": 3.0}), scaled(A, scale=3.0).detach())


def test_a_converted_root_keeps_its_signature() -> None:
    """The root itself is a variational layer, whose forward takes anything by place."""
    layer = nn.Linear(4, 3)
    torch.testing.assert_close(mean(layer, iter([(A, Y)])), layer(A).detach())


class Structured(Forward):
    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        return {"logits": y, "parts": (y[:, :2], x.argmax(1)), "name": "n", "loss": y.sum()}


def test_outputs_of_any_structure() -> None:
    model: Any = bayesify.convert(Structured(), "flipout")
    found = bayesify.predict(model, A, samples=4, seed=1)
    assert found.mean.keys() == found.total.keys() == {"logits", "parts", "name", "loss"}
    assert found.mean["name"] == "n"
    assert torch.equal(found.mean["parts"][1], A.argmax(1))
    assert torch.equal(found.mean["parts"][0], found.mean["logits"][:, :2])
    assert torch.equal(found.total["parts"][0], found.total["logits"][:, :2])
    low, high = found.interval()
    assert (low["logits"] <= high["logits"]).all()
    picked = bayesify.predict(model, A, samples=4, seed=1, output="logits", task="classification")
    assert picked.mean.shape == (6, 3)
    assert picked.label.shape == (6,)
    with pytest.raises(UsageError, match=r"no part 'logit'\. Did you mean 'logits'"):
        bayesify.predict(model, A, output="logit")
    with pytest.raises(UsageError, match="holds no floating point tensor"):
        bayesify.predict(model, A, output="name")
    joined = bayesify.predict(model, iter(A.split(2)), output="parts")
    assert joined.mean[0].shape == (6, 2)
    assert torch.equal(joined.mean[1], A.argmax(1))
    with pytest.raises(UsageError, match="cannot be joined along their dimension 0"):
        bayesify.predict(model, iter(A.split(2)), output="loss")


def test_batches_of_several_lengths_say_so() -> None:
    with pytest.raises(UsageError, match="pad all batches to one length"):
        mean(Optional(), iter([torch.randn(2, 5, 4), torch.randn(2, 7, 4)]))


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_a_model_output_keeps_its_type(vision: Any) -> None:
    from transformers import BertConfig, BertForSequenceClassification
    from transformers.modeling_outputs import SequenceClassifierOutput

    size: Any = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=50, num_labels=3, **size)
    model: Any = bayesify.convert(BertForSequenceClassification(config).eval(), "flipout")
    ids, mask = torch.randint(50, (4, 7)), torch.ones(4, 7, dtype=torch.int64)
    found = bayesify.predict(model, {"input_ids": ids, "attention_mask": mask}, samples=4, task="classification")
    assert isinstance(found.mean, SequenceClassifierOutput)
    assert found.mean.logits.shape == (4, 3)
    assert found.total.logits.shape == (4,)
    assert torch.equal(found.total.logits, found.aleatoric.logits + found.epistemic.logits)
    labels = torch.zeros(4, dtype=torch.int64)
    batches = [{"input_ids": ids, "attention_mask": mask, "labels": labels}] * 2
    joined = bayesify.predict(model, iter(batches), samples=4, task="classification", output="logits")
    assert joined.mean.shape == (8, 3)


def moving() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def state(model: nn.Module) -> list[Any]:
    return [[module.training for module in model.modules()], [buffer.clone() for buffer in model.buffers()]]


def assert_same(before: list[Any], after: list[Any]) -> None:
    assert before[0] == after[0]
    assert all(torch.equal(one, other) for one, other in zip(before[1], after[1], strict=True))


def test_a_model_in_train_mode_predicts_in_eval_mode_and_is_left_as_it_was() -> None:
    model: Any = bayesify.convert(moving(), "flipout").train()
    model[1].eval()
    before = state(model)
    with bayesify.posterior_mean(model):
        found = bayesify.predict(model, A, samples=8)
    assert found.total.abs().max() < 1e-12  # no dropout
    assert_same(before, state(model))
    with pytest.raises(RuntimeError):
        bayesify.predict(model, torch.randn(3, 5))
    assert_same(before, state(model))


def test_a_module_in_train_mode_by_itself_stays_so_on_purpose() -> None:
    model: Any = bayesify.convert(moving(), "flipout").eval()
    model[1].train()
    model[2].train()
    before = state(model)
    with bayesify.posterior_mean(model):
        found = bayesify.predict(model, A, samples=8)
    assert found.total.max() > 1e-4  # dropout
    assert_same(before, state(model))
    with pytest.raises(RuntimeError):
        bayesify.predict(model, torch.randn(3, 5))
    assert_same(before, state(model))


def test_gradients_are_left_alone() -> None:
    model: Any = bayesify.convert(moving(), "flipout")
    found = bayesify.predict(model, A.clone().requires_grad_())
    assert not found.mean.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_generators_are_as_before_after_an_error() -> None:
    model: Any = bayesify.convert(moving(), "flipout")
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        bayesify.predict(model, torch.randn(100, 5, generator=torch.Generator()), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_comes_after_two_seconds_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = bayesify.convert(nn.Linear(4, 3), "flipout")
    loader = DataLoader(A, batch_size=2)

    def shown(wanted: bool | None, terminal: bool, patience: float) -> str:
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda: terminal)
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr(progress, "PATIENCE", patience)
        monkeypatch.setenv("TERM", "xterm")
        bayesify.predict(model, loader, samples=2, progress=wanted)
        return stream.getvalue()

    assert "Predicting" in shown(None, True, 0.0)
    assert shown(None, True, 60.0) == ""
    assert shown(None, False, 0.0) == ""
    assert shown(False, True, 0.0) == ""
    assert "Predicting" in shown(True, True, 60.0)


def test_progress_counts_what_was_asked_for() -> None:
    assert list(progress.progressed(iter("abc"), "Reading", True)) == ["a", "b", "c"]
    assert list(progress.progressed([], "Reading", True)) == []


def test_classes_in_dimension_0_are_not_joined() -> None:
    model: Any = bayesify.convert(nn.Linear(4, 3), "flipout")
    with pytest.raises(UsageError, match="the classes are in dimension 0"):
        bayesify.predict(model, iter(A.unbind()), task="classification")
