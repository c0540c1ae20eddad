"""A product with a weight past its noise, in code that no plan could see, is an error in the first forward."""

from __future__ import annotations

import copy
import gc
import io
import types
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from bayesify.errors import BypassError, StalePosteriorError
from bayesify.nn.watched_forwards import begin_watch, end_watch
from tests.support import METHODS

from . import hidden_reads
from .hidden_reads import Untraced, applied, weight_of

X = torch.ones(3, 4)


def mlp(method: str = "flipout") -> nn.Sequential:
    return bayesify.convert(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", hidden_reads.KINDS, ids=lambda cls: cls.__name__)
def test_the_first_forward_says_where_a_weight_is_used_without_noise(model: Any, method: str) -> None:
    plain = model()
    converted = bayesify.convert(plain, method)
    with bayesify.posterior_mean(converted):
        assert torch.equal(converted(X), plain(X))
    with pytest.raises(BypassError, match=r"at hidden_reads.py:\d+ multiplies by the weight of .* '.*a'"):
        converted(X)


@pytest.mark.parametrize("method", METHODS)
def test_code_that_comes_after_conversion_is_seen_too(method: str) -> None:
    patched = mlp(method)
    patched[0].forward = types.MethodType(lambda layer, x: applied(x, layer), patched[0])
    adapted = mlp(method)
    adapted(X)
    adapted[0] = Adapter(adapted[0])
    for model in (patched, adapted):
        with pytest.raises(BypassError):
            model(X)


class Adapter(nn.Module):
    """A LoRA layer that computes with the sum of both weights."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.a, self.b = base, nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + self.b @ self.a)


def test_a_forward_says_that_a_layer_is_gone() -> None:
    model = mlp()
    model(X)
    model[2] = nn.Linear(4, 2)
    with pytest.raises(StalePosteriorError, match="1 of 2 variational layers of Sequential are gone"):
        model(X)
    model.kl.recount()
    assert model(X).shape == (3, 2)


def test_a_layer_that_moves_goes_on() -> None:
    model = mlp()
    model(X)
    model[0] = nn.Sequential(model[0], nn.ReLU())
    assert not torch.equal(model(X), model(X))


class Penalized(Untraced):
    """Asks for shapes, and computes with weights and no data."""

    def multiplied(self, x: Tensor) -> Any:
        own, other = weight_of(self.a), weight_of(self.b)
        x = x.to(own.dtype).view(-1, own.shape[1])
        return self.b(self.a(x)), (own @ own.t()).sum() + other.norm() + torch.zeros_like(own).sum()


def test_what_is_no_product_with_data_passes() -> None:
    model = bayesify.convert(Penalized())
    assert not torch.equal(model(X)[0], model(X)[0])


class Beside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + F.linear(x, self.a.weight.detach())


def test_what_the_plan_notes_passes(tmp_path: Path) -> None:
    assert "without noise" in bayesify.plan(Beside()).rows[0].notes[0]
    model = bayesify.convert(Beside())
    bayesify.save(model, tmp_path / "model.pt")
    for each in (model, copy.deepcopy(model), bayesify.load(tmp_path / "model.pt", into=Beside())):
        assert not torch.equal(each(X), each(X))


def test_a_frozen_user_of_the_same_weight_passes() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    plain[1].weight = plain[0].weight
    model = bayesify.convert(plain, {"method": "flipout", "ignore": ["1"]})
    assert not torch.equal(model(X), model(X))


def test_what_ends_a_forward_ends_the_watch() -> None:
    class Interrupted(Untraced):
        by: Any = KeyboardInterrupt

        def multiplied(self, x: Tensor) -> Tensor:
            if self.by is not None:
                raise self.by
            return super().multiplied(x)

    model = bayesify.convert(Interrupted())
    for error in (KeyboardInterrupt, ValueError):
        model.by = error
        with pytest.raises(error):
            model(X)
        assert applied(X, model.a).shape == (3, 4)  # by hand, outside of any forward
    model.by = None
    assert not torch.equal(model(X), model(X))
    assert torch._C._len_torch_function_stack() == 0


def test_a_forward_without_a_variational_layer_warns() -> None:
    plain = Untraced()
    other = plain.a
    plain.multiplied = lambda x: (other(x), OUTSIDE(x))[1]  # type: ignore[method-assign]
    model = bayesify.convert(plain, {"method": "flipout", "ignore": ["a"]})
    with pytest.warns(UserWarning, match="reached none of the 1 variational layers: it has no noise"):
        model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mlp()(X)


OUTSIDE = nn.Linear(4, 4)


def test_copies_and_files_are_watched_and_a_plain_model_is_not() -> None:
    model = bayesify.convert(hidden_reads.FunctionGetsLayer())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for each in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        with pytest.raises(BypassError):
            each(X)
    plain = bayesify.revert(model)
    assert not {begin_watch, end_watch} & {*plain._forward_pre_hooks.values(), *plain._forward_hooks.values()}
    assert vars(plain).keys() == vars(hidden_reads.FunctionGetsLayer()).keys()
    assert plain(X).shape == (3, 4)


def test_a_layer_that_a_forward_makes_is_told() -> None:
    class Makes(Untraced):
        def __init__(self) -> None:
            super().__init__()
            self.made: Any = None

        def multiplied(self, x: Tensor) -> Tensor:
            if self.made is None:
                self.made = nn.Linear(4, 4)
            return self.made(self.b(x))

    model = bayesify.convert(Makes())
    with pytest.warns(UserWarning, match="its forward made 'made', a Linear: it has no noise"):
        model(X)


def test_a_watched_model_is_let_go() -> None:
    model = mlp()
    model(X)
    model[0].back = [model]
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_an_encoder_that_is_kept_gives_the_same_at_every_forward() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    plain = nn.Sequential(nn.TransformerEncoder(layer, 1), nn.Linear(4, 4)).eval()
    model: Any = bayesify.convert(plain, {"method": "flipout", "ignore": ["0"]})
    padded: list[Tensor] = []
    model[0].register_forward_hook(lambda encoder, given, output: padded.append(output[0, -1]))
    model[0].forward = lambda x: nn.TransformerEncoder.forward(model[0], x, src_key_padding_mask=PADDING)
    with torch.no_grad():
        for _ in range(4):
            model(torch.ones(2, 3, 4))
    assert all(torch.equal(each, padded[0]) for each in padded)


PADDING = torch.tensor([[False, False, True], [False, False, False]])


class Trainer(nn.Module):
    """A step of its own calls a part, and never the model."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.head = nn.Sequential(Around(part)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)

    def step(self, x: Tensor) -> Tensor:
        return self.head(self.part(x))


class Around(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", hidden_reads.KINDS[:4], ids=lambda cls: cls.__name__)
def test_a_part_that_is_called_by_itself_is_watched_once(model: Any, method: str) -> None:
    trainer: Any = bayesify.convert(Trainer(model()), method)
    trainer.step(X)
    with pytest.raises(BypassError, match="past its noise"):
        trainer.step(X)
    assert torch._C._len_torch_function_stack() == 0
    copy.deepcopy(trainer).step(X)
    whole = bayesify.convert(Trainer(Untraced()), method)
    for _ in range(3):
        with bayesify.posterior_mean(whole):
            whole.step(X)
        assert not torch.equal(whole.step(X), whole.step(X))
    hooks = [hook for module in whole.modules() for hook in module._forward_pre_hooks.values()]
    assert hooks == [begin_watch]  # the model's own


def test_parts_of_a_model_that_is_called_get_no_hooks(tmp_path: Path) -> None:
    model = bayesify.convert(Trainer(Untraced()))
    model(X)
    model.step(X)
    assert [begin_watch] == [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    waiting = bayesify.convert(Trainer(Untraced()))
    waiting.step(X)
    bayesify.save(waiting, tmp_path / "model.pt")
    assert torch.equal(bayesify.load(tmp_path / "model.pt", into=Trainer(Untraced())).kl(), waiting.kl())
    plain = bayesify.revert(waiting)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in plain.modules())
