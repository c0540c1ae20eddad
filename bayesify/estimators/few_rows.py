"""x²·std² of a linear layer for few rows, a piece of the weight at a time.

There std² takes more time than the product with it. A piece of it stays in the cache until it is multiplied, and no
tensor of the weight's size is made.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from .eager import transforming
from .pieces import PIECE
from .products import LinearProduct, Multiplication
from .softplus import write_square
from .std_forms import SOFTPLUS, Form

_MOST_ROWS = 32  # for more, one product is faster than several
_MOST_BY_ROW = 12  # up to here rows·pieceᵀ takes a third to three quarters of the time of piece·rowsᵀ, above twice it


def serves_few_rows(product: Multiplication, form: Form, parameter: Tensor, x: Tensor) -> bool:
    """Whether `product_with_squares` serves: few rows and a large weight in float32 on a CPU, without gradients."""
    if type(product) is not LinearProduct or form is not SOFTPLUS or parameter.numel() <= PIECE:
        return False
    plain = all(type(each) in (Tensor, Parameter) and each.dtype is torch.float32 for each in (parameter, x))
    few = x.numel() <= _MOST_ROWS * parameter.shape[-1]
    return few and plain and parameter.is_cpu and not torch.is_grad_enabled() and not transforming()


def product_with_squares(x: Tensor, rho: Tensor) -> Tensor:
    """x·std² for x (*, inputs) and std = softplus(rho) (outputs, inputs)."""
    outputs, inputs = rho.shape
    rows = x.reshape(-1, inputs)
    if len(rows) <= _MOST_BY_ROW:
        result = x.new_empty(len(rows), outputs)
        for at, square in _squares(rho):
            torch.mm(rows, square.T, out=result[:, at])
    else:
        columns, by_output = rows.T.contiguous(), x.new_empty(outputs, len(rows))
        for at, square in _squares(rho):
            torch.mm(square, columns, out=by_output[at])
        result = by_output.T.contiguous()
    return result.view(*x.shape[:-1], outputs)


def _squares(rho: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """softplus(rho)² for some rows after the other, all of which are written to the same memory."""
    outputs, inputs = rho.shape
    rows = min(max(PIECE * torch.get_num_threads() // inputs, 1), outputs)
    square, buffer = (rho.new_empty(rows, inputs) for _ in range(2))
    for start in range(0, outputs, rows):
        piece = rho[start : start + rows]
        own = len(piece)
        write_square(piece, square[:own], buffer[:own])
        yield slice(start, start + own), square[:own]
