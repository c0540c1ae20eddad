"""Which generator noise is drawn from: torch's default one, unless a seed of the caller's or another thread says else.

torch's default generators are the process's: a thread that seeds one and puts it back has others draw from its seed,
and draw again what they drew. So where several threads draw noise, none touches them: a seed is that of a generator of
the call's own. Where one does seed them, since it was alone, noise of a thread that comes later is from one of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import ref

import torch

_Own = dict[torch.device, torch.Generator]
_SEEDED: ContextVar[tuple[int, _Own] | None] = ContextVar("bayesify_seeded", default=None)
_DRAWING: dict[int, ref[threading.Thread]] = {}  # the threads that drew noise
_BORROWING = threading.Lock()
_borrower: int | None = None  # the thread that has the default generators to itself


class _Thread(threading.local):
    def __init__(self) -> None:
        _DRAWING[threading.get_ident()] = ref(threading.current_thread())
        self.own: _Own = {}
        self.drawn = 0


_THREAD = _Thread()


def times_drawn() -> int:
    """How often this thread drew noise, other than in compiled code: a number to compare with a later one."""
    return _THREAD.drawn


def next_generator(device: torch.device) -> torch.Generator | None:
    """The generator that this thread's next noise on this device is drawn from, and counted; None for torch's own."""
    _THREAD.drawn += 1
    own, seeded = _THREAD.own, _SEEDED.get()
    if seeded is None and (_borrower is None or borrows() or torch.is_grad_enabled()):
        return None  # with gradients always: checkpointing puts back torch's own generators only
    if seeded is not None:
        own = seeded[1]
    if device not in own:
        own[device] = torch.Generator(device)
        own[device].seed() if seeded is None else own[device].manual_seed(seeded[0])
    return own[device]


@contextmanager
def noise_seeded(seed: int) -> Iterator[None]:
    """All noise of this thread or task comes from generators that start at the seed, one for each device."""
    token = _SEEDED.set((seed, {}))
    try:
        yield
    finally:
        _SEEDED.reset(token)


@contextmanager
def borrowed(devices: Sequence[int] | range) -> Iterator[bool]:
    """torch's default generators, of the CPU and these CUDA devices, for this thread alone; then as they were before.

    Yields whether it has them: where other threads draw noise, it has not, and nothing is put back.
    """
    global _borrower
    _THREAD.own  # noqa: B018  (this thread counts from now on)
    mine = borrows() or (not _others_draw() and _BORROWING.acquire(blocking=False))
    if not mine:
        yield False
        return
    before, _borrower = _borrower, threading.get_ident()
    try:
        with torch.random.fork_rng(devices=devices):
            yield True
    finally:
        _borrower = before
        if before is None:
            _BORROWING.release()


def borrows() -> bool:
    """Whether this thread has torch's default generators to itself."""
    return _borrower == threading.get_ident()


def _others_draw() -> bool:
    threads = [each() for each in list(_DRAWING.values())]
    return any(one is not None and one.is_alive() and one is not threading.current_thread() for one in threads)
