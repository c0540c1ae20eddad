"""A module of a program, without code of its own: its Parameters, and what the program's graph multiplies by them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ..nn.base import Variational
from ..nn.layer_kinds import LayerKind, describe
from ..nn.parametrized_weights import kind_before
from ..nn.registry import enter
from ..nn.rerouting import FlipoutRerouted, LRTRerouted
from ..nn.switches import is_quiet
from ..nn.torch_functions import FUNCTIONS

ROOT = "root_products"  # the part of what the root of a program multiplies by itself; a state_dict does not show it
LEADING, TRAILING = -1, -2  # layouts of a first dimension that is (examples, others), or (others, examples)


@dataclass(frozen=True)
class Ref:
    """An argument of a step: one of the part's Parameters, an input of the call, or the result of an earlier step."""

    kind: Literal["weight", "input", "step"]
    key: str | int


@dataclass(frozen=True)
class Step:
    """A call of one of torch's functions, by the name that `torch_functions.FUNCTIONS` has for it."""

    function: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()


class Holder(nn.Module):
    """Holds Parameters of a program, or buffers, under the names that they had; the program's graph reads them.

    Args:
        kind: the dotted class of the module that it was, as far as that is known.

    Attributes:
        exported_problems: name -> why a matrix here must stay as it is.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.exported_kind = kind
        self.exported_problems: dict[str, str] = {}

    def extra_repr(self) -> str:
        return self.exported_kind.rpartition(".")[2]


class Part(Holder):
    """A holder of Parameters that the program multiplies by: the graph calls it for each product.

    Attributes:
        uses: each product: the views of the weight that it takes, then the product.
        noisy_uses: the same, as the estimators take them.
        weights: (name, fan-in) of the Parameters that are only multiplied by, or looked up in.
        layouts: where each product's input has the program's examples: along a dimension, or folded into its rows.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.uses: tuple[tuple[Step, ...], ...] = ()
        self.noisy_uses: tuple[tuple[Step, ...], ...] = ()
        self.weights: tuple[tuple[str, int], ...] = ()
        self.layouts: tuple[int, ...] = ()

    def forward(self, which: int, examples: int | None, *inputs: Tensor) -> Any:
        """The product number `which`; `examples` is the batch's size, where the first input has it folded into rows."""
        quiet = not isinstance(self, Variational) or is_quiet(self)
        *views, product = (self.uses if quiet else self.noisy_uses)[which]
        results: list[Any] = []
        for step in views:
            results.append(self._run(step, inputs, results))
        layout = self.layouts[which]
        if layout == 0 or quiet:
            return self._run(product, inputs, results)
        x = inputs[0]
        first = _examples_first(x, layout, examples or 1)
        y = _as_before(self._run(_for_any_rank(product), (first, *inputs[1:]), results), layout)
        return y if product.function != "addmm" else y + self._resolved(product.args[0], inputs, results)

    def _run(self, step: Step, inputs: tuple[Tensor, ...], results: list[Any]) -> Any:
        args = [self._resolved(given, inputs, results) for given in step.args]
        kwargs = {name: self._resolved(given, inputs, results) for name, given in step.kwargs}
        return FUNCTIONS[step.function](*args, **kwargs)

    def _resolved(self, given: Any, inputs: tuple[Tensor, ...], results: list[Any]) -> Any:
        if isinstance(given, list | tuple):
            return type(given)(self._resolved(part, inputs, results) for part in given)
        if not isinstance(given, Ref):
            return given
        if given.kind == "weight":
            return self._parameters[str(given.key)]
        return inputs[int(given.key)] if given.kind == "input" else results[int(given.key)]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}: {', '.join(use[-1].function for use in self.uses)}"


def _examples_first(x: Tensor, layout: int, examples: int) -> Tensor:
    if layout > 0:
        return x.movedim(layout, 0)
    within = x.shape[1:]
    return x.reshape(examples, -1, *within) if layout == LEADING else x.reshape(-1, examples, *within).movedim(1, 0)


def _as_before(y: Tensor, layout: int) -> Tensor:
    if layout > 0:
        return y.movedim(0, layout).contiguous()  # as the plain product is: the program may view it
    return (y if layout == LEADING else y.movedim(0, 1)).flatten(0, 1)


def _for_any_rank(product: Step) -> Step:
    """torch.addmm and torch.mm take matrices only; with noise the examples have a dimension of their own."""
    if product.function == "addmm":  # its bias is added in the end
        return Step("matmul", product.args[1:])
    return Step("matmul", product.args, product.kwargs) if product.function == "mm" else product


def noisy(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The same product, of the weight itself: spread over the rows of a batch, it would be drawn anew for each."""
    *views, product = steps
    source: dict[Any, Any] = {}  # steps, in the new ones
    spread: set[Any] = set()
    kept: list[Step] = []
    for at, step in enumerate(views):
        this, of = Ref("step", at), step.args[0]
        if step.function == "expand" or of in spread:
            spread.add(this)
            source[this] = source.get(of, of)
        else:
            kept.append(_with(Step("contiguous", (of,)) if step.function == "clone" else step, source))
            source[this] = Ref("step", len(kept) - 1)
    if spread and product.function == "bmm":
        product = Step("matmul", product.args)
    if product.function == "_trilinear":
        x1, weight, x2, *_ = product.args
        product = Step("bilinear", (x1, x2, weight))
    return (*kept, _with(product, source))


def _with(step: Step, source: dict[Any, Any]) -> Step:
    def replaced(given: Any) -> Any:
        if isinstance(given, tuple):
            return tuple(replaced(part) for part in given)
        return source.get(given, given) if isinstance(given, Ref) else given

    return Step(step.function, replaced(step.args), tuple((name, replaced(part)) for name, part in step.kwargs))


def shown(name: str) -> str:
    """What a state_dict calls the Parameter of this dotted name."""
    return ".".join(part for part in name.split(".") if part != ROOT)


def kind_of(module: nn.Module) -> type:
    """The module's class; of a program's module, the class that it was exported from, or a stand-in of that name."""
    kind = vars(module).get("exported_kind")
    return _stand_in(kind) if isinstance(kind, str) and kind else kind_before(module)


@functools.cache
def _stand_in(kind: str) -> type:
    module, _, name = kind.rpartition(".")
    cls = getattr(nn, name, None)
    if isinstance(cls, type) and cls.__module__ == module:
        return cls
    return type(name, (nn.Module,), {"__module__": module, "__qualname__": name})


class FlipoutPart(FlipoutRerouted, Part):
    """A part of a program under Flipout."""

    examples_lead = True


class LRTPart(LRTRerouted, Part):
    """A part of a program under local reparameterization."""

    examples_lead = True


describe(
    Part,
    LayerKind(
        weights=lambda part: list(dict(part.weights)),
        biases=lambda part: (),  # its products take biases as they are
        fan_in=lambda part, name: int(dict(part.weights)[name]),
        example_dims=lambda part, x: None,
    ),
)
enter(Part, {"flipout": FlipoutPart, "lrt": LRTPart})
