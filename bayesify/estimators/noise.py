"""The random numbers of layers, from torch's default generators, on the tensor's device and out of place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from .generators import next_generator


def normal_like(tensor: Tensor) -> Tensor:
    """Standard normal numbers of `tensor`'s shape, dtype and device."""
    if torch.compiler.is_compiling():
        slow = _inductor_is_slow(tensor)
        return torch.ops.bayesify.normal_like(tensor, torch.empty(())) if slow else torch.randn_like(tensor)
    return _normal(tensor, _generator(tensor))


def eager_normal_like(tensor: Tensor) -> Tensor:
    """`normal_like`, where no code is compiled and nothing transforms it."""
    return _normal(tensor, next_generator(tensor.device))


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn_like(like) if generator is None else torch.empty_like(like).normal_(generator=generator)


def few_signs(like: Tensor) -> Tensor:
    """Fair random signs ±1 like this tensor, which has few elements; where `eager_normal_like` serves."""
    return _signs_of(eager_normal_like(like))


def _signs_of(numbers: Tensor) -> Tensor:
    plain = type(numbers) is Tensor and numbers.is_cpu
    return torch.copysign(_ONE if plain else torch.ones_like(numbers), numbers)  # which, unlike `sign`, is never 0


def sign_bits(shape: Sequence[int], like: Tensor) -> Tensor:
    """One fair random bit for each element of `shape`, in bytes of shape (words, 8). `signs` unpacks them.

    A few are signs already, those of normal numbers: bits cost more for each call than for their number. In an exported
    program they are booleans: drawn so, since exporters make a constant of a draw whose probabilities are one.
    """
    count, compiling = prod(shape), torch.compiler.is_compiling()
    if not compiling and (counts := _counts.get()) is not None:
        counts.signs.append(count)
    if exported():  # other batches need other words
        return torch.rand(list(shape), device=like.device) < 0.5
    if compiling:
        return _compiled_sign_bits(count, like)
    where: Any = {"device": like.device, "generator": _generator(like)}
    if count <= FEW:
        return _signs_of(torch.randn(shape, dtype=like.dtype, **where))
    return torch.randint(_LOWEST, _HIGHEST, (_words(count), 1), **where).view(torch.uint8)


def _compiled_sign_bits(count: int, like: Tensor) -> Tensor:
    words = _words(count)
    if _inductor_is_slow(like):
        bits = torch.ops.bayesify.random_words(like, words, torch.empty(()))
    else:
        bits = torch.randint(_LOWEST, _HIGHEST, (words, 1), device=like.device)
    return bits.view(torch.uint8)  # type: ignore[no-any-return]


def _words(count: int) -> int:
    return count // 64 + 2  # never one: a compiler treats such a dimension apart, and compiles again for it


def _generator(like: Tensor) -> torch.Generator | None:
    """None where the numbers must come from torch's default generator: what torch.func maps, and what is recorded."""
    own = next_generator(like.device)
    return None if torch._C._functorch.peek_interpreter_stack() is not None or exported() else own


def exported() -> bool:
    """Whether what is computed now goes into an exported or recorded program."""
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None


def signs(bits: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The bits as ±1, of the given shape and dtype."""
    if bits.is_floating_point():
        return bits.to(dtype)
    if bits.dtype is torch.bool:
        return bits.to(dtype) * 2 - 1
    if type(bits) is Tensor and bits.is_cpu and not torch.compiler.is_compiling():
        table = _SIGNS if dtype is torch.float32 else _SIGNS.to(dtype)
        return torch.embedding(table, bits.int()).view(-1)[: prod(shape)].view(shape)
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    spread = (bits.unsqueeze(-1) >> shifts) & 1
    return (spread.flatten()[: prod(shape)].view(shape).to(dtype) * 2) - 1


FEW = 2**11  # signs
_ONE = torch.tensor(1.0)
_SIGNS = torch.tensor([[2.0 * (byte >> bit & 1) - 1 for bit in range(8)] for byte in range(256)])  # of each byte's bits


@dataclass(frozen=True)
class Counts:
    """What noise was drawn for each example.

    Attributes:
        signs: how many, call by call of `sign_bits`.
        rows: for how many rows `counts_rows` was told that each has numbers of its own, call by call.
    """

    signs: list[int]
    rows: list[int]

    def times(self, factor: int) -> Counts:
        """So many times as much in each call."""
        return Counts([factor * count for count in self.signs], [factor * count for count in self.rows])


_counts: ContextVar[Counts | None] = ContextVar("counts", default=None)


def counts_rows(rows: int) -> bool:
    """Note that so many rows are each given noise of their own, if that is counted: then it need not be drawn."""
    if (counts := _counts.get()) is None:
        return False
    counts.rows.append(rows)
    return True


def is_counting() -> bool:
    """Whether this runs inside `counted`."""
    return _counts.get() is not None


@contextmanager
def counted() -> Iterator[Counts]:
    """How much is drawn inside for each example: what examples share is not drawn for each of them."""
    counts = Counts([], [])
    token = _counts.set(counts)
    try:
        yield counts
    finally:
        _counts.reset(token)


_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


def _inductor_is_slow(like: Tensor) -> bool:
    """On CPUs the compiler's own generator costs eleven times eager's, so that compiled code calls eager's here."""
    return like.device.type == "cpu" and not torch.compiler.is_exporting()


# nondeterministic_seeded keeps the compiler from drawing again in the backward pass. It does not keep it from merging
# draws with equal arguments (a layer called twice); `draw`, a fresh torch.empty, does, since those are never merged.
_library: Any = torch.library.Library("bayesify", "DEF")  # type: ignore[no-untyped-call]
_library.define("normal_like(Tensor like, Tensor draw) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
_library.define(
    "random_words(Tensor like, SymInt words, Tensor draw) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,)
)
for _name in ("normal_like", "random_words"):
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")


@torch.library.impl(_library, "normal_like", "CPU")
def _normal_like(like: Tensor, draw: Tensor) -> Tensor:
    return torch.randn_like(like)


@torch.library.impl(_library, "random_words", "CPU")
def _random_words(like: Tensor, words: int, draw: Tensor) -> Tensor:
    return torch.randint(_LOWEST, _HIGHEST, (words, 1), dtype=torch.int64)


@torch.library.register_fake("bayesify::normal_like", lib=_library)  # type: ignore[untyped-decorator]
def _fake_normal_like(like: Tensor, draw: Tensor) -> Tensor:
    return torch.empty_like(like)


@torch.library.register_fake("bayesify::random_words", lib=_library)  # type: ignore[untyped-decorator]
def _fake_random_words(like: Tensor, words: int, draw: Tensor) -> Tensor:
    return like.new_empty((words, 1), dtype=torch.int64)
