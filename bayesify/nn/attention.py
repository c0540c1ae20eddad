"""nn.MultiheadAttention: its projections are variational, the attention between them stays torch's."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..products import LinearProduct
from .linear import LinearFamily
from .variational import LRT, Flipout, Variational


class AttentionFamily(Variational):
    """Multi-head attention with packed or separate projections; its `out_proj` is a variational layer of its own."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False, return_kl: bool = False,
    ) -> Any:  # fmt: skip
        """nn.MultiheadAttention's forward, with noise in the projections; an example is an element of the batch."""
        if self._quiet:
            output = super().forward(
                query, key, value, key_padding_mask=key_padding_mask, need_weights=need_weights, attn_mask=attn_mask,
                average_attn_weights=average_attn_weights, is_causal=is_causal,
            )  # fmt: skip
        else:
            masks = _masks(query, key_padding_mask, attn_mask, is_causal, need_weights)
            output = self._attend(query, key, value, *masks, need_weights, average_attn_weights)
        return (output, self.kl_divergence()) if return_kl else output

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, mask: Tensor | None, causal: bool,
        need_weights: bool, average: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if query.is_nested:
            return self._attend_nested(query, need_weights, average)
        batched = query.dim() == 3
        q, k, v = self._projected(*self._batch_first(batched, query, key, value))
        k, v = self._extended(k, self.bias_k), self._extended(v, self.bias_v)
        bias = _merged(padding, mask, q.shape[0], self.num_heads, k.shape[1])
        q, k, v = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + (0 if bias is None else bias), -1)
            heads = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average else weights
        else:
            weights = None
            heads = F.scaled_dot_product_attention(q, k, v, bias, dropout, is_causal=causal and bias is None)
        output = self.out_proj(heads.transpose(1, 2).flatten(-2))
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _attend_nested(self, query: Tensor, need_weights: bool, average: bool) -> tuple[Tensor, Tensor | None]:
        """Padded, attended with the padding masked, and nested again: torch takes nested tensors for self-attention."""
        lengths = [each.shape[0] for each in query.unbind()]
        padded = query.to_padded_tensor(0.0)
        positions = torch.arange(padded.shape[1], device=padded.device)
        padding = positions >= torch.tensor(lengths, device=padded.device).unsqueeze(1)
        masks = _masks(padded, padding, None, False, need_weights)
        output, weights = self._attend(padded, padded, padded, *masks, need_weights, average)
        return torch._nested_tensor_from_mask(output, ~padding, mask_check=False), weights

    def _batch_first(self, batched: bool, *inputs: Tensor) -> tuple[Tensor, ...]:
        if not batched:
            moved = {id(each): each.unsqueeze(0) for each in inputs}
        else:
            moved = {id(each): each if self.batch_first else each.transpose(0, 1) for each in inputs}
        return tuple(moved[id(each)] for each in inputs)  # what was one tensor stays one

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        if self._qkv_same_embed_dim and query is key and key is value:
            return list(self._project(query, "in_proj_weight", slice(None)).chunk(3, dim=-1))
        size, projected = self.embed_dim, []
        for at, (name, each) in enumerate((("q", query), ("k", key), ("v", value))):
            rows = slice(at * size, (at + 1) * size)
            separate = not self._qkv_same_embed_dim
            projected.append(self._project(each, f"{name}_proj_weight" if separate else "in_proj_weight", rows))
        return projected

    def _project(self, x: Tensor, name: str, rows: slice) -> Tensor:
        part = rows if name == "in_proj_weight" else slice(None)
        mean, std = self._parameters[name], self.std_of(name)
        bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
        bias_std = self.std_of("in_proj_bias")[rows] if self.scale_of("in_proj_bias") is not None else None
        return self.estimate(LinearProduct(), [x], mean[part], std[part], bias, bias_std, batch_dim=0)

    def _extended(self, x: Tensor, bias: Tensor | None) -> Tensor:
        more = [] if bias is None else [bias.expand(x.shape[0], 1, -1)]
        more += [x.new_zeros(x.shape[0], 1, x.shape[2])] if self.add_zero_attn else []
        return torch.cat([x, *(each.to(x.dtype) for each in more)], dim=1) if more else x


class FlipoutMultiheadAttention(AttentionFamily, Flipout, nn.MultiheadAttention):
    """nn.MultiheadAttention under Flipout: an example is an element of the batch, in either layout."""


class LRTMultiheadAttention(AttentionFamily, LRT, nn.MultiheadAttention):
    """nn.MultiheadAttention under local reparameterization, which ignores that positions share the projections."""


class FlipoutOutProjection(Flipout, LinearFamily, NonDynamicallyQuantizableLinear):
    """The `out_proj` of a FlipoutMultiheadAttention."""


class LRTOutProjection(LRT, LinearFamily, NonDynamicallyQuantizableLinear):
    """The `out_proj` of an LRTMultiheadAttention."""


def _masks(
    query: Tensor, padding: Tensor | None, mask: Tensor | None, is_causal: bool, need_weights: bool
) -> tuple[Tensor | None, Tensor | None, bool]:
    """Both masks as what is added to the scores; whether the hint `is_causal` may stand for the mask."""
    if is_causal and mask is None:
        raise RuntimeError("is_causal needs attn_mask: nn.Transformer.generate_square_subsequent_mask makes one")
    if is_causal and padding is None and not need_weights:
        return None, None, True
    return _added(padding, query.dtype), _added(mask, query.dtype), False


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def _merged(padding: Tensor | None, mask: Tensor | None, batch: int, heads: int, sources: int) -> Tensor | None:
    """The masks as one (batch or 1, heads or 1, targets or 1, sources), open for what was put behind the keys."""
    if mask is not None:
        mask = F.pad(mask, (0, sources - mask.shape[-1]))
        mask = mask[None, None] if mask.dim() == 2 else mask.view(batch, heads, *mask.shape[1:])
    if padding is not None:
        padding = F.pad(padding, (0, sources - padding.shape[-1])).view(batch, 1, 1, sources)
    if mask is None or padding is None:
        return padding if mask is None else mask
    return mask + padding
