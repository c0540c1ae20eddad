"""nn.MultiheadAttention: its projections are variational, the attention between them stays torch's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..errors import ShapeError
from ..estimators.products import LinearProduct
from ..estimators.std_forms import SoftplusStd
from .base import LRT, Flipout, Variational
from .held_draws import Spread
from .hooks import mark_reached
from .late_std import late_spread_of
from .layer_kinds import LayerKind, batch_first_dims, describe, weight_names
from .linear import LinearFamily
from .posterior_tensors import posterior_tensors
from .settings import Settings
from .switches import is_quiet

__all__ = [
    "FlipoutMultiheadAttention",
    "LRTMultiheadAttention",
]


class FlipoutOutProjection(Flipout, LinearFamily, NonDynamicallyQuantizableLinear):
    """The `out_proj` of a FlipoutMultiheadAttention."""


class LRTOutProjection(LRT, LinearFamily, NonDynamicallyQuantizableLinear):
    """The `out_proj` of an LRTMultiheadAttention."""


class AttentionFamily(Variational):
    """Multi-head attention with packed or separate projections; its `out_proj` is a variational layer of its own."""

    out_class: ClassVar[type[Variational]]

    if TYPE_CHECKING:
        embed_dim: int
        num_heads: int
        dropout: float
        batch_first: bool
        add_zero_attn: bool
        in_proj_bias: Any
        bias_k: Tensor | None
        bias_v: Tensor | None
        out_proj: Any

    def __init__(self, *args: Any, settings: Settings | None = None, **kwargs: Any) -> None:
        super().__init__(*args, settings=settings, **kwargs)
        tensors = posterior_tensors(self.out_proj, self._settings)
        self.out_proj.__class__ = self.out_class
        self.out_proj.add_posterior(self._settings, tensors)

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False, return_kl: bool = False,
    ) -> Any:  # fmt: skip
        """nn.MultiheadAttention's forward, with noise in the projections; an example is an element of the batch.

        With `return_kl`, (output, KL in nats): of this layer and of its `out_proj`, which no one else calls.
        """
        masks: dict[str, Any] = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "is_causal": is_causal}
        wanted: dict[str, Any] = {"need_weights": need_weights, "average_attn_weights": average_attn_weights}
        mark_reached(self)
        if is_quiet(self):
            output = super().forward(query, key, value, **masks, **wanted)
        elif query.is_nested or key.is_nested or value.is_nested:
            output = self._attend_nested(query, key, value, **masks, **wanted)
        else:
            output = self._attend(query, key, value, **masks, **wanted)
        return (output, self._whole_kl()) if return_kl else output

    def reset_parameters(self) -> None:
        """Initialize the projections as a new nn.MultiheadAttention does, and the posterior around them."""
        self._reset_parameters()
        self.reset_posterior()

    def _whole_kl(self) -> Tensor:
        layers = [layer for layer in (self, self.out_proj) if isinstance(layer, Variational)]
        return torch.stack([layer.kl_divergence() for layer in layers]).sum()

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, key_padding_mask: Tensor | None, attn_mask: Tensor | None,
        is_causal: bool, need_weights: bool, average_attn_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        batched = F._mha_shape_check(  # type: ignore[attr-defined]
            query, key, value, key_padding_mask, attn_mask, self.num_heads
        )
        if is_causal and attn_mask is None:
            raise ShapeError("is_causal needs attn_mask: nn.Transformer.generate_square_subsequent_mask makes one")
        query, key, value = self._batch_first(batched, query, key, value)
        self._refuse_misfit(query, key, value)
        # as in torch, the hint stands for the mask where it can
        causal = is_causal and key_padding_mask is None and not need_weights
        bias = None if causal else self._score_bias(query, key, key_padding_mask, attn_mask)
        q, k, v = self._projected(query, key, value)
        heads, weights = self._attention(q, k, v, bias, causal, need_weights)
        output = self.out_proj(heads.transpose(1, 2).flatten(-2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1).contiguous(), weights

    def _attend_nested(
        self, query: Tensor, key: Tensor, value: Tensor, *, key_padding_mask: Tensor | None, attn_mask: Tensor | None,
        is_causal: bool, **wanted: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Padded, attended with the padding masked, and nested again."""
        alone = query is key and key is value and key_padding_mask is None and attn_mask is None
        if not alone or not self.batch_first or query.layout is not torch.strided:
            raise ShapeError(
                "a nested tensor must be strided, and query, key and value at once, with batch_first=True and no masks"
            )
        lengths = torch.tensor([sequence.shape[0] for sequence in query.unbind()], device=query.device)
        padded = query.to_padded_tensor(0.0)
        padding = torch.arange(padded.shape[1], device=padded.device) >= lengths.unsqueeze(1)
        output, weights = self._attend(
            padded, padded, padded, key_padding_mask=padding, attn_mask=None, is_causal=is_causal, **wanted
        )
        if weights is not None:  # torch's are zero where the query is padding
            weights = weights.masked_fill(padding.view(-1, *[1] * (weights.dim() - 3), padding.shape[1], 1), 0.0)
        return torch._nested_tensor_from_mask(output, ~padding, mask_check=False), weights

    def _batch_first(self, batched: bool, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Copies, once for each tensor: torch makes them too, and so may `x += attention(x, x, x)[0]` follow."""

        def copied(x: Tensor) -> Tensor:
            if not batched:
                return x.unsqueeze(0)
            return (x if self.batch_first else x.transpose(0, 1)).clone(memory_format=torch.contiguous_format)

        queries = copied(query)
        keys = queries if key is query else copied(key)
        return queries, keys, keys if value is key else queries if value is query else copied(value)

    def _refuse_misfit(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        if query.shape[-1] != self.embed_dim:
            raise ShapeError(f"query has {query.shape[-1]} features and should have {self.embed_dim}")
        if key.shape[:2] != value.shape[:2]:
            raise ShapeError(f"(batch, sequence) is {key.shape[:2]} of key and {value.shape[:2]} of value")
        if key.shape[0] != query.shape[0]:
            raise ShapeError(f"query has a batch of {query.shape[0]}, and key and value have one of {key.shape[0]}")

    def _score_bias(self, query: Tensor, key: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """The masks as what is added to the scores, (batch or 1, heads or 1, targets or 1, sources), or None."""
        (batch, targets, _), sources = query.shape, key.shape[1]
        other = F._none_or_dtype(mask)
        padding = F._canonical_mask(padding, "key_padding_mask", other, "attn_mask", query.dtype)
        mask = F._canonical_mask(mask, "attn_mask", None, "", query.dtype, False)
        if mask is not None:
            expected = (targets, sources) if mask.dim() == 2 else (batch * self.num_heads, targets, sources)
            if mask.shape != expected:
                raise ShapeError(f"the {mask.dim()}D attn_mask is {tuple(mask.shape)} and should be {expected}")
            mask = mask[None, None] if mask.dim() == 2 else mask.view(batch, self.num_heads, *mask.shape[1:])
        if padding is not None:
            padding = padding if padding.dim() == 2 else padding.unsqueeze(0)
            if padding.shape != (batch, sources):
                raise ShapeError(f"key_padding_mask is {tuple(padding.shape)} and should be {(batch, sources)}")
            padding = padding[:, None, None]
            mask = padding if mask is None else mask + padding
        more = (self.bias_k is not None) + self.add_zero_attn  # keys that no mask hides
        return mask if mask is None or not more else F.pad(mask, (0, more))

    def _projected(self, *inputs: Tensor) -> list[Tensor]:
        """Queries, keys and values, each with noise of its own.

        Not in one product where all three inputs are one tensor: checkpointing may hand three copies to its second
        pass, which must draw as the first did.
        """
        names = weight_names(self)
        means = [self.mean_of(name) for name in names]
        spreads = [late_spread_of(self, name, mean) for name, mean in zip(names, means, strict=True)]
        if len(names) == 1:
            means, spreads = _thirds(means[0]), _thirds(spreads[0])
        parts = zip(inputs, means, spreads, _thirds(self.in_proj_bias), _thirds(self._bias_spread()), strict=True)
        return [self._project(*part) for part in parts]

    def _project(self, x: Tensor, *posterior: Any) -> Tensor:
        return self.multiply(LinearProduct(), [x], *posterior, batch_dim=0)

    def _bias_spread(self) -> Spread | None:
        return None if self.scale_of("in_proj_bias") is None else self.spread_of("in_proj_bias")

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What the heads see, (batch, heads, targets, features), and their weights if needed."""
        k, v = self._extended(k, self.bias_k), self._extended(v, self.bias_v)
        q, k, v = (x.view(*x.shape[:-1], self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(q, k, v, bias, dropout, is_causal=causal), None
        scores = (q * math.sqrt(1 / q.shape[-1])) @ k.transpose(-2, -1)
        # autocast computes the scores in less than the masks' precision
        weights = torch.softmax(scores if bias is None else scores + bias.to(scores.dtype), dim=-1)
        weights = F.dropout(weights, dropout)
        return weights @ v, weights

    def _extended(self, x: Tensor, bias: Tensor | None) -> Tensor:
        more = [] if bias is None else [bias.expand(x.shape[0], 1, -1)]
        more += [x.new_zeros(x.shape[0], 1, x.shape[2])] if self.add_zero_attn else []
        return torch.cat([x, *(row.to(x.dtype) for row in more)], dim=1) if more else x


class FlipoutMultiheadAttention(AttentionFamily, Flipout, nn.MultiheadAttention):
    """nn.MultiheadAttention under Flipout: an example is an element of the batch, in either layout."""

    out_class = FlipoutOutProjection


class LRTMultiheadAttention(AttentionFamily, LRT, nn.MultiheadAttention):
    """nn.MultiheadAttention under local reparameterization, which ignores that positions share the projections."""

    out_class = LRTOutProjection


def _thirds(packed: Spread | SoftplusStd | None) -> list[Any]:
    if isinstance(packed, SoftplusStd):
        return [SoftplusStd(rho) for rho in packed.rho.chunk(3)]
    if isinstance(packed, tuple):
        return list(zip(*(draw.chunk(3) for draw in packed), strict=True))
    return [None] * 3 if packed is None else list(packed.chunk(3))


_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
describe(
    nn.MultiheadAttention,
    LayerKind(
        weights=lambda layer: _PROJECTIONS,
        biases=lambda layer: ("in_proj_bias",),
        example_dims=batch_first_dims,
        layout="batch_first",
        on_sequences=True,
        maskable=True,
    ),
)
