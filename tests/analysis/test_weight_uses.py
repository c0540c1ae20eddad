"""What a forward does with the weights that it reads: products with their fan-in, and the line of any other use."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bayesify.analysis.weight_uses import matrices, uses


class Net(nn.Module):
    """A matrix of its own, one of a child's, a vector, and whatever is done with them."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.matrix, self.vector = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(3))
        self.tensor = nn.Parameter(torch.zeros(2, 4, 3))
        self.child, self.table = nn.Linear(3, 4), nn.Embedding(5, 3)
        self.act = forward
        self.register_buffer("mask", torch.ones(3))

    def forward(self, x: Tensor, mask: Any = None, **options: Any) -> Any:
        return self.act(self, x)


# (what is done, which Parameter, fan-in of an output)
MULTIPLIED: dict[str, tuple[Callable[[Net, Any], Any], str, int]] = {
    "linear": (lambda m, x: F.linear(x, m.matrix), "matrix", 3),
    "linear of a transposed view": (lambda m, x: F.linear(x, m.matrix.t()), "matrix", 4),
    "matmul": (lambda m, x: x @ m.matrix, "matrix", 4),
    "matmul of a transposed view": (lambda m, x: x @ m.matrix.T, "matrix", 3),
    "from the left": (lambda m, x: m.matrix @ x, "matrix", 3),
    "addmm": (lambda m, x: torch.addmm(m.vector, x, m.matrix), "matrix", 4),
    "bmm": (lambda m, x: torch.bmm(x, m.tensor), "tensor", 4),
    "einsum": (lambda m, x: torch.einsum("xhij,hij->xi", x, m.tensor), "tensor", 6),
    "convolution": (lambda m, x: F.conv1d(x, m.tensor), "tensor", 12),
    "a child's": (lambda m, x: F.linear(x, m.child.weight, m.child.bias), "child.weight", 3),
    "a child's, called too": (lambda m, x: F.linear(m.child(x), m.child.weight.T), "child.weight", 4),
    "tied decoder": (lambda m, x: F.linear(m.table(x), m.table.weight), "table.weight", 3),
    "on one side of a branch": (lambda m, x: x @ m.matrix if x.sum() > 0 else x, "matrix", 4),
    "on the other": (lambda m, x: x if x.sum() > 0 else x @ m.matrix, "matrix", 4),
    "behind a check": (lambda m, x: (_checked(x), x @ m.matrix)[1], "matrix", 4),
    "with any rank": (lambda m, x: torch.addmm(m.vector, x.view(-1, 4), m.matrix).view(*x.shape[:-1], 3), "matrix", 4),
    "asked for its form": (
        lambda m, x: x.to(m.matrix.dtype).view(m.matrix.shape[0], m.matrix.size(1)) @ m.matrix, "matrix", 4,
    ),
    "in a loop over data": (lambda m, x: [F.linear(each, m.matrix) for each in x], "matrix", 3),
    "times a number": (lambda m, x: F.linear(x, m.matrix * 0.5), "matrix", 3),
    "masked": (lambda m, x: F.linear(x, m.mask * m.matrix), "matrix", 3),
    "over a number": (lambda m, x: x @ (m.matrix / 2), "matrix", 4),
    "beside a buffer": (lambda m, x: m.mask.expand(x.shape[0], -1) * (x @ m.matrix), "matrix", 4),
    "beside a new tensor of its form": (
        lambda m, x: torch.zeros(*x.shape[:2], 3, dtype=x.dtype, device=x.device) + x @ m.matrix, "matrix", 4,
    ),
    "where a branch is on a size": (lambda m, x: x @ m.matrix if torch.ones(x.size(1)).sum() > 9 else x, "matrix", 4),
    "beside new tensors": (lambda m, x: torch.ones(x.shape[0], 4) * x @ m.matrix + x.new_ones(3), "matrix", 4),
    "in a loop over a size": (lambda m, x: [x[at] @ m.matrix for at in range(x.shape[0])], "matrix", 4),
    "ellipsis": (lambda m, x: torch.einsum("...i,ij->...j", x, m.matrix), "matrix", 4),
    "in a loop over rows": (lambda m, x: [F.linear(x, m.matrix) for _ in range(x.shape[0])], "matrix", 3),
    "beside a size as a tensor": (lambda m, x: F.linear(x, m.matrix) / torch.tensor(x.size(-1)).sqrt(), "matrix", 3),
    "beside zeros of a size": (lambda m, x: F.linear(x + torch.zeros(x.shape[0], 3), m.matrix), "matrix", 3),
    "beside a type's limits": (lambda m, x: F.linear(x, m.matrix) + float(torch.finfo(x.dtype).min), "matrix", 3),
    "behind an assertion": (lambda m, x: (torch._check(x.shape[0] > 3), F.linear(x, m.matrix)), "matrix", 3),
    "behind an activation made there": (lambda m, x: F.linear(nn.SiLU()(x), m.matrix), "matrix", 3),
    "cast by its type": (lambda m, x: F.linear(x, m.matrix.type(torch.float64)), "matrix", 3),
    "projecting for an attention": (lambda m, x: _attended(x, q_proj_weight=m.child.weight), "child.weight", 3),
    "beside data made alike": (lambda m, x: x.to(m.matrix).type_as(m.matrix) @ m.matrix, "matrix", 4),
    "beside an item that is set": (lambda m, x: (x.__setitem__(0, 1.0), x @ m.matrix), "matrix", 4),
}


def _attended(x: Any, **weights: Any) -> Any:
    given = [x, x, x, 4, 2, None, None, None, None, False, 0.0, None, None]
    return F.multi_head_attention_forward(*given, use_separate_proj_weight=True, **weights)


def _checked(x: Tensor) -> None:
    if x.shape[0] > 3:
        raise ValueError("too long")
    if not x.dim() == 3:
        raise ValueError("too flat")


@pytest.mark.parametrize("name", MULTIPLIED)
def test_multiplications_and_their_fan_in(name: str) -> None:
    act, weight, size = MULTIPLIED[name]
    net = Net(act)
    found = uses(net)
    assert not found.failure
    assert found.multiplied == {id(net.get_parameter(weight)): size}
    assert not found.problems


OTHERS: dict[str, tuple[Callable[[Net, Any], Any], str]] = {
    "data": (lambda m, x: x @ m.matrix.data, "data"),
    "indexed by data": (lambda m, x: m.matrix[x], "getitem"),
    "in place": (lambda m, x: x @ m.matrix.mul_(2), "mul_"),
    "handed to a child": (lambda m, x: m.child(m.matrix), "child"),
    "returned": (lambda m, x: m.matrix, "output"),
    "for an attention's keys": (
        lambda m, x: F.multi_head_attention_forward(x, x, x, 4, 2, x, None, m.matrix, x, False, 0.0, x, None),
        "multi_head_attention_forward",
    ),
    "with itself": (lambda m, x: m.matrix @ m.matrix, "matmul"),
    "as a bias": (lambda m, x: F.linear(x, m.child.weight, m.matrix), "linear"),
    "as a factor of data": (lambda m, x: torch.relu(m.matrix * x) @ x, "mul"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_use_is_told_with_its_line(name: str) -> None:
    act, what = OTHERS[name]
    net = Net(act)
    problem = uses(net).problem(net.matrix)
    assert problem is not None
    line = inspect.getsourcelines(Net.forward)[1] + 1 if what in ("output",) else act.__code__.co_firstlineno
    assert problem == f"it is used in `{what}` at {Path(__file__).name}:{line}" or what == "output", problem


def test_what_is_never_used_and_what_does_not_trace() -> None:
    net = Net(lambda m, x: x @ m.matrix)
    assert uses(net).problem(net.tensor) == "its forward never uses it"
    assert matrices(net).keys() == {"matrix", "tensor"}
    looks_up = Net(lambda m, x: F.embedding(x, m.matrix))
    assert uses(looks_up).problem(looks_up.matrix) == "its forward only looks rows up"
    broken = Net(lambda m, x: x @ m.matrix[{0: 0}[x.sum()]])
    problem = str(uses(broken).problem(broken.matrix))
    line = broken.act.__code__.co_firstlineno
    assert problem.startswith(f"its forward does not trace: {Path(__file__).name}:{line}:")
    silent = nn.ParameterList([torch.zeros(2, 2)])
    assert uses(silent).problem(silent[0]) == "nothing is known to multiply by it"


def _decorated(call: Any) -> Any:
    def decorator(forward: Any) -> Any:
        @functools.wraps(forward)
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            return call(forward, self, *args, **kwargs)

        return wrapped

    return decorator


def _product(net: Net, x: Any, more: Any = None, *rest: Any, flag: bool, other: bool = False, **options: Any) -> Any:
    return F.linear(x, net.matrix) if flag else F.linear(x, net.child.weight)


def _renaming(forward: Any, net: Net, x: Any, anything: Any, **options: Any) -> Any:
    return forward(net, x, anything, **options)


@pytest.mark.parametrize(
    "call",
    [
        lambda forward, net, *args, **kwargs: forward(net, *args, **kwargs),
        lambda forward, net, *args, **kwargs: forward(net, *args, **{"more": None, **kwargs}),
        _renaming,
    ],
    ids=["passed on", "named", "renamed"],
)
def test_a_decorated_forward_is_looked_into(call: Any) -> None:
    cls: Any = type("Decorated", (Net,), {"forward": _decorated(call)(_product)})
    net = cls(lambda m, x: x)
    assert uses(net).multiplied == {id(net.matrix): 3, id(net.child.weight): 3}


class WithOptions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(3, 3)

    def forward(self, x: Tensor, **options: Any) -> Any:
        how = options.pop("how", None)
        return self.child(x) if how is None else F.linear(x, self.child.weight)


def test_what_a_forward_does_not_name_it_is_not_given() -> None:
    net = WithOptions()
    assert uses(net).called == {id(net.child)}
    assert not uses(net).multiplied


def _hidden(x: Any, weight: Any) -> Any:
    return F.linear(x, weight)


fx.wrap("_hidden")


def test_functions_that_were_hidden_from_torch_fx_are_looked_into() -> None:
    net = Net(lambda m, x: _hidden(x, m.child.weight))
    assert uses(net).multiplied == {id(net.child.weight): 3}
    registry = fx._symbolic_trace._wrapped_fns_to_patch
    assert any(name == "_hidden" for _, name in registry)


def test_the_module_stays_as_it_was() -> None:
    net = Net(lambda m, x: (setattr(m, "left", x), m.matrix.data.fill_(1), x @ m.matrix)[-1])
    before, state = vars(net).keys(), torch.get_rng_state()
    uses(net)
    assert vars(net).keys() == before
    assert net.matrix.abs().sum() == 0
    assert torch.equal(torch.get_rng_state(), state)
