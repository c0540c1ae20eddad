"""KL(q‖p) in nats of many posteriors at once: std = softplus(rho), against normal priors.

In eager mode one autograd Function makes two passes over all of them, one for the value and one for the gradients. It
keeps the tensors that it is given and nothing else. Large tensors go through it in pieces that stay in a CPU's cache,
small ones together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..estimators.eager import by_formula, gradients, in_mode
from ..estimators.fused_softplus import is_fused, softplus_and_slope
from ..estimators.pieces import in_pieces
from .normal_kl_pieces import Piece, sums_of, write_gradients
from .prior import normal_kl, shifted
from .scale import Scale, threshold

SMALL = 2**14  # elements: below, a tensor costs more for its calls than for its elements


class NormalTerm(NamedTuple):
    """What one posterior N(mean, softplus(rho)²) and its prior are made of, in float32 or float64.

    Attributes:
        prior_std: a `relative` scale means a fraction of |prior_mean|, which is a tensor then.
        fan_in: what a relative scale falls back to where all of the prior's means are zero.
    """

    mean: Tensor
    rho: Tensor
    prior_mean: Tensor | float
    prior_std: Tensor | float | Scale
    fan_in: int = 1

    @property
    def prior(self) -> tuple[Tensor | float, Tensor | float]:
        """The prior's mean and std."""
        mean, std = self.prior_mean, self.prior_std
        return mean, std.std(mean, self.fan_in) if isinstance(std, Scale) else std  # type: ignore[arg-type]

    @property
    def kind(self) -> tuple[Any, ...]:
        """What is the same for terms that can be computed together."""
        mean, std = self.prior_mean, self.prior_std
        parts = Tensor if isinstance(mean, Tensor) else mean, Tensor if isinstance(std, Tensor) else std
        return (self.mean.device, self.mean.dtype, *parts)


def normal_kls(terms: Sequence[NormalTerm]) -> Tensor:
    """Σ KL(q‖p) over all elements of all terms, 0-dim, on the first one's device; differentiable in mean and rho."""
    tensors = [*(term.mean for term in terms), *(term.rho for term in terms)]
    total: Tensor = in_mode(_plain_sum, _NormalKLs)([term[2:] for term in terms], *tensors)
    return total


def _terms(priors: Sequence[tuple[Any, ...]], tensors: Sequence[Tensor]) -> list[NormalTerm]:
    """Of all means, then all rhos."""
    means, rhos = tensors[: len(priors)], tensors[len(priors) :]
    return [NormalTerm(mean, rho, *prior) for mean, rho, prior in zip(means, rhos, priors, strict=True)]


def _plain_sum(priors: Sequence[tuple[Any, ...]], *tensors: Tensor) -> Tensor:
    values = [_plain_kl(term.mean, term.rho, *term.prior) for term in _terms(priors, tensors)]
    return torch.stack([value.to(values[0].device) for value in values]).sum()


def _plain_kl(mean: Tensor, rho: Tensor, prior_mean: Tensor | float, prior_std: Tensor | float) -> Tensor:
    if not is_fused(mean, rho):
        return normal_kl(mean, F.softplus(rho), prior_mean, prior_std)
    return _FusedKL.apply(mean, rho, prior_mean, prior_std)  # type: ignore[no-any-return,no-untyped-call]


class _FusedKL(torch.autograd.Function):
    """One term for the compiler, which would keep of the formula what its logarithm gave and was given."""

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, rho: Tensor, prior_mean: Tensor | float, prior_std: Tensor | float) -> Tensor:
        return normal_kl(mean, softplus_and_slope(rho)[0], prior_mean, prior_std)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.prior = [None if isinstance(part, Tensor) else part for part in inputs[2:]]
        ctx.save_for_backward(*(part for part in inputs if isinstance(part, Tensor)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        mean, rho, *tensors = ctx.saved_tensors
        prior_mean, prior_std = (tensors.pop(0) if part is None else part for part in ctx.prior)
        std, slope = softplus_and_slope(rho, again=True)
        ratio, shift = std / prior_std, shifted(mean, prior_mean) / prior_std
        return grad * shift / prior_std, grad * (ratio * ratio - 1) * slope / std, None, None


class _NormalKLs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, priors: Sequence[tuple[Any, ...]], *tensors: Tensor) -> Tensor:
        terms = _terms(priors, tensors)
        batches = [_with_least(batch) for batch in _batches(terms)]
        if ctx is not None:
            ctx.priors, ctx.least = priors, [batch.least for batch in batches]
            ctx.save_for_backward(*tensors)
        pieces = (each for batch in batches for each in batch.pieces(scratch=2))
        return _total([each for piece, *buffers in pieces for each in sums_of(piece, *buffers)], terms[0].mean)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors = ctx.saved_tensors
        if by_formula(grad):
            return None, *gradients(partial(_plain_sum, ctx.priors), tensors, ctx.needs_input_grad[1:], grad)
        terms = _terms(ctx.priors, tensors)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for batch, least in zip(_batches(terms), ctx.least, strict=True):
            outputs = torch.empty_like(batch.mean), torch.empty_like(batch.rho)
            for piece, *others in replace(batch, least=least).pieces(*outputs, scratch=3):
                write_gradients(piece, grad.to(batch.mean.device), *others)
            found |= zip(map(id, batch.terms), batch.apart(*outputs), strict=True)
        return None, *(found[id(term)][0] for term in terms), *(found[id(term)][1] for term in terms)


@dataclass(frozen=True, eq=False)
class _Batch:
    """One large term; or small ones of one kind, their tensors flat and one after the other.

    Attributes:
        least: what |prior_mean| is at least, where the prior's std is relative to it: one number, or one for each term.
    """

    terms: Sequence[NormalTerm]
    mean: Tensor
    rho: Tensor
    prior_mean: Tensor | float
    prior_std: Any
    least: Tensor | float | None = None

    def pieces(self, *outputs: Tensor, scratch: int) -> Iterator[tuple[Any, ...]]:
        """(Piece, outputs..., uninitialized tensors...) of one piece after the other."""
        std, most = self.prior_std, None if self.least is None else 1 / self.least
        number = isinstance(std, float | int)
        factor = std.value if isinstance(std, Scale) else float(std) if number else 1.0
        if isinstance(most, Tensor) and most.dim():
            most = most.repeat_interleave(_sizes(self.terms, most), output_size=len(self.mean))
        given = (self.mean, self.rho, self.prior_mean, std, most, *outputs)
        for mean, rho, centre, own, most, *others in in_pieces(*given, scratch=scratch + (not number)):
            inverse = None if number else _inverse(centre if most is not None else own, most, others.pop())
            yield Piece(mean, rho, centre, inverse, factor), *others

    def apart(self, of_mean: Tensor, of_rho: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each term's part of the gradients."""
        if len(self.terms) == 1:
            return [(of_mean, of_rho)]  # autograd adds to a gradient in its place, but not to a view
        shapes = [term.mean.shape for term in self.terms]
        sizes = [shape.numel() for shape in shapes]
        parts = zip(torch.split(of_mean, sizes), torch.split(of_rho, sizes), shapes, strict=True)
        return [(mean.view(shape), rho.view(shape)) for mean, rho, shape in parts]


def _inverse(units: Tensor, most: Any, out: Tensor) -> Tensor:
    inverse = torch.reciprocal(units, out=out)
    return inverse if most is None else torch.clamp(inverse, -most, most, out=out)


def _batches(terms: Sequence[NormalTerm]) -> Iterator[_Batch]:
    small: dict[Any, list[NormalTerm]] = {}
    for term in terms:
        if term.mean.numel() < SMALL:
            small.setdefault(term.kind, []).append(term)
        else:
            yield _batch([term])
    yield from map(_batch, small.values())


def _batch(terms: Sequence[NormalTerm]) -> _Batch:
    mean, rho, prior_mean, prior_std, _ = map(_flat, zip(*terms, strict=True))
    return _Batch(terms, mean, rho, prior_mean, prior_std)


def _flat(parts: Sequence[Any]) -> Any:
    """Tensors one after the other; what is not a tensor is the same in all."""
    if len(parts) == 1 or not isinstance(parts[0], Tensor):
        return parts[0]
    return torch._utils._flatten_dense_tensors(parts)  # type: ignore[no-untyped-call]


def _with_least(batch: _Batch) -> _Batch:
    """The same with `least`, by `scale.threshold` of each term."""
    std, terms = batch.prior_std, batch.terms
    if not isinstance(std, Scale):
        return batch
    if len(terms) == 1:
        return replace(batch, least=_least(batch.prior_mean, terms[0].fan_in, std.floor))
    norms = _norms(batch)
    roots, others = _sizes(terms, norms).rsqrt(), norms.new_tensor([max(term.fan_in, 1) ** -0.5 for term in terms])
    return replace(batch, least=std.floor * torch.where(norms > 0, norms * roots, others))


def _norms(batch: _Batch) -> Tensor:
    """Each term's ‖prior_mean‖."""
    weights: Any = [term.prior_mean for term in batch.terms]
    if len({weight.numel() for weight in weights}) == 1:
        rows: Any = batch.prior_mean
        norms: Tensor = torch.linalg.vector_norm(rows.view(len(weights), -1), dim=1)
        return norms
    return torch.stack(torch._foreach_norm(weights))


def _least(weight: Any, fan_in: int, floor: float) -> Tensor | float:
    if not weight.is_cpu or not weight.is_contiguous():
        return threshold(weight, fan_in, floor)
    flat = weight.view(-1)
    rms = math.sqrt(torch.dot(flat, flat).item() / max(len(flat), 1))
    return floor * (rms if rms > 0 else max(fan_in, 1) ** -0.5)


def _sizes(terms: Sequence[NormalTerm], like: Tensor) -> Tensor:
    return torch.tensor([term.mean.numel() for term in terms], device=like.device)


def _total(sums: Sequence[tuple[float, Tensor | float]], like: Tensor) -> Tensor:
    """Σ weight·number, 0-dim, of the dtype and on the device of `like`."""
    total = like.new_tensor(sum(weight * value for weight, value in sums if not isinstance(value, Tensor)))
    tensors = [(weight, value.to(like.device)) for weight, value in sums if isinstance(value, Tensor)]
    for each in dict.fromkeys(weight for weight, _ in tensors):  # a call for each number would take more than its sum
        total = total + each * torch.stack([value for weight, value in tensors if weight == each]).sum()
    return total
