"""A net whose forward computes with its weights, which several tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo  # a checkpoint would load it while torch.fx has replaced functions of math
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Matrices of its own and a child's, a mask, and whatever is done with them."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.matrix, self.other = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3, 5))
        self.kernel, self.child, self.act = nn.Parameter(torch.randn(4, 3, 2)), nn.Linear(3, 4), forward
        self.register_buffer("mask", torch.ones(4, 3).tril())

    def forward(self, x: Tensor) -> Any:
        return self.act(self, x)


def standardized(net: Net, x: Tensor) -> Tensor:
    rows = F.batch_norm(net.kernel.reshape(1, 4, -1), None, None, training=True, momentum=0.0)
    return F.conv1d(x.mT, rows.reshape_as(net.kernel)).mT


def modulated(net: Net, x: Tensor) -> Tensor:
    weight = net.kernel * x.mean(1)[:, None, :, None]
    weight = weight * torch.rsqrt(weight.square().sum([2, 3], keepdim=True) + 1e-8)
    return F.conv1d(x.mT.reshape(1, -1, x.shape[1]), weight.view(-1, 3, 2), groups=x.shape[0])


def masked_in_place(net: Net, x: Tensor) -> Tensor:
    net.matrix.data *= net.mask
    return F.linear(x, net.matrix)


def orthogonalized_in_place(net: Net, x: Tensor) -> Tensor:
    weight = net.matrix.data / net.matrix.data.norm()
    for _ in range(20):  # what is computed of a value on many ways is looked at once
        weight = 1.5 * weight - 0.5 * weight @ weight.T @ weight
    net.matrix.data.copy_(weight)
    return F.linear(x, net.matrix)


# (what is done with an x of (2, 6, 3), which Parameters are drawn)
DRAWN: dict[str, tuple[Callable[[Net, Any], Any], set[str]]] = {
    "function": (lambda m, x: F.linear(x, m.matrix.exp()), {"matrix"}),
    "normalized": (lambda m, x: F.linear(F.normalize(x), F.normalize(m.matrix)), {"matrix"}),
    "standardized": (standardized, {"kernel"}),
    "modulated": (modulated, {"kernel"}),
    "masked in place": (masked_in_place, {"matrix"}),
    "orthogonalized in place": (orthogonalized_in_place, {"matrix"}),
    "straight through": (lambda m, x: F.linear(x, (m.matrix.sign() - m.matrix).detach() + m.matrix), {"matrix"}),
    "a product of two": (lambda m, x: F.linear(x, m.matrix @ m.other @ m.other.T), {"matrix", "other"}),
    "beside a product": (lambda m, x: F.linear(x, m.matrix) + m.matrix.logsumexp(0).sum(), {"matrix"}),
    "gathered": (lambda m, x: torch.einsum("bnd,nmd->bnm", x, m.matrix[m.mask.long()[None, 0] + x.shape[0] - 2]),
                 {"matrix"}),
    "where data stand": (lambda m, x: F.linear(m.matrix, x.mean(0)), {"matrix"}),
    "a child's": (lambda m, x: F.linear(x, F.softplus(m.child.weight), m.child.bias), {"child.weight"}),
    "on one side of a branch": (lambda m, x: F.linear(x, m.matrix) if x.dim() else x + m.matrix, {"matrix"}),
}  # fmt: skip
