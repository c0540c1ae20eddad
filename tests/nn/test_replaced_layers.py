"""Layers that other code replaces after conversion by plain ones: whatever is called next says that they are gone."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import StalePosteriorError
from bayesify.nn.replaced_layers import is_suspected
from tests.support import METHODS

X = torch.ones(3, 4)
BATCHES = [(X, torch.tensor([0, 1, 2]))]


class Net(nn.Module):
    """Called by methods other than its forward, too, as policies and generators are."""

    def __init__(self) -> None:
        super().__init__()
        self.body: Any = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5))
        self.head: nn.Module = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


def with_new_head(method: str = "flipout") -> Any:
    model = bayesify.convert(Net(), method)
    model(X)
    model.head = nn.Linear(5, 7)
    return model


CALLS: dict[str, Callable[[Any], Any]] = {
    "children": lambda model: model.head(model.body(X)),
    "method": lambda model: model.logits(X),
    "forward": lambda model: model.forward(X),
    "compiled": lambda model: torch.compile(model, backend="eager")(X),
    "compiled child": lambda model: torch.compile(model.body, backend="eager")(X),
    "attach_kl": lambda model: bayesify.attach_kl(torch.optim.SGD(model.parameters(), 0.1), model, 3),
    "param_groups": bayesify.param_groups,
    "posterior_mean": lambda model: bayesify.posterior_mean(model).__enter__(),
    "draw": lambda model: bayesify.draw(model).__enter__(),
    "predict": lambda model: bayesify.predict(model, X, samples=2),
    "predict of a child": lambda model: bayesify.predict(model.body, X, samples=2),
    "inspect": bayesify.inspect,
    "calibrate": lambda model: bayesify.calibrate(model, BATCHES, task="classification"),
    "set_posterior_std": lambda model: bayesify.set_posterior_std(model, 0.1),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_each_use_says_that_a_layer_is_gone(call: Callable[[Any], Any], method: str) -> None:
    model = with_new_head(method)
    for _ in range(2):
        with pytest.raises(StalePosteriorError, match=r"1 of 3 variational layers of Net are gone"):
            call(model)
    model.kl.recount()
    call(model)
    model(X)
    assert not is_suspected(model)


def test_compiled_code_that_ran_before_says_it() -> None:
    model: Any = bayesify.convert(Net())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(X)
    model.head = nn.Linear(5, 7)
    with pytest.raises(RuntimeError, match=r"replaced|gone"):
        compiled(X)
    assert bayesify.revert(model).head.out_features == 7


def test_no_file_is_written_without_the_layer(tmp_path: Path) -> None:
    model: Any = bayesify.convert(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)))
    state = model.state_dict()
    model[1] = nn.Linear(5, 3)
    with pytest.raises(StalePosteriorError):
        bayesify.save(model, tmp_path / "model.pt")
    assert not [*tmp_path.iterdir()]
    whole: Any = bayesify.convert(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)))
    with pytest.raises(RuntimeError, match=r"1\.weight_rho"):
        whole.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match=r"1\.weight_rho"):
        model.load_state_dict(state)


def test_a_container_that_is_replaced() -> None:
    model: Any = bayesify.convert(Net())
    model.body = nn.Sequential(nn.Linear(4, 5))
    with pytest.raises(StalePosteriorError, match="2 of 3"):
        model.head(model.body(X))


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "weights_only"])
def test_copies_notice(way: str) -> None:
    plain: Any = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    model = bayesify.convert(plain)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    ways: Any = {
        "deepcopy": lambda: copy.deepcopy(model),
        "pickle": lambda: pickle.loads(pickle.dumps(model)),
        "weights_only": lambda: torch.load(file, weights_only=True),
    }
    with torch.serialization.safe_globals([nn.Sequential]):
        twin = ways[way]()
    twin[1] = nn.Linear(5, 3)
    with pytest.raises(StalePosteriorError):
        twin[0](X)
    model[0](X)


def test_what_is_wrapped_moved_or_put_back_goes_on() -> None:
    model: Any = bayesify.convert(Net())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head, model.head = model.head, nn.Identity()
        model.tail = head
        model.logits(X)
        model.tail = nn.Sequential(model.tail, nn.ReLU())
        model.logits(X)
        kept, model.body = model.body, nn.Identity()
        model.body = kept
        model.logits(X)
    assert not is_suspected(model)


def test_another_model_goes_on() -> None:
    other: Any = bayesify.convert(Net())
    compiled = torch.compile(other, backend="eager", fullgraph=True)
    model = with_new_head()
    assert not torch.equal(other.logits(X), other.logits(X))
    with pytest.raises(StalePosteriorError):
        model.logits(X)
    assert compiled(X).shape == (3, 3)
    assert is_suspected(model.body[0])
    assert not is_suspected(other)
