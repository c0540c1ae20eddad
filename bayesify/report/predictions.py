"""How a prediction looks in a notebook: its first examples where they are numbers, else what is known of each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import torch
from torch import Tensor

from ..escaping import printable
from .posteriors import number

_FIRST = 10  # examples


def as_html(task: str | None, parts: Mapping[str, Sequence[tuple[str, object]]]) -> str:
    """A table: a line for each of the first examples, if every measure is one number for each; else one for each part.

    Args:
        parts: by measure, (place in the output, tensor or what was passed through).
    """
    tensors = {
        f"{name} {place}".rstrip(): leaf.detach()
        for name, leaves in parts.items()
        for place, leaf in leaves
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or name == "label")
    }
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    single = len(shapes) == 1 and all(len(shape) == 1 or shape[1:] == (1,) for shape in shapes)
    table = _examples(tensors) if single else _summary(tensors)
    what = f"Prediction ({task or 'plain numbers'}): " + ", ".join(sorted(map(str, shapes)))
    return f"<p><b>{escape(what)}</b></p><div style='overflow-x:auto'>{table}</div>"


def _examples(tensors: Mapping[str, Tensor]) -> str:
    count = max((len(tensor) for tensor in tensors.values()), default=0)
    rows = [[str(at), *(_number(tensor[at]) for tensor in tensors.values())] for at in range(min(count, _FIRST))]
    more = f"<p><small>and {count - _FIRST:,} more</small></p>" if count > _FIRST else ""
    return _table(["", *tensors], rows) + more


def _summary(tensors: Mapping[str, Tensor]) -> str:
    rows = []
    for name, tensor in tensors.items():
        values = tensor.double()
        told = [values.mean(), values.min(), values.max()] if values.numel() else []
        rows.append([name, str(tuple(tensor.shape)), *map(_number, told)])
    return _table(["", "shape", "mean", "least", "most"], rows)


def _number(value: Tensor) -> str:
    if value.dtype == torch.int64:
        return str(int(value))
    return number(float(value))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f"<th style='text-align:right'>{escape(printable(cell))}</th>" for cell in head)
    style = "text-align:right;font-variant-numeric:tabular-nums"
    body = "".join(
        f"<tr>{''.join(f'<td style={style!r}>{escape(printable(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
