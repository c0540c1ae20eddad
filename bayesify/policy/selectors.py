"""The selectors of a policy: a string that names layers, and which layers it picks.

A selector is read in this order:

1. `re:` + a regular expression: fullmatch on a layer's dotted name, and only that very module;
2. `type:pkg.Class`, or the bare name of a class that converts: exactly that class and its Lazy twin;
3. with `*`, `?` or `[`: a glob. `*` and `?` stay inside one dotted part, `**` crosses any number of parts;
4. `first`, `last`: by order of registration among the layers that could convert;
5. else a plain name.

A name or a glob picks what it matches and everything below that.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

POSITIONS = ("first", "last")

Kind = Literal["re", "type", "glob", "position", "name"]

# Cuts a glob into tokens. A whole part `**` takes its dot along, so that it can stand for no part at all.
_GLOB_TOKEN = re.compile(r"(?:^|(?<=\.))\*\*\.|\.\*\*$|\*\*|\*|\?|\[[!^]?\]?[^\]]*\]|.", re.DOTALL)
_DOUBLED = re.compile(r"(?:^|(?<=\.))\*\*\.\*\*|\*\*\.\*\*(?=\.|$)")  # `**.**`, one of them a whole part, says `**`
_WILDCARDS = {"**.": r"(?:[^.]+\.)*", ".**": r"(?:\.[^.]+)*", "**": ".*", "*": "[^.]*", "?": "[^.]"}

# What no module's name has and a regular expression often does. `.*` alone is no sign: `layer1.*_proj` is a good glob.
_REGEX_SIGNS = re.compile(r"\\|^\^|\$$|[()|]|\.\+|\]\+|\{\d|^\.\*|\.\.\*")


class SelectorError(ValueError):
    """A selector that cannot be read."""


@dataclass(frozen=True)
class Candidate:
    """One weight-bearing module of a model, as selectors see it.

    Attributes:
        names: every dotted name that the module goes by, the canonical one first; the root's is "".
        cls: its class.
        convertible: whether it is of a kind that can become variational.
        blocked: why it must stay as it is all the same, if it must.
        asked: whether it converts only where a rule names it, or its class.
    """

    names: tuple[str, ...]
    cls: type
    convertible: bool
    blocked: str | None = None
    asked: bool = False

    @property
    def able(self) -> bool:
        """Whether a rule could convert it."""
        return self.convertible and self.blocked is None


@dataclass(frozen=True)
class Selector:
    """A selector, compiled: `compiled("layer[34].**.conv?")`."""

    text: str
    kind: Kind
    pattern: re.Pattern[str] | None = None
    below: bool = False
    word: str = ""
    classes: frozenset[type] = frozenset()

    @property
    def by_name(self) -> bool:
        """Whether it looks at the names that a layer goes by, rather than at the layer."""
        return self.pattern is not None

    def names(self, name: str) -> bool:
        """Whether it matches this very name; what stands below a match is `covers`' business."""
        return self.pattern is not None and self.pattern.fullmatch(name) is not None

    def covers(self, name: str) -> bool:
        """Whether it selects the module of this name: by a match, or below one."""
        if self.names(name):
            return True
        return self.below and any(self.names(name[:end]) for end in _ends(name))

    def claims(self, candidate: Candidate) -> bool:
        """Whether a rule with this target may have the candidate that it selects."""
        named = self.kind == "name" and any(self.names(name) for name in candidate.names)
        return not candidate.asked or self.kind == "type" or named

    def matches(self, candidate: Candidate) -> bool:
        """Whether it selects the candidate, by any of its names or by its class. Positions need `picked`."""
        if self.kind == "type":
            return candidate.cls in self.classes or (not self.classes and _is_called(candidate.cls, self.word))
        return any(self.covers(name) for name in candidate.names)


def check_syntax(text: str) -> None:
    """Refuse what cannot be read, without torch: which classes convert plays no part in that.

    Raises:
        SelectorError: with what to write instead.
    """
    _read(text, frozenset())


def compiled(text: str) -> Selector:
    """Read a selector.

    Raises:
        SelectorError: with what to write instead.
    """
    selector = _read(text, class_names())
    if selector.kind != "type":
        return selector
    return replace(selector, classes=_with_lazy_twins(classes_called(selector.word)))


def _read(text: str, class_names: Collection[str]) -> Selector:
    if not text:
        raise SelectorError("is empty; '**' selects every layer")
    if text.startswith("re:"):
        return Selector(text, "re", _regex(text[3:]))
    if text.startswith("type:") or text in class_names:
        word = text.removeprefix("type:")
        if not word:
            raise SelectorError("names no class; write 'type:Linear' or 'type:pkg.Class'")
        return Selector(text, "type", word=word)
    if _REGEX_SIGNS.search(text):
        raise SelectorError(f"looks like a regular expression; write 're:{text}'")
    if any(sign in text for sign in "*?["):
        return Selector(text, "glob", _glob(text), below=True)
    if text in POSITIONS:
        return Selector(text, "position")
    return Selector(text, "name", re.compile(re.escape(text)), below=True)


def picked(selector: Selector, candidates: Sequence[Candidate]) -> frozenset[int]:
    """The indices of the candidates that a selector picks."""
    if selector.kind == "position":
        able = [index for index, candidate in enumerate(candidates) if candidate.able and not candidate.asked]
        return frozenset(able[:1] if selector.text == "first" else able[-1:])
    return frozenset(index for index, candidate in enumerate(candidates) if selector.matches(candidate))


def class_names() -> frozenset[str]:
    """The bare class names that a policy may use as they are."""
    from ..nn.registry import plain_classes  # with torch, which checking a policy's text does without

    return frozenset(cls.__name__ for cls in plain_classes())


def classes_called(word: str) -> list[type]:
    """The classes that convert and go by this name: `Linear`, `torch.nn.Linear`, `torch.nn.modules.linear.Linear`."""
    from ..nn.registry import plain_classes

    return [cls for cls in plain_classes() if word == cls.__name__ or _is_called(cls, word)]


def _with_lazy_twins(classes: Collection[type]) -> frozenset[type]:
    from ..nn.registry import lazy_twin

    twins = [twin for twin in map(lazy_twin, classes) if twin is not None]
    return frozenset([*classes, *twins])


def _is_called(cls: type, word: str) -> bool:
    """Whether `word` is the class's name, the path of its definition, or a path under which it is already imported."""
    if word in (cls.__name__, f"{cls.__module__}.{cls.__qualname__}"):
        return True
    module, _, name = word.rpartition(".")
    return name != "" and getattr(sys.modules.get(module), name, None) is cls


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise SelectorError(f"is no regular expression: {error}") from None


def _glob(text: str) -> re.Pattern[str]:
    text = re.sub(r"\*{3,}", "**", text)
    while (shorter := _DOUBLED.sub("**", text)) != text:
        text = shorter
    # The root's name has no part at all: only `**` stands for that.
    some = "" if text == "**" else "(?=.)"
    return re.compile(some + "".join(map(_wildcard, _GLOB_TOKEN.findall(text))), re.DOTALL)


def _wildcard(token: str) -> str:
    if token == "[":
        raise SelectorError("has a '[' that is never closed")
    return _WILDCARDS.get(token) or (_char_class(token[1:-1]) if len(token) > 1 else re.escape(token))


def _char_class(inside: str) -> str:
    """`[a-c]`, `[!a]` as a regular expression that stays inside one dotted part."""
    negated = inside[:1] in ("!", "^")
    spans = re.findall(r".-.|.", inside[negated:], re.DOTALL)
    if "." in inside or any(len(span) == 3 and span[0] > span[2] for span in spans):
        raise SelectorError(f"has a class [{inside}] that matches no character")
    chars = "".join("-".join(map(re.escape, span[::2])) if len(span) == 3 else re.escape(span) for span in spans)
    return rf"(?!\.)[{'^' * negated}{chars}]"


def _ends(name: str) -> list[int]:
    return [index for index, char in enumerate(name) if char == "."]
