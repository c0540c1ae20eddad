"""What other code asks of a converted model: signatures, state_dicts, which layers were reached, any attribute."""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from bayesify.errors import UsageError
from bayesify.nn import Variational
from bayesify.nn.settings import Method
from tests.support import METHODS


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.h = nn.Embedding(11, 8), nn.Linear(8, 8)

    def forward(self, input_ids: Any = None, attention_mask: Any = None, *, labels: Any = None) -> Tensor:
        return F.linear(torch.tanh(self.h(self.emb(input_ids))), self.emb.weight)


class OwnProduct(nn.Module):
    """Multiplies by a weight itself; saves and names what it pleases, as torch_geometric's Linear does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x @ self.weight * scale

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight if keep_vars else self.weight.detach()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cls", [LanguageModel, OwnProduct])
def test_the_signature_of_forward_is_the_models(cls: Any, method: Method) -> None:
    plain = cls()
    model = bayesify.convert(plain, method)
    assert type(model) is not cls
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 3), lambda: nn.Conv2d(1, 2, 3), lambda: nn.GRU(2, 3)])
def test_the_signature_of_a_layer_of_torch_stays(make: Any, method: Method) -> None:
    layer = bayesify.convert(make(), method)
    assert inspect.signature(layer.forward) == inspect.signature(make().forward)
    assert inspect.signature(type(layer)) == inspect.signature(type(make()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: nn.Linear(3, 3), torch.randn(2, 3)),
        (lambda: nn.GRU(3, 3), torch.randn(2, 3, 3)),
        (lambda: nn.GRUCell(3, 3), torch.randn(2, 3)),
        (OwnProduct, torch.randn(2, 3)),
    ],
)
def test_a_forward_that_is_called_by_its_name_reaches_the_layer(make: Any, x: Tensor, method: Method) -> None:
    model: Any = bayesify.convert(nn.Sequential(make()), method)
    assert model.kl(reached=True) == 0
    model[0].forward(x)
    assert torch.equal(model.kl(reached=True), model.kl())


@pytest.mark.parametrize("prior", [{"mean": "pretrained", "std": 1.0}, {"mean": 0.0, "std": {"relative": 0.1}}])
def test_a_class_that_saves_its_own_names_only_keeps_its_posterior(prior: Any) -> None:
    policy = {"method": "flipout", "prior": prior}
    model: Any = bayesify.convert(nn.Sequential(OwnProduct()), policy)
    bayesify.set_posterior_std(model, 0.3)
    state = model.state_dict()
    assert {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()} == set(state)
    twin: Any = bayesify.convert(nn.Sequential(OwnProduct()), policy)
    twin.load_state_dict(state)
    assert torch.equal(twin[0].weight_std, model[0].weight_std)
    assert torch.equal(twin.kl(), model.kl())


def checkpoints() -> dict[str, tuple[nn.Module, Any]]:
    norm = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    state = norm.state_dict()
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.warns(FutureWarning):
        old = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)))
    return {
        "batch norm": (norm, {name: value for name, value in state.items() if "num_batches" not in name}),
        "weight norm": (new, old.state_dict()),
    }


@pytest.mark.parametrize("kind", ["batch norm", "weight norm"])
def test_checkpoints_of_old_load_as_into_the_plain_model(kind: str) -> None:
    plain, checkpoint = checkpoints()[kind]
    model = bayesify.convert(plain)
    bayesify.load_weights(model, checkpoint)
    plain.load_state_dict(checkpoint)
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    with pytest.raises(UsageError, match="does not fit"):
        bayesify.load_weights(model, {**checkpoint, "other": torch.ones(1)})


class Hooked(nn.Module):
    """Functions over `self`, which torch's deepcopy leaves as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.feature = nn.Linear(3, 3), nn.Linear(3, 2), torch.zeros(2, 3)

        def keep(module: nn.Module, inputs: Any, output: Tensor, scale: float = 2.0) -> None:
            self.feature = output * scale

        self.handle = self.a.register_forward_hook(keep)
        self.heads = {"b": lambda x: self.b(x)}

    def forward(self, x: Tensor) -> Tensor:
        self.a(x)
        return self.heads["b"](self.feature)


@pytest.mark.parametrize("method", METHODS)
def test_hooks_and_lambdas_of_a_copy_hold_the_copy(method: Method) -> None:
    plain, x = Hooked().requires_grad_(False), torch.randn(2, 3)
    model: Any = bayesify.convert(plain, {"method": method, "frozen": "convert"})
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), plain(x))
    assert not torch.equal(model(x), model(x))
    assert plain.feature is not model.feature
    plain.b.weight.data.zero_()
    assert torch.equal(bayesify.revert(model).b.weight, model.b.weight)
    model.handle.remove()
    assert len(plain.a._forward_hooks) == 1


def test_what_closes_over_nothing_that_is_copied_is_shared() -> None:
    def hook(module: nn.Module, args: Any) -> None: ...

    plain = nn.Sequential(nn.Linear(2, 2))
    plain.register_forward_pre_hook(hook)
    assert hook in bayesify.convert(plain)._forward_pre_hooks.values()


class AnswersAll(nn.Module):
    """Has every attribute that it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return None


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_answers_every_name_converts(method: Method) -> None:
    plain, x = AnswersAll(), torch.randn(2, 3)
    model: Any = bayesify.convert(plain, method)
    assert model.kl() > 0
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), plain(x))
    assert not torch.equal(model(x), model(x))
    copy.deepcopy(model).kl()
    assert type(bayesify.revert(model).layer) is nn.Linear
    assert bayesify.predict(model, x, samples=2).mean.shape == (2, 3)


class Hinted(nn.Module):
    """As transformers' models do, it asks for the type hints of its subclasses."""

    def __init_subclass__(cls) -> None:
        typing.get_type_hints(cls)


class Projected(Hinted):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.projection


@pytest.mark.parametrize("method", METHODS)
def test_type_hints_of_converted_classes_are_told(method: Method) -> None:
    model = bayesify.convert(Projected(), method)
    for cls in {type(model), *_below(Variational)}:
        assert typing.get_type_hints(cls)["method"] == Method


def _below(cls: type[Any]) -> Iterator[type[Any]]:
    yield cls
    for each in cls.__subclasses__():
        yield from _below(each)
