"""KL(q‖p) in nats of many posteriors at once: std = softplus(rho), against normal priors.

In eager mode one autograd Function makes two passes over all of them, one for the value and one for the gradients. It
keeps the tensors that it is given and nothing else. Large tensors go through it in pieces that stay in a CPU's cache,
small ones together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..estimators.eager import by_formula, gradients, in_mode
from ..estimators.pieces import in_pieces
from ..estimators.softplus import (
    LOG,
    SLOPE,
    SQUARE,
    STD,
    all_small,
    write_series,
    write_std,
    write_std_and_slope,
)
from .prior import normal_kl
from .scale import Scale

SMALL = 2**14  # elements: below, a tensor costs more for its calls than for its elements


class Relative(NamedTuple):
    """A std that is a multiple of |prior_mean|, of which `least` is the smallest that counts: 0-dim."""

    factor: float
    least: Tensor

    def std(self, mean: Tensor, fan_in: int) -> Tensor:
        """As of a `Scale`."""
        return self.factor * mean.abs().maximum(self.least)


class NormalTerm(NamedTuple):
    """What one posterior N(mean, softplus(rho)²) and its prior are made of, in float32 or float64.

    Attributes:
        prior_std: a `relative` scale means a fraction of |prior_mean|, which is a tensor then.
        fan_in: what a relative scale falls back to where all of the prior's means are zero.
    """

    mean: Tensor
    rho: Tensor
    prior_mean: Tensor | float
    prior_std: Tensor | float | Scale | Relative
    fan_in: int = 1

    @property
    def prior(self) -> tuple[Tensor | float, Tensor | float]:
        """The prior's mean and std."""
        mean, std = self.prior_mean, self.prior_std
        return mean, std.std(mean, self.fan_in) if isinstance(std, Scale | Relative) else std  # type: ignore[arg-type]

    @property
    def kind(self) -> tuple[Any, ...]:
        """What is the same for terms that can be computed together."""
        std = self.prior_std
        parts = (self.prior_mean, (Relative, std.factor) if isinstance(std, Relative) else std)
        return (self.mean.device, self.mean.dtype, *(Tensor if isinstance(part, Tensor) else part for part in parts))


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
    values = [normal_kl(term.mean, F.softplus(term.rho), *term.prior) for term in _terms(priors, tensors)]
    return torch.stack([value.to(values[0].device) for value in values]).sum()


class _NormalKLs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, priors: Sequence[tuple[Any, ...]], *tensors: Tensor) -> Tensor:
        terms = _settled(_terms(priors, tensors))
        if ctx is not None:
            ctx.priors = [term[2:] for term in terms]
            ctx.save_for_backward(*tensors)
        sums = [(weight, value) for batch in _batches(terms) for weight, value in _sums(batch)]
        device, weights = terms[0].mean.device, dict.fromkeys(weight for weight, _ in sums)
        # a call for each number would take more than its sum
        together = [torch.stack([own.to(device) for weight, own in sums if weight == each]).sum() for each in weights]
        return sum(torch.mul(*each) for each in zip(together, weights, strict=True))  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors = ctx.saved_tensors
        if by_formula(grad):
            return None, *gradients(partial(_plain_sum, ctx.priors), tensors, ctx.needs_input_grad[1:], grad)
        terms = _terms(ctx.priors, tensors)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for batch in _batches(terms):
            found |= zip(map(id, batch.terms), batch.apart(*_gradients(batch, grad.to(batch.mean.device))), strict=True)
        return None, *(found[id(term)][0] for term in terms), *(found[id(term)][1] for term in terms)


@dataclass(frozen=True, eq=False)
class _Batch:
    """One large term; or small ones of one kind, their tensors flat and one after the other.

    Attributes:
        least: what |prior_mean| is at least, where the prior's std is relative to it.
    """

    terms: Sequence[NormalTerm]
    mean: Tensor
    rho: Tensor
    prior_mean: Tensor | float
    prior_std: Any
    least: Tensor | None = None

    def pieces(self, *outputs: Tensor, scratch: int) -> Iterator[tuple[Any, ...]]:
        """(mean, rho, prior mean, prior std, outputs..., scratch...) of one piece after the other."""
        given = (self.mean, self.rho, self.prior_mean, self.prior_std, self.least, *outputs)
        relative = isinstance(self.prior_std, Relative)
        for mean, rho, prior_mean, prior_std, least, *others in in_pieces(*given, scratch=scratch + relative):
            if relative:
                buffer = others.pop()
                prior_std = torch.abs(prior_mean, out=buffer).clamp_min_(least).mul_(prior_std.factor)
            yield mean, rho, prior_mean, prior_std, *others

    def apart(self, of_mean: Tensor, of_rho: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each term's part of the gradients."""
        if len(self.terms) == 1:
            return [(of_mean, of_rho)]  # autograd adds to a gradient in its place, but not to a view
        shapes = [term.mean.shape for term in self.terms]
        sizes = [shape.numel() for shape in shapes]
        parts = zip(torch.split(of_mean, sizes), torch.split(of_rho, sizes), shapes, strict=True)
        return [(mean.view(shape), rho.view(shape)) for mean, rho, shape in parts]


def _batches(terms: Sequence[NormalTerm]) -> Iterator[_Batch]:
    small: dict[Any, list[NormalTerm]] = {}
    for term in terms:
        if term.mean.numel() < SMALL:
            small.setdefault(term.kind, []).append(term)
        else:
            yield _batch([term])
    yield from map(_batch, small.values())


def _batch(terms: Sequence[NormalTerm]) -> _Batch:
    mean, rho, prior_mean, prior_std = (
        _flat([getattr(term, name) for term in terms]) for name in ("mean", "rho", "prior_mean", "prior_std")
    )
    each = [term.prior_std.least for term in terms if isinstance(term.prior_std, Relative)]
    least = each[0] if each else None
    if len(each) > 1:
        sizes = torch.tensor([term.mean.numel() for term in terms], device=mean.device)
        least = torch.stack(each).repeat_interleave(sizes, output_size=len(mean))
    return _Batch(terms, mean, rho, prior_mean, prior_std, least)


def _flat(parts: Sequence[Any]) -> Any:
    """Tensors one after the other; what is not a tensor is the same in all."""
    together = len(parts) > 1 and isinstance(parts[0], Tensor)
    return torch.cat([part.reshape(-1) for part in parts]) if together else parts[0]


def _settled(terms: Sequence[NormalTerm]) -> list[NormalTerm]:
    """The same terms, with what relative stds are at least, for both passes."""
    alike: dict[Any, list[int]] = {}
    for at, term in enumerate(terms):
        if isinstance(term.prior_std, Scale):
            alike.setdefault((term.mean.device, term.mean.dtype, term.prior_std), []).append(at)
    settled = list(terms)
    for places in alike.values():
        scale: Any = terms[places[0]].prior_std
        thresholds = _thresholds([terms[at] for at in places], scale.floor)
        for at, least in zip(places, thresholds, strict=True):
            settled[at] = terms[at]._replace(prior_std=Relative(scale.value, least))
    return settled


def _thresholds(terms: Sequence[NormalTerm], floor: float) -> Sequence[Tensor]:
    """`scale.threshold` of each term, all together."""
    weights: Any = [term.prior_mean for term in terms]
    small = [weight for weight in weights if weight.numel() < SMALL]
    of_small = iter(torch._foreach_norm(small) if small else [])
    # large ones are summed in pairs, as a norm is not
    norms = [next(of_small) if weight.numel() < SMALL else weight.square().sum().sqrt() for weight in weights]
    sizes, widths = [weight.numel() for weight in weights], [term.fan_in for term in terms]
    roots, others = (weights[0].new_tensor([max(n, 1) ** -0.5 for n in numbers]) for numbers in (sizes, widths))
    norm = torch.stack(norms)
    return (floor * torch.where(norm > 0, norm * roots, others)).unbind()


def _sums(batch: _Batch) -> Iterator[tuple[float, Tensor]]:
    """(weight, number), the sum of whose products is the KL."""
    minus_one = batch.mean.new_full((), -1)
    for mean, rho, prior_mean, prior_std, ratio, excess in batch.pieces(scratch=2):
        if isinstance(prior_std, float) and all_small(rho):
            yield 1.0, _small_value(mean, rho, prior_mean, prior_std, ratio, excess)
            continue
        write_std(rho, ratio, excess)
        yield -1.0, _log_sum(ratio.div_(prior_std), excess)
        torch.addcmul(minus_one, ratio, ratio, out=excess)  # near the prior, a sum less its size would be nonsense
        shift = torch.sub(mean, prior_mean, out=ratio).div_(prior_std)
        yield 0.5, excess.addcmul_(shift, shift).sum()


def _log_sum(numbers: Tensor, buffer: Tensor) -> Tensor:
    """Σ log(number), by one logarithm for each product of eight, if all of those are normal numbers for sure.

    A logarithm costs as much as eight products.
    """
    if numbers.is_cpu and numbers.numel() % 8 == 0 and numbers.numel() >= 8 * _SHORTEST and numbers.is_contiguous():
        products, factors = buffer.view(8, -1), numbers.view(8, -1)
        pairs = torch.mul(factors[:4], factors[4:], out=products[:4])
        least, most = torch.aminmax(pairs)
        if least.item() > _LEAST_PAIR and most.item() < 1 / _LEAST_PAIR:
            return pairs[:2].mul_(pairs[2:])[0].mul_(pairs[1]).log_().sum()
    kind = torch.finfo(numbers.dtype)
    return torch.clamp_min(numbers, kind.tiny * kind.eps, out=buffer).log_().sum()  # the smallest number there is


_SHORTEST = 2**9  # products: for fewer, calls cost more than logarithms
_LEAST_PAIR = 1e-9  # four of them multiply to no less than 1e-36, and to no more than its inverse


def _small_value(
    mean: Tensor, rho: Tensor, prior_mean: Tensor | float, prior_std: float, total: Tensor, buffer: Tensor
) -> Tensor:
    """The sum for stds up to 0.01: log(prior_std) - rho - (log(std) - rho) + (std²/prior_std² - 1 + shift²)/2."""
    half = 0.5 / prior_std / prior_std
    of_square, of_log = (0, *(half * each for each in SQUARE)), (*LOG, 0)
    series = [a - b for a, b in zip(of_square, of_log, strict=True)]
    write_series(torch.sigmoid(rho, out=buffer), [math.log(prior_std) - 0.5, *series], total)
    centred = isinstance(prior_mean, float) and prior_mean == 0
    shift = mean if centred else torch.sub(mean, prior_mean, out=buffer)
    return total.sub_(rho).addcmul_(shift, shift, value=half).sum()


def _gradients(batch: _Batch, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Of mean and rho: (mean - prior_mean) / prior_std² and (std/prior_std² - 1/std)·sigmoid(rho), times `grad`."""
    of_mean, of_rho = torch.empty_like(batch.mean), torch.empty_like(batch.rho)
    minus_one, number = batch.mean.new_full((), -1), isinstance(batch.prior_std, float)
    of_square = grad / batch.prior_std / batch.prior_std if number else grad
    outputs = (of_mean, of_rho)
    for mean, rho, prior_mean, prior_std, mean_out, rho_out, std, slope, buffer in batch.pieces(*outputs, scratch=3):
        torch.sub(mean, prior_mean, out=mean_out).mul_(of_square)
        if number and all_small(rho):
            _write_small_gradient(rho, float(of_square), float(grad), rho_out, buffer)
            continue
        if not number:
            mean_out.div_(prior_std).div_(prior_std)
        write_std_and_slope(rho, std, slope, buffer)
        std.div_(prior_std)
        torch.addcmul(minus_one, std, std, out=rho_out).mul_(slope).mul_(grad)
    return of_mean, of_rho


def _write_small_gradient(rho: Tensor, of_square: float, grad: float, result: Tensor, buffer: Tensor) -> None:
    """`of_square`·std·dstd/drho - `grad`·dlog(std)/drho, for stds up to 0.01."""
    squares, slopes = (0, 0, *(of_square * each for each in STD)), (*(grad * each for each in SLOPE), 0, 0)
    series = [a - b for a, b in zip(squares, slopes, strict=True)]
    write_series(torch.sigmoid(rho, out=buffer), series, result)
