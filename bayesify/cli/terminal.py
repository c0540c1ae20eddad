"""What every command does with the terminal: one message for a failure, its own warnings only, progress on stderr."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from ..errors import BayesifyError


class Commands(click.Group):
    """Commands whose failures are one message on stderr and an exit code, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        _survive_any_encoding()
        try:
            with _own_warnings_only():
                return super().invoke(ctx)
        except BayesifyError as error:
            return _fail(ctx, str(error), error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise
            if os.environ.get("BAYESIFY_TRACEBACK"):
                traceback.print_exc()
            first = (str(error).strip().splitlines() or ["no message"])[0]
            hint = "BAYESIFY_TRACEBACK=1 shows where"
            return _fail(ctx, f"unexpected {type(error).__name__}: {first} ({hint})", 1)


@contextlib.contextmanager
def busy(doing: str) -> Iterator[None]:
    """Say on a terminal what takes long; keep what the model's own code prints out of the output."""
    from rich.console import Console

    console = Console(stderr=True)
    status = console.status(doing) if console.is_terminal else contextlib.nullcontext()
    with status, contextlib.redirect_stdout(sys.stderr):
        yield


def _fail(ctx: click.Context, message: str, exit_code: int) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    ctx.exit(exit_code)


def _survive_any_encoding() -> None:
    """A terminal that cannot show an arrow gets a question mark, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def _own_warnings_only() -> Iterator[None]:
    """What torch and the model's libraries warn of is not for the user of a command; what bayesify warns of is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module=r"bayesify(\.|$)")
        warnings.showwarning = lambda message, *_, **__: click.echo(f"Warning: {message}", err=True)
        yield
