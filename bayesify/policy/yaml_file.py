"""Policy files: YAML 1.2 as plain data with the line of each key; and the presets that bayesify ships.

ruamel.yaml parses: by libyaml where that is installed, and in Python where something is wrong with the file. Its events
are read one by one, so that every duplicate key, anchor and tag is reported with its line, all at once, and so that a
file which is nested too deeply is refused before anything is built from it.
"""

from __future__ import annotations

import io
import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PolicyError, UsageError, did_you_mean
from .problems import Origin, Problem
from .problems import Path as KeyPath

if TYPE_CHECKING:
    from ruamel.yaml import YAML

LARGEST = 1 << 20  # bytes
DEEPEST = 20  # the grammar needs 5

_QUOTE_STAR = "quote patterns that start with * or [, as in '*.conv'; YAML reads an unquoted one as something else"


def presets() -> dict[str, Path]:
    """The shipped policies by name: beside the package in a source checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    folders = [package / "configs", package.parent / "configs"]
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def read_text(path: str | os.PathLike[str]) -> str:
    """A policy file's text.

    Raises:
        UsageError: the file is not there or cannot be read.
        PolicyError: it is not UTF-8, or has over 1 MiB.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise UsageError(f"{str(path)!r} is not a policy file, a preset or a method.{_preset_hint(path)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{str(path)!r}: the policy cannot be read: {reason}") from None
    if len(content) > LARGEST:
        raise PolicyError(["a policy may have 1 MiB at most, and this file has more"], str(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise PolicyError([f"line {line}: the file is not UTF-8 text"], str(path)) from None


def as_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as a policy file writes it."""
    from ruamel.yaml import YAML

    file = io.StringIO()
    YAML().dump(data, file)
    return file.getvalue()


def read_yaml(text: str, source: str) -> tuple[Any, Origin, list[Problem]]:
    """The plain data of a YAML text, the line of each key, and what YAML allows and a policy does not."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    quick = _read_by_libyaml(text)
    if quick is not None:
        return quick[0], Origin(source, quick[1]), []
    reader = _Reader(YAML(typ="safe", pure=True), text)
    try:
        data = reader.document()
    except MarkedYAMLError as error:
        raise PolicyError([_yaml_words(error, text)], source) from None
    except YAMLError as error:
        raise PolicyError([f"not YAML: {str(error).splitlines()[0]}"], source) from None
    except _RefusedError as error:
        raise PolicyError([str(error)], source) from None
    return data, Origin(source, reader.lines), reader.problems


def _read_by_libyaml(text: str) -> tuple[Any, dict[KeyPath, int]] | None:
    """The data and lines of a text without a problem, ten times as fast; else None, for the other scanner to report.

    Also None where libyaml is not installed, where it would end lines at characters that YAML 1.2 does not, where a
    text marks the end of a document, and where it has tabs, which libyaml lets stand on a line of their own.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not find_spec("_ruamel_yaml") or re.search("[\t\x85\u2028\u2029\ufeff]|^\\.\\.\\.", text, re.M):
        return None
    reader = _Reader(YAML(typ="safe"), text)
    try:
        data = reader.document()
    except (YAMLError, _RefusedError):
        return None
    return None if reader.problems else (data, reader.lines)


class _RefusedError(Exception):
    """A document that cannot be read any further."""


class _Reader:
    """Builds plain data out of ruamel's events and notes the line of each key and item."""

    def __init__(self, yaml: YAML, text: str) -> None:
        self.events: Iterator[Any] = yaml.parse(text)
        self.yaml = yaml
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []

    def document(self) -> Any:
        """The one document of the stream."""
        next(self.events)
        start = next(self.events)
        if not hasattr(start, "version"):
            raise _RefusedError("the file is empty; 'method: flipout' is the shortest policy")
        if start.version not in (None, (1, 2)):
            raise _RefusedError("policies are YAML 1.2; leave the %YAML line out")
        data = self.value(next(self.events), ())
        next(self.events)
        after = next(self.events)
        if hasattr(after, "version"):
            raise _RefusedError(f"line {after.start_mark.line + 1}: a second document; a policy is one")
        return data

    def value(self, event: Any, path: KeyPath) -> Any:
        """The value that starts with this event."""
        name, line = type(event).__name__, event.start_mark.line + 1
        if len(path) > DEEPEST:
            raise _RefusedError(f"line {line}: nested too deeply")
        self.lines.setdefault(path, line)
        self.check(event, path)
        if name == "MappingStartEvent":
            return self.mapping(path)
        if name == "SequenceStartEvent":
            return [self.value(item, (*path, index)) for index, item in enumerate(self.until("SequenceEndEvent"))]
        return self.scalar(event, path)

    def mapping(self, path: KeyPath) -> dict[str, Any]:
        """A mapping. A key that appears twice is a problem, and its first value counts."""
        data: dict[str, Any] = {}
        for event in self.until("MappingEndEvent"):
            if not hasattr(event, "value"):
                star = _QUOTE_STAR if type(event).__name__ == "AliasEvent" else "a key must be a single word"
                raise _RefusedError(f"line {event.start_mark.line + 1}: {star}")
            key, line, here = event.value, event.start_mark.line + 1, (*path, event.value)
            first = self.lines.setdefault(here, line)
            self.check(event, here)
            value = self.value(next(self.events), here)
            if key in data:
                self.problems.append(Problem(here, f"key {key!r} appears twice, first on line {first}.", line))
            data.setdefault(key, value)
        return data

    def scalar(self, event: Any, path: KeyPath) -> Any:
        """A number, true, false or null where YAML 1.2 says so, else text: `1e-3` is a number and `off` a text."""
        from ruamel.yaml.nodes import ScalarNode

        if not hasattr(event, "value") or not event.implicit[0]:
            return getattr(event, "value", "*")
        tag = str(self.yaml.resolver.resolve(ScalarNode, event.value, event.implicit))
        if tag.rpartition(":")[2] not in ("null", "bool", "int", "float"):
            return event.value
        try:
            return self.yaml.constructor.construct_object(ScalarNode(tag, event.value))
        except ValueError:
            self.problems.append(Problem(path, f"{reprlib.repr(event.value)} is not a number."))
            return event.value

    def until(self, end: str) -> Iterator[Any]:
        """The events of a collection's members, up to its end."""
        while type(event := next(self.events)).__name__ != end:
            yield event

    def check(self, event: Any, path: KeyPath) -> None:
        """Note what YAML allows and a policy does not: aliases, anchors and tags."""
        line = event.start_mark.line + 1
        if type(event).__name__ == "AliasEvent":
            self.problems.append(Problem(path, f"{_QUOTE_STAR}.", line))
        elif event.anchor is not None:
            self.problems.append(Problem(path, f"anchors are not allowed: &{event.anchor}.", line))
        if getattr(event, "tag", None) is not None:
            self.problems.append(Problem(path, "tags are not allowed; quote a value that starts with !.", line))


def _preset_hint(path: str | os.PathLike[str]) -> str:
    names = list(presets())
    return f"{did_you_mean(Path(path).stem, names)} Presets: {', '.join(names)}."


def _yaml_words(error: Any, text: str) -> str:
    """ruamel's error with its line, and what to do if the cause is a common one."""
    said = str(error.problem or error.context).replace("\t", "\\t")
    mark = (error.context_mark if "stream" in said else None) or error.problem_mark or error.context_mark
    line = mark.line if mark else 0
    if "alias" in (error.context or "") or re.search(r"(^|[\s\[,:-])\*", "".join(text.splitlines()[line : line + 1])):
        return f"line {line + 1}: {_QUOTE_STAR}"
    helps = {
        "that cannot start any token": ": quote the value, and indent with spaces, never tabs",
        "mapping values are not allowed here": ": quote a value that has ': ' in it, or mend the indentation",
        "stream": ": a quote or a bracket is never closed",
    }
    return f"line {line + 1}: {said}{next((help_ for sign, help_ in helps.items() if sign in said), '')}"
