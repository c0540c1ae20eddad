"""What every command does with the terminal: one message for a failure, our own warnings only, progress on stderr."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from ..errors import BayesifyError
from ..escaping import first_line, printable

_ASCII = {"→": "->", "×": "x", "·": "*", "√": "sqrt", "₀": "0", "…": "...", "─": "-", "━": "-", "∞": "inf", "–": "-"}
_ASCII |= dict(zip("▁▂▃▄▅▆▇█", "_.,-=+*#", strict=True))


class Commands(click.Group):
    """Commands whose failures are one message on stderr and an exit code, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        _survive_any_encoding()
        try:
            with _own_warnings_only(), ended_as_by_an_error():
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
            hint = "BAYESIFY_TRACEBACK=1 shows where"
            return _fail(ctx, f"unexpected {type(error).__name__}: {first_line(error)} ({hint})", 1)


@contextlib.contextmanager
def ended_as_by_an_error() -> Iterator[None]:
    """SIGTERM ends the block as an exception would, so that a file that is half written is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def say(text: str, *, err: bool = False) -> None:
    """Print text that may quote names from a file: what does not print is escaped, except for line breaks and tabs.

    click.echo is not used, since it writes UTF-8 where ASCII was asked for.
    """
    stream = sys.stderr if err else sys.stdout
    stream.write(printable(text, keep="\n\t") + "\n")
    stream.flush()


@contextlib.contextmanager
def busy(doing: str) -> Iterator[None]:
    """Show on a terminal what is going on, and send to stderr whatever the model's own code prints."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    status = console.status(escape(printable(doing))) if console.is_terminal else contextlib.nullcontext()
    with status, contextlib.redirect_stdout(sys.stderr):
        yield


def _fail(ctx: click.Context, message: str, exit_code: int) -> NoReturn:
    say(f"Error: {message}", err=True)
    ctx.exit(exit_code)


def _survive_any_encoding() -> None:
    """Where an arrow cannot be shown, `->` stands for it."""
    codecs.register_error("bayesify", _in_ascii)
    for stream, original in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__)):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="bayesify", encoding="ascii" if stream is original and _is_c_locale() else None)


def _is_c_locale() -> bool:
    """Whether the user asks for ASCII. Python itself writes UTF-8 under LC_ALL=C (PEP 540)."""
    told = os.environ.get("PYTHONIOENCODING") or os.environ.get("PYTHONUTF8")
    return not told and os.environ.get("LC_ALL") in ("C", "POSIX")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(char, "?") for char in text), error.end


@contextlib.contextmanager
def _own_warnings_only() -> Iterator[None]:
    """Show what bayesify warns of. What torch and the model's libraries warn of is not for the user of a command."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module=r"bayesify(\.|$)")
        warnings.showwarning = lambda message, *_, **__: say(f"Warning: {printable(message)}", err=True)
        yield
