"""Text from files and models, made safe to show.

A layer's name, a key of a checkpoint or a class's name may hold anything: colours, a cursor that moves up, line breaks
that look like a message of ours. Whatever shows such text passes it through `printable` first. HTML needs `html.escape`
after that.
"""

from __future__ import annotations

import shlex


def printable(text: object, keep: str = "") -> str:
    r"""The text with escapes such as `\x1b` or `\u202e` in place of every character that does not print.

    Letters of all languages print; control characters, line breaks, and marks that change the direction of writing do
    not (`str.isprintable`).

    Args:
        text: the text, or anything with a `str`.
        keep: characters to leave as they are, such as the line breaks of a message of our own.
    """
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in str(text))


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, printable; its class's name where it has no message."""
    lines = str(error).strip().splitlines()
    return printable(lines[0]) if lines else type(error).__name__


def shell_word(text: object) -> str:
    """The text as one word of a shell command (bash, zsh) that the user may paste; printable too."""
    word = str(text)
    if word.isprintable():
        return shlex.quote(word)
    quotes = {"'": r"\'", "\\": r"\\"}
    return f"$'{''.join(quotes.get(char, char) if char.isprintable() else _as_bytes(char) for char in word)}'"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _as_bytes(char: str) -> str:
    """`\\x1b`, one for each byte; a byte of a file's name that is not UTF-8 stands in Python as a surrogate."""
    errors = "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", errors))
