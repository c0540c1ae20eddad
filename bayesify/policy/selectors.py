"""The selectors of a policy: a string that names layers, and which layers it picks.

A selector is read in this order:

1. `re:` + a regular expression: fullmatch on a layer's dotted name, and only that very module;
2. `type:pkg.Class`, or the bare name of a class that converts: exactly that class and its Lazy twin;
3. with `*`, `?` or `[`: a glob. `*` and `?` stay inside one dotted part, `**` crosses any number of parts;
4. `first`, `last`: by order of registration among the layers that could convert;
5. else a plain name.

A name or a glob picks what it matches and everything below that. Limits: 1,000 characters; in a glob 5 `*` inside of
names (one that is a whole part does not count) and 8 parts `**`; for regular expressions see `regex_limits`.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ..regex_limits import why_slow

POSITIONS = ("first", "last")
LONGEST = 1000  # characters
MOST_STARS, MOST_DOUBLE_STARS = 5, 8

Kind = Literal["re", "type", "glob", "position", "name"]

# Cuts a glob into tokens. A whole part `**` takes its dot along, so that it can stand for no part at all.
_GLOB_TOKEN = re.compile(r"(?:^|(?<=\.))\*\*\.|\.\*\*$|\*\*|\*|\?|\[[!^]?\]?[^\]]*\]|.", re.DOTALL)
_DOUBLED = re.compile(r"(?:^|(?<=\.))\*\*\.\*\*|\*\*\.\*\*(?=\.|$)")  # `**.**`, one of them a whole part, says `**`
_WILDCARDS = {"**.": r"(?:[^.]+\.)*", ".**": r"(?:\.[^.]+)*", "**": ".*", "*": "[^.]*", "?": "[^.]"}

# What no module's name has and a regular expression often has. Not `.*` alone: `layer1.*_proj` is a good glob.
_REGEX_SIGNS = re.compile(r"\\|^\^|\$$|[()|]|\.\+|\]\+|\{\d|^\.\*|\.\.\*")


class SelectorError(ValueError):
    """A selector that cannot be read."""


@dataclass(frozen=True)
class Candidate:
    """One weight-bearing module of a model, as selectors see it.

    Attributes:
        names: all dotted names of the module, the canonical one first; the root's is "".
        cls: its class.
        convertible: whether modules of its kind can become variational.
        blocked: why this one must stay as it is nevertheless, or None.
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
        """Whether it matches a layer's names, and not its class or its position."""
        return self.kind in ("re", "glob", "name")

    def names(self, name: str) -> bool:
        """Whether it matches this very name; `covers` also answers for what is below a match."""
        if self.kind == "name":
            return name == self.text
        return self.pattern is not None and self.pattern.fullmatch(name) is not None

    def covers(self, name: str) -> bool:
        """Whether it selects the module of this name, because it matches the name or that of a module around it."""
        if self.names(name):
            return True
        return self.below and any(self.names(name[:end]) for end in _ends(name))

    def claims(self, candidate: Candidate) -> bool:
        """Whether a rule with this target may own a candidate that the target selects."""
        named = self.kind == "name" and any(self.names(name) for name in candidate.names)
        return not candidate.asked or self.kind == "type" or named

    def selects_class(self, cls: type) -> bool:
        """Whether it is a `type:` selector for this class."""
        return self.kind == "type" and (cls in self.classes or (not self.classes and _is_called(cls, self.word)))


class Candidates(tuple[Candidate, ...]):
    """A model's candidates, with indices that make thousands of rules quick."""

    @cached_property
    def below(self) -> dict[str, set[int]]:
        """The candidates with this name, or inside of the module of this name."""
        indices: dict[str, set[int]] = defaultdict(set)
        for index, candidate in enumerate(self):
            for name in candidate.names:
                for prefix in (name, *(name[:end] for end in _ends(name))):
                    indices[prefix].add(index)
        return dict(indices)

    @cached_property
    def named(self) -> dict[str, set[int]]:
        """The candidates with this very name."""
        indices: dict[str, set[int]] = defaultdict(set)
        for index, candidate in enumerate(self):
            for name in candidate.names:
                indices[name].add(index)
        return dict(indices)

    @cached_property
    def of_class(self) -> dict[type, set[int]]:
        """The candidates of exactly this class."""
        indices: dict[type, set[int]] = defaultdict(set)
        for index, candidate in enumerate(self):
            indices[candidate.cls].add(index)
        return dict(indices)

    @cached_property
    def able(self) -> frozenset[int]:
        """The candidates that a rule could convert."""
        return frozenset(index for index, candidate in enumerate(self) if candidate.able)

    @cached_property
    def picks(self) -> dict[Selector, frozenset[int]]:
        """What each selector picked that was asked for."""
        return {}


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
    if len(text) > LONGEST:
        raise SelectorError(f"has {len(text):,} characters; a selector has {LONGEST:,} at most")
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
    return Selector(text, "name", below=True)


def picked(selector: Selector, candidates: Sequence[Candidate]) -> frozenset[int]:
    """The indices of the candidates that a selector picks."""
    candidates = candidates if isinstance(candidates, Candidates) else Candidates(candidates)
    if selector not in candidates.picks:
        candidates.picks[selector] = frozenset(_picked(selector, candidates))
    return candidates.picks[selector]


def _picked(selector: Selector, candidates: Candidates) -> Iterable[int]:
    if selector.kind == "position":
        able = [index for index in sorted(candidates.able) if not candidates[index].asked]
        return able[:1] if selector.text == "first" else able[-1:]
    if selector.kind == "type":
        groups = [indices for cls, indices in candidates.of_class.items() if selector.selects_class(cls)]
    elif selector.kind == "name":
        groups = [candidates.below.get(selector.text, set())]
    else:
        names = candidates.below if selector.below else candidates.named
        groups = [indices for name, indices in names.items() if selector.names(name)]
    return set().union(*groups)


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
        pattern, slow = re.compile(text), why_slow(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise SelectorError(f"is not a regular expression: {error}") from None
    if slow:
        raise SelectorError(slow)
    return pattern


def _glob(text: str) -> re.Pattern[str]:
    text = re.sub(r"\*{3,}", "**", text)
    while (shorter := _DOUBLED.sub("**", text)) != text:
        text = shorter
    parts = text.split(".")
    stars = sum(part.count("*") for part in parts if part not in ("*", "**"))
    if stars > MOST_STARS or parts.count("**") > MOST_DOUBLE_STARS:
        most = f"{MOST_STARS} '*' inside of names at most, and {MOST_DOUBLE_STARS} parts '**'"
        raise SelectorError(f"has too many wildcards; {most}")
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
    if not spans or "." in inside or any(len(span) == 3 and span[0] > span[2] for span in spans):
        raise SelectorError(f"has a class [{inside}] that matches no character")
    chars = "".join("-".join(map(re.escape, span[::2])) if len(span) == 3 else re.escape(span) for span in spans)
    return rf"(?!\.)[{'^' * negated}{chars}]"


def _ends(name: str) -> list[int]:
    return [index for index, char in enumerate(name) if char == "."]
