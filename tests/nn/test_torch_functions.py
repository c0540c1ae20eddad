"""Fan-in has one definition: how many elements of the weight one output sums. All who need it must find that number."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import bayesify
from bayesify.analysis.weight_uses import uses
from bayesify.nn.torch_functions import FUNCTIONS, MULTIPLICATIONS, NAMES, Role, role
from bayesify.programs.graph_products import find

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """A call of one of torch's functions.

    Attributes:
        names: of the arguments, as the function has them; in the order of `values`.
        values: shapes of data, `WEIGHT`, or what else is given as it is.
    """

    function: Callable[..., Any]
    names: Sequence[str]
    values: Sequence[Any]
    weight: Shape


class Data(tuple[int, ...]):
    """The shape of an input."""


WEIGHT = "the weight"


class Net(nn.Module):
    """Calls a form, its last `by_name` arguments by name, on a view of its weight."""

    def __init__(self, form: Form, by_name: int, stored: Shape, view: Callable[[Any], Any]) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(stored, dtype=torch.float64))
        self.form, self.by_name, self.view = form, by_name, view

    def forward(self, first: Any, second: Any) -> Any:
        data, form = iter((first, second)), self.form
        matrix = self.view(self.matrix)
        values = [matrix if v == WEIGHT else next(data) if isinstance(v, Data) else v for v in form.values]
        at = len(values) - self.by_name
        return form.function(*values[:at], **dict(zip(form.names[at:], values[at:], strict=True)))

    def inputs(self) -> list[Tensor]:
        """Generic data."""
        shapes = [value for value in self.form.values if isinstance(value, Data)]
        return [torch.rand(tuple(shape), dtype=torch.float64) + 0.5 for shape in [*shapes, (1,), (1,)][:2]]


def counted(net: Net) -> int:
    """By the definition: the most elements of the weight that an output depends on."""
    outputs = net(*net.inputs()).flatten()
    gradients = [torch.autograd.grad(output, net.matrix, retain_graph=True)[0] for output in outputs]
    return max(int(gradient.count_nonzero()) for gradient in gradients)


def method(name: str) -> Callable[..., Any]:
    """`x.name(...)` as a function."""

    def call(first: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(first, name)(*args, **kwargs)

    return call


size = st.integers(2, 4)


@st.composite
def linear(draw: Any) -> Form:
    out, features = draw(size), draw(size)
    x = Data((*draw(st.sampled_from([(), (2,), (2, 3)])), features))
    return Form(F.linear, ("input", "weight"), (x, WEIGHT), (out, features))


@st.composite
def bilinear(draw: Any) -> Form:
    out, left, right = draw(size), draw(size), draw(size)
    names = ("input1", "input2", "weight")
    return Form(F.bilinear, names, (Data((2, left)), Data((2, right)), WEIGHT), (out, left, right))


@st.composite
def matmul(draw: Any) -> Form:
    left, inner, right = draw(size), draw(size), draw(size)
    batch = draw(st.sampled_from([(), (2,), (2, 3)]))
    experts = batch[-1:] if draw(st.booleans()) else ()
    function = draw(st.sampled_from([torch.matmul, operator.matmul, torch.linalg.matmul, method("matmul")]))
    if draw(st.booleans()):
        x = Data((*batch, left, inner) if batch or draw(st.booleans()) else (inner,))
        return Form(function, ("input", "other"), (x, WEIGHT), (*experts, inner, right))
    x = Data((*batch, inner, right) if batch or draw(st.booleans()) else (inner,))
    return Form(function, ("input", "other"), (WEIGHT, x), (*experts, left, inner))


@st.composite
def mm(draw: Any) -> Form:
    left, inner, right, experts = draw(size), draw(size), draw(size), draw(st.sampled_from([(), (2,)]))
    functions = [torch.bmm, method("bmm")] if experts else [torch.mm, method("mm")]
    first, second = (*experts, left, inner), (*experts, inner, right)
    weight_first = draw(st.booleans())
    values = (WEIGHT, Data(second)) if weight_first else (Data(first), WEIGHT)
    return Form(draw(st.sampled_from(functions)), ("input", "mat2"), values, first if weight_first else second)


@st.composite
def addmm(draw: Any) -> Form:
    inner, right = draw(size), draw(size)
    names = ("input", "mat1", "mat2")
    function = draw(st.sampled_from([torch.addmm, method("addmm")]))
    onto = draw(st.sampled_from([(right,), (2, right), (2, 1), (1,)]))
    return Form(function, names, (Data(onto), Data((2, inner)), WEIGHT), (inner, right))


@st.composite
def baddbmm(draw: Any) -> Form:
    left, inner, right = draw(size), draw(size), draw(size)
    function = draw(st.sampled_from([torch.baddbmm, method("baddbmm")]))
    onto, shapes = Data(draw(st.sampled_from([(right,), (2, 1, right)]))), ((2, left, inner), (2, inner, right))
    weight_first = draw(st.booleans())
    values = (onto, WEIGHT, Data(shapes[1])) if weight_first else (onto, Data(shapes[0]), WEIGHT)
    return Form(function, ("input", "batch1", "batch2"), values, shapes[0 if weight_first else 1])


@st.composite
def mv(draw: Any) -> Form:
    rows, columns = draw(size), draw(size)
    return Form(torch.mv, ("input", "vec"), (WEIGHT, Data((columns,))), (rows, columns))


@st.composite
def inner(draw: Any) -> Form:
    features = draw(size)
    x, weight = (*draw(st.sampled_from([(), (2,), (2, 3)])), features), (draw(size), features)
    values = (WEIGHT, Data(x)) if draw(st.booleans()) else (Data(x), WEIGHT)
    return Form(torch.inner, ("input", "other"), values, weight)


@st.composite
def tensordot(draw: Any) -> Form:
    """Over how many dimensions, or over which; the weight on either side."""
    one, two, three = draw(size), draw(size), draw(size)
    x, weight, dims = draw(
        st.sampled_from([
            ((2, one), (one, two), 1), ((2, one, two), (one, two, three), 2), ((2, 3, one), (two, one), ([2], [1])),
            ((one, 2, 3, two), (two, three, one), ([0, -1], [2, 0])),
        ])
    )  # fmt: skip
    if draw(st.booleans()) or isinstance(dims, int):
        return Form(torch.tensordot, ("a", "b", "dims"), (Data(x), WEIGHT, dims), weight)
    return Form(torch.tensordot, ("a", "b", "dims"), (WEIGHT, Data(x), dims[::-1]), weight)


@st.composite
def einsum(draw: Any) -> Form:
    """The weight on either side; explicit or implicit output; an ellipsis on either side, or on both."""
    equation, of_x, of_weight = draw(
        st.sampled_from([
            ("bi,ij->bj", "bi", "ij"), ("bi,ji->bj", "bi", "ji"), ("bi,ij", "bi", "ij"), ("ib,ij", "ib", "ij"),
            ("...i,ij->...j", "bi", "ij"), ("...i,ij", "bi", "ij"), ("...i,i...", "ci", "ic"),
            ("bhi,hij->bhj", "bhi", "hij"), ("bhi,hij->bj", "bhi", "hij"), ("b i, h i j -> b h j", "bi", "hij"),
            ("...i,...ij->...j", "bhi", "hij"), ("bi,...ij->b...j", "bi", "hij"), ("bchw,jchw->bj", "bchw", "jchw"),
        ])
    )  # fmt: skip
    sizes = {label: draw(size) for label in sorted({*of_x, *of_weight})}
    x, weight = (tuple(sizes[label] for label in labels) for labels in (of_x, of_weight))
    sides, arrow, output = equation.partition("->")
    if draw(st.booleans()):
        left, right = sides.split(",")
        return Form(torch.einsum, ("", "", ""), (f"{right},{left}{arrow}{output}", WEIGHT, Data(x)), weight)
    return Form(torch.einsum, ("", "", ""), (equation, Data(x), WEIGHT), weight)


@st.composite
def conv(draw: Any) -> Form:
    dims, groups, transposed = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.booleans())
    kernel = draw(st.integers(1, 3))
    wide = (2 * groups, draw(st.integers(1, 2)))
    channels = (wide[0], wide[1] * groups)  # of the weight's first dimension, and of the other side
    weight = (wide[0], wide[1], *(kernel,) * dims)
    x = Data((channels[0] if transposed else channels[1], *(7,) * dims))  # so long that some output touches no padding
    dilation = draw(st.integers(1, 2))
    if transposed:
        options = {"stride": 1, "padding": draw(st.integers(0, 1)), "groups": groups, "dilation": dilation}
        function = getattr(F, f"conv_transpose{dims}d")
    else:
        padding = draw(st.sampled_from([0, 1, "same", "valid"]))
        stride = 1 if padding == "same" else draw(st.integers(1, 2))
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        function = getattr(F, f"conv{dims}d")
    return Form(partial_by_name(function, options), ("input", "weight"), (x, WEIGHT), weight)


def partial_by_name(function: Any, options: dict[str, Any]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs, **options)

    return call


FORMS = {
    "linear": linear(), "bilinear": bilinear(), "matmul": matmul(), "mm": mm(), "addmm": addmm(), "einsum": einsum(),
    "conv": conv(), "baddbmm": baddbmm(), "mv": mv(), "inner": inner(), "tensordot": tensordot(),
}  # fmt: skip

# how a weight of the shape that the function takes may be stored: (its shape there, the view)
VIEWS: dict[str, Callable[[Shape], tuple[Shape, Callable[[Any], Any]]]] = {
    "as it is": lambda shape: (shape, lambda w: w),
    "transposed": lambda shape: ((*shape[:-2], shape[-1], shape[-2]), lambda w: w.transpose(-1, -2)),
    "by name": lambda shape: ((shape[1], shape[0], *shape[2:]), lambda w: torch.transpose(input=w, dim0=0, dim1=1)),
    "as an attribute": lambda shape: ((*shape[:-2], shape[-1], shape[-2]), lambda w: w.mT),
    "flat": lambda shape: ((torch.Size(shape).numel() // 2, 2), lambda w: w.reshape(shape)),
    "viewed": lambda shape: ((1, shape[0] * shape[1], *shape[2:]), lambda w: w.view(*shape)),
    "one of many": lambda shape: ((2, *shape), lambda w: w[1]),
    "a part": lambda shape: ((shape[0], shape[1] + 1, *shape[2:]), lambda w: w[:, :-1]),
    "a chunk": lambda shape: ((2 * shape[0], *shape[1:]), lambda w: w.chunk(2)[0]),
    "one of two": lambda shape: ((2 * shape[0], *shape[1:]), lambda w: torch.split(w, shape[0], dim=0)[1]),
    "unsqueezed": lambda shape: ((1, *shape), lambda w: w.squeeze(0)),
    "permuted": lambda shape: (shape[::-1], lambda w: w.permute(*reversed(range(len(shape))))),
    "cast": lambda shape: (shape, lambda w: w.to(torch.float64).contiguous()),
    "times a number": lambda shape: (shape, lambda w: w * 0.5),
}


def nets(name: str, views: Sequence[str]) -> Any:
    """Nets of one function, in every spelling."""

    def made(form: Form, view: str, by_name: int) -> Net:
        even = torch.Size(form.weight).numel() % 2 == 0
        stored, viewed = VIEWS[view if even or view != "flat" else "as it is"](form.weight)
        most = 0 if form.names[-1] == "" or form.function is operator.matmul else len(form.names)
        first = form.function.__qualname__.startswith("method")  # which is given by place
        return Net(form, min(by_name, most - first), stored, viewed)

    return st.builds(made, FORMS[name], st.sampled_from(views), st.integers(0, 3))


@pytest.mark.parametrize("name", FORMS)
def test_fan_in_is_the_number_of_weights_that_one_output_sums(name: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(nets(name, list(VIEWS)))
    def check(net: Net) -> None:
        found = uses(net)
        assert found.failure == ""
        assert found.multiplied == {id(net.matrix): counted(net)}, found

    check()


@pytest.mark.parametrize("name", FORMS)
def test_a_graph_finds_the_same(name: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(nets(name, [view for view in VIEWS if view != "times a number"]))
    def check(net: Net) -> None:
        found = find(fx.symbolic_trace(net))
        assert [call.fan_in for call in found.calls] == [counted(net)], found

    check()


def test_a_graph_that_spells_arguments_by_name_converts() -> None:
    """Its steps are run again, and rewritten for noise."""

    class Spelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(2, 4))
            self.bias = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.addmm(input=self.bias, mat1=x, mat2=self.first)
            x = torch.matmul(input=x, other=torch.transpose(input=self.second, dim0=0, dim1=1))
            return torch.mm(x, mat2=self.second)

    plain, x = Spelled(), torch.randn(5, 3)
    graph = fx.symbolic_trace(plain)
    for model in (plain, graph):
        made: Any = bayesify.convert(model, "flipout")
        assert not torch.equal(made(x), made(x))
        with bayesify.posterior_mean(made):
            assert torch.equal(made(x), plain(x))


@pytest.mark.parametrize("name", sorted(set(NAMES.values())))
def test_names_and_functions_go_both_ways(name: str) -> None:
    assert NAMES[FUNCTIONS[name]] == name


def test_a_spelling_that_no_reader_knows_is_not_a_product() -> None:
    x, w = torch.randn(2, 3), torch.randn(3, 4)
    row = MULTIPLICATIONS[torch.mm]
    assert row.use(w, (x, w), {"out": None}) is None
    assert role(torch.mm, (x, w), {"out": None}, w) is Role.OTHER
    assert role(torch.mm, (x,), {"mat2": w}, w) is Role.FACTOR
    assert role(torch.addmm, (w, x, x), {}, w) is Role.ADDED
    assert role(F.linear, (x, x, w), {}, w) is Role.ADDED
    assert role(torch.einsum, ("ii,ij->j", x, w), {}, w) is Role.OTHER
    assert role(torch.einsum, ("bi,ij->bj", [x, w]), {}, w) is Role.FACTOR
