"""Example inputs on the command line: `--input 2x3x224x224`, `--input ids=int:2x16`, `--input-file batch.pt`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..analysis.probe.example_inputs import ExampleInputs
from ..errors import FileRefusedError, UsageError, did_you_mean
from ..escaping import printable
from ..files.read_weights import read_content
from ..files.untrusted.placeholders import Placeholder

_FORM = re.compile(r"(?:(?P<name>[^\W\d]\w*)=)?(?:(?P<kind>\w+):)?(?P<shape>(?:\d+|N)(?:x(?:\d+|N))*)")
_KINDS = ("float", "int", "mask")
_WRITE = "write its shape, as in 2x3x224x224, int:2x16 (token numbers), mask:2x16, input_ids=int:2x16 (by keyword)"
_BATCHES = 2, 3  # what `N` stands for: two sizes tell which dimension is the batch
_DATA = (Tensor, int, float, complex, bool, str, type(None))


def given_inputs(inputs: Sequence[str], input_file: str | None) -> ExampleInputs | None:
    """The inputs that the two options describe; None where neither is given.

    Raises:
        UsageError: both are.
    """
    if inputs and input_file:
        raise UsageError("--input and --input-file both say what the model is called with: give one of them")
    return parse_inputs(inputs) if inputs else read_inputs(input_file) if input_file else None


def number_or_text(text: str | None) -> float | str | None:
    """A number as one, and anything else, a name, as it is."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def parse_inputs(texts: Sequence[str]) -> ExampleInputs:
    """The inputs that `--input` describes, one for each time that it is given: random numbers of these shapes.

    Where the batch is not the first dimension, `N` stands for it: `16xNx80` gives inputs with batches of two sizes.

    Raises:
        UsageError: a text that says no shape, an unknown kind, or inputs with and without names.
    """
    parsed = [_parse(text) for text in texts]
    names = [parts["name"] for parts in parsed]
    if None in names and any(names):
        raise UsageError("--input: give a name to each of the inputs, or to none")
    sizes = _BATCHES if any("N" in parts["shape"] for parts in parsed) else _BATCHES[:1]
    batches = [[_made(parts["kind"], parts["shape"], batch) for parts in parsed] for batch in sizes]
    calls: list[Any] = [tuple(args) if None in names else dict(zip(names, args, strict=True)) for args in batches]
    return calls if len(calls) > 1 else calls[0]


def read_inputs(path: str | PathLike[str]) -> ExampleInputs:
    """The inputs in a file of torch.save: a tensor, a tuple of arguments, a dict of keywords, or a list of two of them.

    Raises:
        FileRefusedError: broken, malicious, or with more in it than tensors and plain values.
        UsageError: there is no such file.
    """
    inputs = read_content(path)
    for leaf in pytree.tree_leaves(inputs):
        if not isinstance(leaf, _DATA) or (isinstance(leaf, Tensor) and type(leaf) is not Tensor):
            kind = printable(leaf.name) if isinstance(leaf, Placeholder) else type(leaf).__name__
            raise FileRefusedError(f"{path}: holds a {kind}; save tensors, in a tuple or a plain dict: dict(batch)")
    if not isinstance(inputs, Tensor | tuple | Mapping | list):
        raise FileRefusedError(f"{path}: holds a {type(inputs).__name__}, and no inputs of a model")
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def _parse(text: str) -> re.Match[str]:
    parts = _FORM.fullmatch(text.strip())
    if parts is None:
        raise UsageError(f"--input {text!r} is not a shape: {_WRITE}")
    kind = parts["kind"]
    if kind is not None and kind not in _KINDS:
        raise UsageError(f"--input {text!r}: there is no kind {kind!r}.{did_you_mean(kind, _KINDS)} {_WRITE}")
    return parts


def _made(kind: str | None, text: str, batch: int) -> Tensor:
    shape = [batch if size == "N" else int(size) for size in text.split("x")]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "mask":
            return torch.ones(shape, dtype=torch.bool)
        return torch.randint(0, 2, shape) if kind == "int" else torch.randn(shape)
