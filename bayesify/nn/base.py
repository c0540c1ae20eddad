"""What all variational layers are: a plain layer, its weight now the posterior mean, and noise around it.

    class FlipoutLinear(Flipout, LinearFamily, nn.Linear): ...

`Flipout` and `LRT` are the estimators, a family says what product the layer computes, the plain class does the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter, UninitializedParameter

from ..errors import NoPosteriorError, did_you_mean
from ..estimators import noise
from ..estimators.eager import recorded
from ..estimators.flipout import flipout
from ..estimators.precision import widened
from ..estimators.products import Product
from ..estimators.std_forms import SoftplusStd
from .basis import drop_basis, has_basis, multiply_in_basis, start_along, turned
from .examples_alone import lrt_has_its_law, lrt_of_rows, lrt_parted, parted, parted_mean
from .folded_batches import fold_of
from .held_draws import Spread, held_draws, held_product, only_draw
from .hidden_scales import HidesScales
from .hooks import mark_reached
from .late_std import late_spread_of, own_or_computed
from .layer_kinds import bias_names, weight_names
from .leaf_module import LeafModule
from .parametrized_weights import as_stored, mask, value
from .posterior_kl import kl_part_of, normal_prior_of, summed
from .posterior_tensors import added_names, keeping_wide, posterior_tensors, save_added
from .replaced_means import RemembersMeans, forget_replaced, forget_unset, refuse_resized
from .settings import Method, Settings
from .signatures import keep_signatures
from .small_layers import small_output
from .starts import KEPT_AS as STARTS
from .starts import remember_start
from .switches import draws_of_forward, in_backward, is_quiet, unrouted, way_of


class Variational(HidesScales, RemembersMeans, LeafModule):
    """A layer with a posterior q(w) = Normal(weight, weight_std²) over its weight, and its bias if settings say so.

    Args:
        settings: keyword only; all other arguments are the plain layer's.

    Attributes:
        weight, bias: the posterior means (or the bias itself), under the plain layer's names.
        weight_rho or weight_log_alpha: the scale parameter, by parameterization; likewise for a variational bias.
        weight_prior_mean, weight_prior_std: buffers, where the prior cannot be computed from less.
        weight_basis: a buffer under `basis: inputs` and after `fit_std`, see `basis.py`.
    """

    method: Method
    examples_lead = False  # whether the forward hands its products inputs with the examples first
    _settings: Settings
    _reached: bool

    def __init__(self, *args: Any, settings: Settings | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = (settings or Settings()).for_depth(1)
        self.add_posterior(settings, posterior_tensors(self, settings))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keep_signatures(cls)

    weight: Any
    bias: Any
    product: Any  # a family's: the inputs as (product, the inputs that it takes)
    small: Any = None  # a class's own, for small layers: (x, mean, rho, bias) as the output, or None
    estimate: Any  # an estimator's: the product with noise, for (mean, std, bias, bias_std)

    def forward(self, *inputs: Any, return_kl: bool = False, **kwargs: Any) -> Any:
        """The plain layer's forward, with noise. With `return_kl`, (output, KL of this layer in nats)."""
        mark_reached(self)  # though it is called as `layer.forward(x)`, past its hooks
        output = None if self.small is None or kwargs else small_output(self, inputs)
        if output is None and is_quiet(self):
            output = parted_mean(self, inputs, super().forward(*inputs, **kwargs))
        elif output is None:
            product, taken = self.product(*inputs, **kwargs)
            mean, bias = own_or_computed(self, "weight"), own_or_computed(self, "bias")  # reading may compute it
            bias_spread = None if self.scale_of("bias") is None else self.spread_of("bias", bias)
            posterior = mean, late_spread_of(self, "weight", mean), bias, bias_spread
            output = self.multiply(product, taken, *posterior, batch_dim=self._settings.batch_dim)
        return (output, self.kl_divergence()) if return_kl else output

    def __getattr__(self, name: str) -> Any:
        """Where a forward computes with one draw of a weight, code that reads the weight is given the draw.

        Raises:
            BypassError: an autograd.Function's backward computes with the weight again, and would not have the draw.
        """
        for layer, draws in draws_of_forward():
            if layer is self and name in draws:
                return draws[name]
        again = name in self._parameters and not torch.compiler.is_compiling() and in_backward()
        if again and "_settings" in self.__dict__ and self.scale_of(name) is not None:
            way_of(self)  # raises where it is the user's code that computes with it again
        return super().__getattr__(name)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As torch moves or casts a module, except that scales stay at least float32 (see `Posterior.start`)."""
        if "_settings" not in self.__dict__:
            return super()._apply(fn, recurse)
        scales = [scale for scale in map(self.scale_of, self.means()) if scale is not None]
        return super()._apply(keeping_wide(scales, fn), recurse)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with unrouted():  # the mean, from inside a forward that computes with a draw too
            super()._save_to_state_dict(*args, **kwargs)
            save_added(self, *args, **kwargs)

    @property
    def weight_std(self) -> Tensor:
        """The posterior's std, of `weight`'s shape; differentiable in the scale parameter."""
        return self.std_of("weight")

    @property
    def bias_std(self) -> Tensor | None:
        """The bias's posterior std, or None where the bias is deterministic or absent."""
        return None if self.scale_of("bias") is None else self.std_of("bias")

    def means(self) -> list[str]:
        """The names of what has a posterior: the layer's weight matrices, and its biases where they are variational."""
        names = (*weight_names(self), *bias_names(self))
        return [name for name in names if self.scale_of(name) is not None]

    def mean_of(self, name: str) -> Tensor:
        """The posterior's mean of `weight` or `bias`: the Parameter, or what the layer computes, as by weight norm."""
        mean = value(self, name)
        assert mean is not None
        return mean

    def scale_of(self, name: str) -> Parameter | None:
        """The scale parameter of `weight` or `bias`, or None where that has no posterior."""
        return self._parameters.get(f"{name}_{self._settings.posterior.scale_name}")

    def std_of(self, name: str, mean: Tensor | None = None) -> Tensor:
        """The posterior's std of `weight` or `bias`, as `means` names them; `mean` is its value, where that is at hand.

        Raises:
            NoPosteriorError: the layer has no posterior of that name.
            ShapeError: the mean was resized after conversion, so that its scale no longer fits.
            StalePosteriorError: the mean was replaced after conversion by one of other values.
        """
        self.refuse_replaced_means()
        mean, scale = value(self, name) if mean is None else mean, self.scale_of(name)
        if mean is None or scale is None:
            near = did_you_mean(name, self.means())
            raise NoPosteriorError(
                f"{type(self).__name__} has no posterior over {name!r}, but over {self.means()}.{near}"
            )
        if not recorded():
            refuse_resized(name, mean, scale)
        with unrouted():
            std, left = self._settings.posterior.std(mean, scale).to(mean.dtype), mask(self, name)
            return std if left is None else std * left

    def spread_of(self, name: str, mean: Tensor | None = None) -> Spread:
        """The std, as `std_of`; where draws are held, each draw's deviation from the mean."""
        held, std = held_draws(self), self.std_of(name, mean)
        if held is None:
            return std
        with unrouted():
            return tuple(turned(self, name, deviation) for deviation in held.deviations(name, std))

    def multiply(
        self, product: Product, inputs: list[Tensor], mean: Tensor, spread: Spread | SoftplusStd, bias: Tensor | None,
        bias_spread: Spread | None, *, batch_dim: int,
    ) -> Tensor:  # fmt: skip
        """The product by the layer's estimator; where draws are held, with them."""
        posterior: Any = mean, spread, bias, bias_spread
        if not isinstance(spread, tuple) and has_basis(self, "weight"):
            return multiply_in_basis(self, product, inputs, *posterior, batch_dim=batch_dim)
        if not isinstance(spread, tuple):
            return self.estimate(product, inputs, *posterior, batch_dim=batch_dim)  # type: ignore[no-any-return]
        with unrouted():
            return held_product(self, product, inputs, *posterior, batch_dim=batch_dim)

    def kl_divergence(self) -> Tensor:
        """KL(q‖p) of this layer alone in nats: a 0-dim tensor in float32 or better, summed over weight and bias.

        Raises:
            UninitializedLayerError: the layer is lazy and has not seen data, or is on the meta device.
            ShapeError, StalePosteriorError: see `std_of`.
        """
        return summed([kl_part_of(self, name) for name in self.means()])

    def normal_prior(self, name: str) -> tuple[Tensor | float, Tensor | float]:
        """Mean and std of the normal prior over `weight` or `bias`: floats where they are the same for all elements."""
        return normal_prior_of(self, name)

    def counted(self, name: str, tensor: Tensor) -> Tensor:
        """Those elements of the mean, or of what goes with it, that have a posterior: all that are not pruned."""
        left = mask(self, name)
        return tensor if left is None else tensor[left.bool()]

    def add_posterior(self, settings: Settings, tensors: dict[str, Tensor]) -> None:
        """Give the plain layer its settings, scale parameters, prior buffers and the ledger's hook."""
        self._settings, self._reached = settings, False
        for name, tensor in tensors.items():
            if isinstance(tensor, Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)
        self.register_forward_hook(mark_reached)

    def remove_posterior(self) -> None:
        """Take back all that `add_posterior` gave."""
        for name in added_names(self):
            self._parameters.pop(name, None)
            self._buffers.pop(name, None)
        for key in [key for key, hook in self._forward_hooks.items() if hook is mark_reached]:
            del self._forward_hooks[key]
        for name in ("_settings", "_reached", "_replaced_means", STARTS):
            vars(self).pop(name, None)

    def reset_parameters(self) -> None:
        """Initialize the means as the plain layer does, and the posterior around them."""
        super().reset_parameters()  # type: ignore[misc]
        lazy = any(isinstance(parameter, UninitializedParameter) for parameter in self._parameters.values())
        if "_settings" in self.__dict__ and not lazy:
            self.reset_posterior()

    def reset_posterior(self) -> None:
        """Put the scales and the prior's buffers where they start, given the means as they are now."""
        forget_replaced(self)
        basis = self._buffers.get("weight_basis") if self._settings.posterior.basis == "inputs" else None
        drop_basis(self)
        for name, start in posterior_tensors(self, self._settings).items():
            present = getattr(self, name)
            if present.is_meta == start.is_meta and present.shape == start.shape:
                present.data.copy_(start.data)
            else:
                setattr(self, name, start)
        if basis is not None:
            start_along(self, "weight", basis)
        remember_start(self)

    @torch.no_grad()
    def set_std(self, name: str, std: float | Tensor) -> None:
        """Give the elements of `weight` or `bias` this posterior std: one number, or a tensor of their shape."""
        mean, scale = self.mean_of(name), self.scale_of(name)
        assert scale is not None
        wide = widened(mean)
        stds = torch.as_tensor(std, dtype=wide.dtype, device=wide.device).expand_as(wide)
        scale.copy_(self._settings.posterior.scale_of(stds, wide))
        forget_unset(self, name)

    @torch.no_grad()
    def draw(self, name: str) -> Tensor:
        """One draw of `weight` or `bias` from its posterior."""
        return self._sampled(name)

    def _sampled(self, name: str) -> Tensor:
        """One draw of `weight` or `bias`, with gradients to its posterior."""
        mean = self.mean_of(name)
        spread = self.spread_of(name, mean)
        fresh = None if isinstance(spread, tuple) else turned(self, name, spread * noise.normal_like(mean))
        return as_stored(self, name, mean + (only_draw(self, spread) if fresh is None else fresh))  # type: ignore

    def extra_repr(self) -> str:
        text = super().extra_repr()
        own = f"q=({self._settings.posterior}), p={self._settings.prior}" if "_settings" in self.__dict__ else ""
        return ", ".join(filter(None, (text, own)))


class Flipout(Variational):
    """The Flipout estimator (Wen et al. 2018): each example sees the marginal of one weight draw of its own."""

    method: Method = "flipout"

    def estimate(self, product: Product, inputs: list[Tensor], *posterior: Any, batch_dim: int) -> Tensor:
        """The product with noise, for the posterior's (mean, std, bias, bias_std)."""
        signs, x, fold = self._settings.signs, inputs[0], None
        if lrt_has_its_law(self._settings, product, x, batch_dim):
            with unrouted():
                return lrt_of_rows(self, product, inputs, *posterior)
        inputs = parted(self, inputs)
        if self._settings.rows > 1 and signs == "example":
            dims = product.sign_dims(0, x.dim(), batch_dim) - product.sign_dims(0, x.dim(), -1)
            fold = fold_of(self, x.shape[dims.pop()]) if dims else None
        options: Any = {"signs": signs, "batch_dim": batch_dim, "fold": fold}
        with unrouted():
            return flipout(product, inputs, *posterior, noise_dtype=self._settings.posterior.narrow_dtype, **options)


class LRT(Variational):
    """The local reparameterization estimator (Kingma et al. 2015): noise per pre-activation."""

    method: Method = "lrt"

    def estimate(self, product: Product, inputs: list[Tensor], *posterior: Any, batch_dim: int) -> Tensor:
        """The product with noise, for the posterior's (mean, std, bias, bias_std)."""
        with unrouted():
            return lrt_parted(self, product, inputs, *posterior)
