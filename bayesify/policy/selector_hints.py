"""Why a selector does not fit a model, and what its author may have meant."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from ..errors import did_you_mean
from .selectors import POSITIONS, Candidate, Selector, SelectorError, class_names, classes_called, compiled, picked


def target_problem(
    selector: Selector, candidates: Sequence[Candidate], names: Collection[str], allow: bool
) -> str | None:
    """What is wrong with a target for this model, as a sentence, or None.

    Args:
        selector: the compiled target.
        candidates: every weight-bearing module of the model.
        names: every dotted name in the model.
        allow: whether it may select nothing that converts.
    """
    if problem := ambiguity(selector, names):
        return f"target {problem}"
    selected = [candidates[index] for index in sorted(picked(selector, candidates))]
    if any(candidate.able for candidate in selected):
        return None
    if (exact := _exactly(selector, selected)) and exact.blocked:
        return f"target '{selector.text}' cannot be converted: {exact.blocked}."
    if allow:
        return None
    matched = [name for name in names if selector.names(name)]
    if selected or matched:
        return f"target '{selector.text}' matches {_what(selected, matched)}."
    return f"target {_unmatched(selector, candidates, names)}"


def ignore_problem(
    selector: Selector, candidates: Sequence[Candidate], names: Collection[str], allow: bool
) -> str | None:
    """What is wrong with an ignore for this model, or None: a misspelt one would convert what it should spare."""
    if problem := ambiguity(selector, names):
        return f"ignore {problem}"
    if allow or picked(selector, candidates) or any(selector.names(name) for name in names):
        return None
    return f"ignore {_unmatched(selector, candidates, names)}"


def ambiguity(selector: Selector, names: Collection[str]) -> str | None:
    """What else a word could mean in this model: a module may be called `Linear` or `last`, and two classes alike."""
    text = selector.text
    if selector.kind == "position" and text in names:
        return (
            f"'{text}' is the {text} layer that could convert, and a module's name too: "
            f"write '{text}.**' for the module, or the layer's own name."
        )
    if selector.kind != "type":
        return None
    if text in names:
        return f"'{text}' is a class and a module's name: write 'type:{text}' or 're:{text}'."
    called = classes_called(selector.word)
    if len(called) > 1:
        paths = [f"'type:{cls.__module__}.{cls.__qualname__}'" for cls in called]
        return f"'{text}' could be {len(called)} classes: write {' or '.join(paths)}."
    return None


def counted(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _exactly(selector: Selector, selected: Sequence[Candidate]) -> Candidate | None:
    """The one layer that a plain name or a regular expression names."""
    if selector.kind == "name":
        return next((candidate for candidate in selected if selector.text in candidate.names), None)
    return selected[0] if selector.kind == "re" and len(selected) == 1 else None


def _what(selected: Sequence[Candidate], matched: Sequence[str]) -> str:
    """What a target matches, where nothing of it converts."""
    if not selected:
        return f"{counted(len(matched), 'module')}, but nothing in it has weights that could convert"
    kinds = Counter(candidate.cls.__name__ for candidate in selected)
    reasons = dict.fromkeys(candidate.blocked for candidate in selected if candidate.blocked)
    why = f": {next(iter(reasons))}" if reasons else ""
    listed = ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in kinds.items())
    return f"{counted(len(selected), 'module')} with weights, but none can be converted ({listed}{why})"


def _unmatched(selector: Selector, candidates: Sequence[Candidate], names: Collection[str]) -> str:
    """A selector that matches nothing at all, and the nearest that would."""
    if selector.kind == "type":
        present = list(dict.fromkeys(candidate.cls.__name__ for candidate in candidates))
        hint = did_you_mean(selector.word, [*class_names(), *present]) if not classes_called(selector.word) else ""
        return f"'{selector.text}' matches no layer; this model's are {', '.join(present)}.{hint}"
    hint = (
        _other_class(selector, candidates)
        or _suffix(selector, names)
        or _regex(selector, names)
        or _near(selector.text, names)
    )
    return f"'{selector.text}' matches no module.{hint}"


def _other_class(selector: Selector, candidates: Sequence[Candidate]) -> str:
    same = [candidate for candidate in candidates if candidate.cls.__name__ == selector.text]
    if not same:
        return ""
    why = f": {same[0].blocked}" if same[0].blocked else ""
    return f" {selector.text} is a class of this model's, but none that converts{why}."


def _suffix(selector: Selector, names: Collection[str]) -> str:
    """`conv2` matches only a name that starts with it: a hint to write `**.conv2` where names end in it."""
    if selector.kind not in ("name", "glob") or selector.text.startswith("**."):
        return ""
    anywhere = compiled(f"**.{selector.text}")
    count = sum(anywhere.names(name) for name in names)
    if not count:
        return ""
    verb = ("ends" if count == 1 else "end") if selector.kind == "name" else ("matches" if count == 1 else "match")
    what = f"in '.{selector.text}'" if selector.kind == "name" else "further down"
    return f" {counted(count, 'module')} {verb} {what}; write '**.{selector.text}'."


def _regex(selector: Selector, names: Collection[str]) -> str:
    """A glob that would match as a regular expression."""
    if selector.kind != "glob":
        return ""
    try:
        pattern = compiled(f"re:{selector.text}")
    except SelectorError:
        return ""
    if not any(pattern.names(name) for name in names):
        return ""
    return f" It looks like a regular expression; write 're:{selector.text}'."


def _near(text: str, names: Collection[str]) -> str:
    """The nearest name, or the same name without its first part, which wrappers add."""
    _, _, inner = text.partition(".")
    if inner in names and inner:
        return f" Did you mean '{inner}'?"
    if re.search(r"[*?\[]", text) or text.startswith("re:"):
        return ""
    return did_you_mean(text, [*filter(None, names), *sorted(class_names()), *POSITIONS])
