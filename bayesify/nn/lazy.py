"""Lazy layers: variational before they have seen data, and of the right shapes after the first forward."""

from __future__ import annotations

from typing import Any

from torch.nn.parameter import UninitializedParameter, is_lazy

from .base import Variational
from .layer_kinds import bias_names, weight_names
from .posterior_tensors import posterior_tensors


class LazyVariational(Variational):
    """Stands before a lazy layer's classes: its posterior takes shape right after its means do."""

    def has_uninitialized_params(self) -> bool:
        """Whether a mean has no shape yet. A checkpoint may have given shape to the means and not to the scales."""
        names = (*weight_names(self), *bias_names(self))
        return any(isinstance(self._parameters.get(name), UninitializedParameter) for name in names)

    def initialize_parameters(self, *inputs: Any, return_kl: bool = False, **kwargs: Any) -> None:
        """Take the means' shapes from the input, as the plain lazy layer does, and start what still has none."""
        super().initialize_parameters(*inputs, **kwargs)  # type: ignore[misc]
        for name, start in posterior_tensors(self, self._settings).items():
            present = getattr(self, name)
            if is_lazy(present):
                present.materialize(start.shape)
                present.data.copy_(start.data)
