"""A forward whose products with a posterior's weight are answered by the estimator: a torch function mode.

A torch function that multiplies by such a weight gives the noisy product; views and casts of the weight are followed;
any other use of it is an error, since it would bypass the noise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode, resolve_name

from ..errors import BypassError
from ..estimators.noise import exported
from ..estimators.products import EinsumProduct, GroupedProduct, LinearProduct
from .base import Variational
from .held_draws import Spread, mapped
from .product_readers import Use
from .recomputation import Region, refuse_other_noise, region, region_with_reentry
from .switches import draws_of_forward, set_draws_of_forward
from .torch_functions import BODIES, MULTIPLICATIONS, Role, role


def rerouted_products(layers: list[Variational], inputs: Any, kwargs: Any, forward: Callable[..., Any]) -> Any:
    """The forward, its products rerouted, and a draw in the place of each weight that it computes with."""
    before = draws_of_forward()
    around = [layer for layer, _ in before]  # drawn by a module around this one
    free = [layer for layer in layers if layer._settings.drawn and all(layer is not drawn for drawn in around)]
    for layer in free:
        layer._reached = True
    # as a Parameter has: a forward may take its own gradients under no_grad. A program would not load with the switch
    with nullcontext() if exported() else torch.enable_grad():
        draws = tuple((layer, {name: layer._sampled(name) for name in layer._settings.drawn}) for layer in free)
    set_draws_of_forward((*before, *draws))
    try:
        with _Reroute(layers, inputs, kwargs):
            return forward(*inputs, **kwargs)
    finally:
        set_draws_of_forward(before)


class _Known(NamedTuple):
    """A weight, or a view of one, with its std (or its held draws) and the layer that it belongs to.

    `anew` computes the spread again, in a graph of its own.
    """

    mean: Tensor
    spread: Spread
    layer: Variational
    anew: Callable[[], Spread]

    def of(self, mean: Tensor) -> _Known:
        """The same for a copy of the mean, its spread in a graph of its own."""
        return _Known(mean, self.anew(), self.layer, self.anew)


class _Reroute(TorchFunctionMode):
    def __init__(self, layers: list[Variational], inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.inputs = [value for value in (*inputs, *kwargs.values()) if isinstance(value, Tensor) and value.dim() > 1]
        self.dim: int | None = None  # of the examples, where what is computed says so, and not the layers' settings
        self.with_gradient = torch.is_grad_enabled()
        self.known: list[_Known] = []
        self.draws = [
            (layer._parameters[name], draw) for layer, draws in draws_of_forward() for name, draw in draws.items()
        ]
        for layer in layers:
            for name in (mean_name for mean_name in layer.means() if mean_name not in layer._settings.drawn):
                mean = layer._parameters[name]
                assert mean is not None
                if all(one.mean is not mean for one in self.known):
                    anew = partial(layer.spread_of, name)
                    self.known.append(_Known(mean, anew(), layer, anew))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not torch.compiler.is_compiling():
            self._outlive_forward()
        args, kwargs = self._with_draws(args), self._with_draws(kwargs or {})
        given = [self._find(value) for value in _flat([*args, *kwargs.values()])]
        known = [weight for weight in given if weight is not None]
        if not known or _by_compiled_code(func):
            return func(*args, **kwargs)
        weight, use = known[0].mean, None
        self._refuse_in_function(func, known[0])
        if func in BODIES:
            return self._inside(BODIES[func], *args, **kwargs)
        if func not in MULTIPLICATIONS:
            what = role(func, args, kwargs, weight)
            if what in (Role.FORM, Role.ROWS):  # of a tied weight, whose look-ups take its mean
                return func(*args, **kwargs)
            if what is Role.VIEW or (what is Role.SCALED and len(known) == 1):
                return self._follow(func, known[0], args, kwargs)
        elif len(known) == 1:
            use = MULTIPLICATIONS[func].use(weight, args, kwargs)
        if use is None:
            raise BypassError(
                f"a variational weight of {type(known[0].layer).__name__} is used in {resolve_name(func) or func}, "
                "which its noise would not pass through: keep this layer by `ignore` in the policy"
            )
        return self._estimate(use, known[0])

    def _outlive_forward(self) -> None:
        """Where checkpointing will compute again what runs now, have it do so with these products rerouted."""
        place = region()
        if place is None and self.with_gradient and not torch.is_grad_enabled():
            with_reentry = region_with_reentry(rerouted_products.__code__)
            place = with_reentry if isinstance(with_reentry, Region) else None
        if place is not None:
            place.wrap(self, partial(self._again, place, draws_of_forward()))

    def _again(self, place: Region, draws: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """What checkpointing calls in the function's place."""

        def again(*args: Any) -> Any:
            before, known = draws_of_forward(), self.known
            set_draws_of_forward(draws)
            self.known = [*known]
            if place.given:  # a backward pass of its own: graphs of the first computation are not its
                self.known = [one.of(one.mean) for one in known] + self._copies(place.given, args)
            try:
                with self:
                    return function(*args)
            finally:
                self.known = known
                set_draws_of_forward(before)

        return again

    def _copies(self, given: tuple[Any, ...], copies: tuple[Any, ...]) -> list[_Known]:
        pairs = [(self._find(value), copy) for value, copy in zip(given, copies, strict=True)]
        return [one.of(copy) for one, copy in pairs if one is not None]

    def _refuse_in_function(self, func: Any, known: _Known) -> None:
        """An autograd.Function of the user's multiplies by the weight: its backward knows nothing of the noise."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not self.with_gradient:
            return
        function = region_with_reentry(rerouted_products.__code__)
        if isinstance(function, str):
            raise BypassError(
                f"a variational weight of {type(known.layer).__name__} is used in {resolve_name(func) or func} inside "
                f"the autograd.Function {function}, which gives its scale no gradient: keep this layer by `ignore` in "
                "the policy"
            )

    def _inside(self, body: Callable[..., Any], query: Tensor, *args: Any, **kwargs: Any) -> Any:
        """torch's attention, whose examples are along dimension 1, and along 0 in turns where it folds them there."""
        before = self.inputs, self.dim
        self.inputs, self.dim = [query if query.dim() > 2 else query.unsqueeze(1)], 1
        try:
            with self:
                return body(query, *args, **kwargs)
        finally:
            self.inputs, self.dim = before

    def _with_draws(self, given: Any) -> Any:
        """Code that reaches a Parameter by another way than its module's attribute computes with the draw, too."""
        if not self.draws:
            return given
        if isinstance(given, dict):
            return {name: self._with_draws(value) for name, value in given.items()}
        if type(given) in (list, tuple):
            return type(given)(self._with_draws(value) for value in given)
        return next((draw for mean, draw in self.draws if mean is given), given)

    def _find(self, tensor: Any) -> _Known | None:
        return next((one for one in self.known if one.mean is tensor), None)

    def _follow(self, func: Callable[..., Any], known: _Known, args: Any, kwargs: Any) -> Any:
        def followed(tensor: Tensor) -> list[Tensor]:
            named = {name: tensor if value is known.mean else value for name, value in kwargs.items()}
            views = func(*(tensor if value is known.mean else value for value in args), **named)
            return [views] if isinstance(views, Tensor) else list(views)

        mean = func(*args, **kwargs)
        means = [mean] if isinstance(mean, Tensor) else list(mean)
        spread: Any = known.spread
        spreads: Any = zip(*map(followed, spread), strict=True) if isinstance(spread, tuple) else followed(spread)

        def anew(at: int) -> Spread:
            return mapped(known.anew(), lambda spread: followed(spread)[at])  # type: ignore[no-any-return]

        for at, (view, its) in enumerate(zip(means, spreads, strict=True)):
            if view is not known.mean:
                self.known.append(_Known(view, its, known.layer, partial(anew, at)))
        return mean

    def _estimate(self, use: Use, known: _Known) -> Tensor:
        layer = known.layer
        if not isinstance(known.spread, tuple) and not torch.compiler.is_compiling():
            refuse_other_noise(layer)
        told = layer._settings.rows > 0 or layer.examples_lead
        layer._reached = True
        x, dim = use.inputs[0], layer._settings.batch_dim if told or self.dim is None else self.dim
        # rows of a matrix of one example each, and windows, are examples folded with other dimensions
        folds = isinstance(use.product, LinearProduct) and not told and self._folds(x, dim)
        if folds:
            sizes = (-1, self._examples(dim)) if dim else (self._examples(dim), -1)
            use.inputs[0] = x.reshape(*sizes, *x.shape[1:])
        matrix = isinstance(use.product, LinearProduct) and x.dim() == 2 and not folds
        y = layer.multiply(
            use.product, use.inputs, use.oriented(known.mean), mapped(known.spread, use.oriented), use.bias, None,
            batch_dim=0 if not told and (matrix or isinstance(use.product, EinsumProduct | GroupedProduct)) else dim,
        )  # fmt: skip
        y = y.flatten(0, 1) if folds else y
        return y if use.added is None else y + use.added.to(y.dtype)  # as autocast does

    def _examples(self, dim: int) -> int:
        """How many examples the module was called with."""
        return self.inputs[0].shape[dim] if self.inputs and self.inputs[0].dim() > dim >= 0 else 0

    def _folds(self, x: Tensor, dim: int) -> bool:
        examples = self._examples(dim)
        return (dim == 0 or x.dim() == 2) and 0 < examples < x.shape[0] and x.shape[0] % examples == 0


def _by_compiled_code(func: Any) -> bool:
    """Whether a graph calls it that was compiled under this mode, after a graph break, and so holds the noise."""
    if torch.compiler.is_compiling():
        return False
    if isinstance(func, OpOverload):
        return True
    # the mode is on while the graph runs, `is_compiling` is False by then, and torch marks neither graph nor call:
    # only the frame tells who called
    caller = sys._getframe(2)
    return caller.f_code.co_filename.startswith("<eval_with_key>") or "extern_kernels" in caller.f_globals


def _flat(values: list[Any]) -> list[Any]:
    return [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
