"""Modules that multiply by weights in torch functions themselves: the products are rerouted to the estimator.

The module's own forward runs as it is, under the mode of `product_rerouting`.
In place of a weight that the forward first computes another from, it finds one draw.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from .base import LRT, Flipout, Variational
from .hidden_scales import HidesScales
from .hooks import mark_reached
from .leaf_module import LeafModule
from .product_rerouting import rerouted_products
from .signatures import fx_root_refused, keep_signatures
from .switches import hide_scales, is_quiet, show_scales


class Rerouting(HidesScales, LeafModule):
    """Stands before the class of a module whose forward multiplies by its children's weights; `_reads` names them.

    `_uncompiled`: its forward takes a view of a weight as an attribute (`.T`), which Dynamo would hide from the mode.
    """

    _reads: tuple[str, ...] = ()
    _uncompiled = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keep_signatures(cls)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The module's own forward, its products with weights that have a posterior answered by the estimator."""
        if isinstance(inputs, fx.Proxy):
            raise fx_root_refused(f"a {type(self).__name__}")
        layers = [layer for layer in self._rerouted() if not is_quiet(layer)]
        return self._plain_forward(layers, super().forward, inputs, kwargs)

    def _plain_forward(self, layers: list[Variational], forward: Callable[..., Any], inputs: Any, kwargs: Any) -> Any:
        """The forward, rerouted for these layers, and with Parameters as in the plain model."""
        hide_scales()
        try:
            if layers:
                return rerouted_products(layers, inputs, kwargs, self._eager(forward))
            return forward(*inputs, **kwargs)
        finally:
            show_scales()

    def _eager(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The forward, which Dynamo leaves alone if it must."""
        if not self._uncompiled or "torch._dynamo" not in sys.modules:
            return forward
        why = "Dynamo would lose the noise of a weight that is viewed as an attribute: .t() instead of .T compiles"
        disabled: Callable[..., Any] = torch.compiler.disable(forward, reason=why)  # type: ignore[no-untyped-call]
        return disabled

    def _rerouted(self) -> Iterator[Variational]:
        """The layers whose weights it multiplies by."""
        modules = (self.get_submodule(path) for path in self._reads)
        return (module for module in modules if isinstance(module, Variational))


class ReroutingEncoder(Rerouting):
    """Stands before nn.TransformerEncoder: nested tensors, which layers with noise do not take, at the mean only."""

    @property
    def use_nested_tensor(self) -> bool:
        """What the encoder was made with, as long as no layer in it has noise."""
        layers = (layer for layer in self.modules() if isinstance(layer, Variational))
        return bool(vars(self)["use_nested_tensor"]) and all(is_quiet(layer) for layer in layers)

    @use_nested_tensor.setter
    def use_nested_tensor(self, value: bool) -> None:
        vars(self)["use_nested_tensor"] = value


class Rerouted(Rerouting, Variational):
    """Stands before a layer class that multiplies by its own Parameters in its forward; settings name them."""

    def forward(self, *inputs: Any, return_kl: bool = False, **kwargs: Any) -> Any:
        """The layer's own forward, its products answered by the estimator."""
        mark_reached(self)
        layers = [layer for layer in (self, *self._rerouted()) if not is_quiet(layer)]
        output = self._plain_forward(layers, super(Variational, self).forward, inputs, kwargs)
        return (output, self.kl_divergence()) if return_kl else output


class FlipoutRerouted(Rerouted, Flipout):
    """Reroutes to Flipout."""


class LRTRerouted(Rerouted, LRT):
    """Reroutes to local reparameterization."""
