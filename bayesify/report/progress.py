"""A progress bar on stderr for what takes long."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

PATIENCE = 2.0  # seconds before a bar is shown unasked

Item = TypeVar("Item")


def progressed(items: Iterable[Item], doing: str, show: bool | None = None) -> Iterator[Item]:
    """The items, and a bar of how many were asked for.

    Args:
        show: True or False; None: on a terminal, once it has taken `PATIENCE`.
    """
    if show is False:
        yield from items
        return
    from rich.console import Console

    console = Console(stderr=True)
    if show is None and not console.is_terminal:
        yield from items
        return
    started, bar = time.monotonic(), None
    total = len(items) if isinstance(items, Sized) else None
    try:
        for done, item in enumerate(items):
            if bar is None and (show or time.monotonic() - started > PATIENCE):
                bar = _started(console)
                task = bar.add_task(doing, total=total)
            if bar is not None:
                bar.update(task, completed=done)
            yield item
        if bar is not None:
            bar.update(task, completed=done + 1)
    finally:
        if bar is not None:
            bar.stop()


def _started(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=console, transient=True)
    bar.start()
    return bar
