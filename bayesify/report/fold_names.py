"""Many dotted names as few: `layer1.0.conv1`, `layer1.0.conv2`, ... become `layer1.{0,1}.conv{1,2}`.

A fold is always a full product, so that a shell's brace expansion gives back the very names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Fold(Generic[Item]):
    """Items whose names are one product.

    Attributes:
        tokens: the alternatives at each place of the name; a dotted part has two, its word and its trailing number.
        items: what the names belong to, in their order.
        key: only folds of one key are folded together.
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
) -> list[Fold[Item]]:
    """Fold items whose names are a product, the innermost repetition first; in the order of each fold's first item.

    Numbers inside a numbered block fold freely. The outermost number, and words, fold only where the sizes agree: true
    repetitions of a block, while the stages of a network, or the layers of a small one, keep a line each.

    Args:
        items: what to fold.
        name: an item's dotted name; no two items have the same.
        key: what items that are folded together must agree in.
        size: an item's size.
        most: if there are more folds than that, sizes no longer have to agree.
    """
    found = [Fold(_tokens(name(item)), (item,), key(item), size(item)) for item in items]
    tight = _folded(found, sizes_agree=True)
    return tight if most is None or len(tight) <= most else _folded(tight, sizes_agree=False)


def fold_names(names: Iterable[str]) -> list[str]:
    """The names alone, folded."""
    return [each.name for each in fold(names, str)]


def _tokens(name: str) -> tuple[tuple[str, ...], ...]:
    split = (re.fullmatch(r"(.*?)(\d*)", part, re.DOTALL) for part in name.split("."))
    return tuple((token,) for match in split if match for token in match.groups())


def _folded(folds: list[Fold[Item]], *, sizes_agree: bool) -> list[Fold[Item]]:
    for place in reversed(range(max((len(each.tokens) for each in folds), default=0))):
        buckets: dict[Hashable, list[Fold[Item]]] = {}
        for index, each in enumerate(folds):
            buckets.setdefault(_bucket(each, place, sizes_agree) or index, []).append(each)
        folds = [_union(bucket, place) if len(bucket) > 1 else bucket[0] for bucket in buckets.values()]
    return folds


def _bucket(each: Fold[Item], place: int, sizes_agree: bool) -> Hashable:
    """What folds that may become one at this place agree in; None for a fold that may not."""
    if place >= len(each.tokens):
        return None
    number, word = each.is_number(place), each.is_last_word(place)
    if not number and not word:
        return None
    same_size = each.size if word or (sizes_agree and each.is_outermost(place)) else None
    return each.key, number, each.tokens[:place], each.tokens[place + 1 :], same_size


def _union(folds: Sequence[Fold[Item]], place: int) -> Fold[Item]:
    first = folds[0]
    alternatives = tuple(token for each in folds for token in each.tokens[place])
    return replace(
        first,
        tokens=(*first.tokens[:place], alternatives, *first.tokens[place + 1 :]),
        items=tuple(item for each in folds for item in each.items),
        size=sum(each.size for each in folds),
    )


def _braced(alternatives: tuple[str, ...]) -> str:
    if len(alternatives) == 1:
        return alternatives[0]
    ranged = _range(alternatives)
    return f"{{{ranged or ','.join(alternatives)}}}"


def _range(alternatives: tuple[str, ...]) -> str | None:
    """`0..5` or `0..58..2`, where it is one and says it shorter."""
    if any(not each.isdigit() or str(int(each)) != each for each in alternatives):
        return None
    numbers = [int(each) for each in alternatives]
    step = numbers[1] - numbers[0]
    if step < 1 or numbers != list(range(numbers[0], numbers[-1] + 1, step)):
        return None
    if step == 1:
        return f"{numbers[0]}..{numbers[-1]}" if len(numbers) > 2 else None
    return f"{numbers[0]}..{numbers[-1]}..{step}" if len(numbers) > 4 else None
