"""Layers that use their weights in torch functions themselves: the uses are rerouted to the estimator while they run.

The layer's own forward runs as it is. A torch function that multiplies by a weight with a posterior is answered by the
estimator; views and casts of the weight are followed; any other use of it is an error, since it would bypass the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from .multiplications import MULTIPLICATIONS, VIEWS, Use, harmless
from .variational import LRT, Flipout, Variational


class Rerouted(Variational):
    """Stands before a layer class that multiplies by its own Parameters in its forward; settings name them."""

    def forward(self, *inputs: Any, return_kl: bool = False, **kwargs: Any) -> Any:
        """The layer's own forward, its products answered by the estimator."""
        if self._quiet:
            output = super(Variational, self).forward(*inputs, **kwargs)
        else:
            with _Reroute(self, _examples(*inputs, *kwargs.values())):
                output = super(Variational, self).forward(*inputs, **kwargs)
        return (output, self.kl_divergence()) if return_kl else output


class FlipoutRerouted(Rerouted, Flipout):
    """Reroutes to Flipout."""


class LRTRerouted(Rerouted, LRT):
    """Reroutes to local reparameterization."""


class _Reroute(TorchFunctionMode):
    def __init__(self, layer: Rerouted, examples: int) -> None:
        super().__init__()
        self.layer, self.examples = layer, examples
        self.known = [(layer.get_parameter(name), layer.std_of(name)) for name in layer.means()]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [*args, *kwargs.values()]
        known = [each for each in _flat(given) if self._std(each) is not None]
        if not known or harmless(func):
            return func(*args, **kwargs)
        if func in VIEWS:
            return self._follow(func, args, kwargs)
        use = MULTIPLICATIONS[func](known[0], *args, **kwargs) if func in MULTIPLICATIONS and len(known) == 1 else None
        if use is None:
            raise RuntimeError(
                f"{type(self.layer).__name__} uses a variational weight in {resolve_name(func) or func}, "
                "which its noise would not pass through: keep this layer by `ignore` in the policy"
            )
        return self._estimate(use, known[0])

    def _std(self, tensor: Any) -> Tensor | None:
        return next((std for mean, std in self.known if mean is tensor), None)

    def _follow(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        mean = func(*args, **kwargs)
        std = func(*(each if self._std(each) is None else self._std(each) for each in args), **kwargs)
        pairs = [(mean, std)] if isinstance(mean, Tensor) else list(zip(mean, std, strict=True))
        self.known += pairs
        return mean

    def _estimate(self, use: Use, weight: Tensor) -> Tensor:
        std = self._std(weight)
        assert std is not None
        x = use.inputs[0]
        folded = x.dim() == 2 and 1 < self.examples < x.shape[0] and x.shape[0] % self.examples == 0
        inputs = [x.unflatten(0, (self.examples, -1)), *use.inputs[1:]] if folded and len(use.inputs) == 1 else use.inputs
        y = self.layer.estimate(
            use.product, inputs, use.oriented(weight), use.oriented(std), use.bias, None,
            batch_dim=self.layer._settings.batch_dim,
        )  # fmt: skip
        return y.flatten(0, 1) if inputs[0].dim() > x.dim() else y


def _flat(values: list[Any]) -> list[Any]:
    return [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]


def _examples(*inputs: Any) -> int:
    """How many examples the layer was called with: products may see them folded into rows with other dimensions."""
    sizes = [each.shape[0] for each in inputs if isinstance(each, Tensor) and each.dim() > 1]
    return sizes[0] if sizes else 0
