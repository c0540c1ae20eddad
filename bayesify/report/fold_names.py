"""Many dotted names as few: `layer1.0.conv1`, `layer1.0.conv2`, ... become `layer1.{0,1}.conv{1,2}`.

A group of names is always a full product, so that a shell's brace expansion gives back the very names; only a list of
more than 8 words is shown by its ends.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from ..escaping import printable

Item = TypeVar("Item")

_MOST_WORDS = 8  # of a list that is shown in full
_FEW = 6  # names


@dataclass(frozen=True)
class NameGroup(Generic[Item]):
    """Items whose names are one product.

    Attributes:
        tokens: the alternatives at each place of the name; a dotted part has two, its word and its trailing number.
        items: what the names belong to, in their order.
        key: only groups with equal keys are united.
        size: the sum of the items' sizes.
    """

    tokens: tuple[tuple[str, ...], ...]
    items: tuple[Item, ...]
    key: Hashable
    size: int

    @property
    def name(self) -> str:
        """The names, folded into one."""
        parts = [_braced(token) for token in self.tokens]
        return ".".join(f"{word}{number}" for word, number in zip(parts[::2], parts[1::2], strict=True))

    def is_number(self, place: int) -> bool:
        """Whether there are numbers at this place."""
        return place % 2 == 1 and self.tokens[place] != ("",)

    def is_outermost(self, place: int) -> bool:
        """Whether no number stands before this place."""
        return not any(self.is_number(before) for before in range(place))

    def is_last_word(self, place: int) -> bool:
        """Whether this place is the word that a name with a number in it ends in: the `query` of `layer.0.query`."""
        return place == len(self.tokens) - 2 and self.tokens[place] != ("",) and not self.is_outermost(place)


def fold(
    items: Iterable[Item],
    name: Callable[[Item], str],
    key: Callable[[Item], Hashable] = lambda item: None,
    size: Callable[[Item], int] = lambda item: 0,
    most: int | None = None,
) -> list[NameGroup[Item]]:
    """Group items whose names are a product, the innermost repetition first; in the order of each group's first item.

    Numbers inside a numbered block fold freely. The outermost number, and the last word, fold only where the sizes
    agree: true repetitions of a block, while the stages of a network, or the layers of a small one, keep a line each.

    Args:
        items: what to group.
        name: an item's dotted name; no two items have the same.
        key: what the items of a group must agree in.
        size: an item's size.
        most: while there are more groups than that, more folds: numbers of any size, then any word (`block_a`,
            `block_b`) where the sizes agree, then any word.
    """
    groups = [NameGroup(_tokens(name(item)), (item,), key(item), size(item)) for item in items]
    for any_word, sizes_agree in ((False, True), (False, False), (True, True), (True, False)):
        groups = _folded(groups, any_word=any_word, sizes_agree=sizes_agree)
        if most is None or len(groups) <= most:
            break
    return groups


def fold_names(names: Iterable[str]) -> list[str]:
    """The names alone, folded."""
    return [group.name for group in fold(names, str)]


def few_names(names: Iterable[str]) -> str:
    """The names folded, made safe to show, and no more than a few: `blocks.{0-3}.fc.weight, head.weight`."""
    folded = fold_names(map(printable, names))
    more = len(folded) - _FEW
    return ", ".join(folded[:_FEW]) + (f", and {more} more" if more > 0 else "")


def _tokens(name: str) -> tuple[tuple[str, ...], ...]:
    split = (re.fullmatch(r"(.*?)(\d*)", part, re.DOTALL) for part in name.split("."))
    return tuple((token,) for match in split if match for token in match.groups())


def _folded(groups: list[NameGroup[Item]], *, any_word: bool, sizes_agree: bool) -> list[NameGroup[Item]]:
    for place in reversed(range(max((len(group.tokens) for group in groups), default=0))):
        buckets: dict[Hashable, list[NameGroup[Item]]] = {}
        for index, group in enumerate(groups):
            bucket = _bucket(group, place, any_word, sizes_agree)
            buckets.setdefault(index if bucket is None else bucket, []).append(group)
        groups = [_union(bucket, place) if len(bucket) > 1 else bucket[0] for bucket in buckets.values()]
    return groups


def _bucket(group: NameGroup[Item], place: int, any_word: bool, sizes_agree: bool) -> Hashable:
    """What groups that may become one at this place agree in; None for a group that may not."""
    if place >= len(group.tokens):
        return None
    is_number, is_word = group.is_number(place), group.is_last_word(place) or (any_word and place % 2 == 0)
    if not is_number and not is_word:
        return None
    sizes_agree = sizes_agree and group.is_outermost(place) if is_number else sizes_agree or not any_word
    same_size = group.size if sizes_agree else None
    return group.key, is_number, group.tokens[:place], group.tokens[place + 1 :], same_size


def _union(groups: Sequence[NameGroup[Item]], place: int) -> NameGroup[Item]:
    first = groups[0]
    alternatives = tuple(token for group in groups for token in group.tokens[place])
    return replace(
        first,
        tokens=(*first.tokens[:place], alternatives, *first.tokens[place + 1 :]),
        items=tuple(item for group in groups for item in group.items),
        size=sum(group.size for group in groups),
    )


def _braced(alternatives: tuple[str, ...]) -> str:
    if len(alternatives) == 1:
        return alternatives[0]
    if inside := _range(alternatives):
        return f"{{{inside}}}"
    if len(alternatives) <= _MOST_WORDS or alternatives[0].isdigit():
        return f"{{{','.join(alternatives)}}}"
    columns = itertools.takewhile(lambda chars: len(set(chars)) == 1, zip(*alternatives, strict=False))
    shared = "".join(chars[0] for chars in columns)
    first, second, *_, last = (word.removeprefix(shared) for word in alternatives)
    return f"{shared}{{{first},{second},…,{last}}}"


def _range(alternatives: tuple[str, ...]) -> str | None:
    """`0..5` or `0..58..2`, where the numbers are a range and that is shorter."""
    if any(not token.isdigit() or str(int(token)) != token for token in alternatives):
        return None
    numbers = [int(token) for token in alternatives]
    step = numbers[1] - numbers[0]
    if step < 1 or numbers != list(range(numbers[0], numbers[-1] + 1, step)):
        return None
    if step == 1:
        return f"{numbers[0]}..{numbers[-1]}" if len(numbers) > 2 else None
    return f"{numbers[0]}..{numbers[-1]}..{step}" if len(numbers) > 4 else None
