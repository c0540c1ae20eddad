"""What a forward computes for itself while it is traced stays small, whatever numbers a file gives it."""

import time

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.analysis.eager_work import BoundedWork, NotTraceableError


class Makes(nn.Module):
    """Computes with tensors of its own, beside its input."""

    def __init__(self, size: int, times: int = 1, how: str = "zeros") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.size, self.times, self.how = size, times, how

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            if self.how == "layer":
                made = nn.Linear(self.size, self.size).weight
            elif self.how == "outer":
                made = torch.ones(self.size, 1) * torch.ones(self.size)
            elif self.how == "repeat":
                made = torch.ones(2).repeat(self.size, self.size)
            else:
                made = torch.zeros(self.size, self.size)
        return x @ self.weight + made.flatten()[0]


@pytest.mark.parametrize("how", ["zeros", "layer", "outer", "repeat"])
def test_what_would_take_all_memory_is_not_made(how: str) -> None:
    assert bayesify.plan(Makes(4, 2, how)).rows[0].verb == "converts"
    begin = time.process_time()
    assert "computes too much" in said_of(Makes(1 << 18, how=how))
    assert time.process_time() - begin < 5


def said_of(module: nn.Module) -> str:
    row = bayesify.plan(nn.Sequential(module, nn.Linear(3, 3))).rows[0]
    assert row.verb == "blocked"
    return str(row.reason)


def test_what_would_take_all_time_is_not_done() -> None:
    begin = time.process_time()
    assert "computes too much" in said_of(Makes(2, 1 << 40))
    assert "computes too much" in said_of(Makes(1 << 11, 1 << 40))
    assert time.process_time() - begin < 20


def test_operations_compute_what_they_compute() -> None:
    torch.manual_seed(3)
    expected = torch.randn(100, 100) @ torch.ones(100, 9)
    torch.manual_seed(3)
    with BoundedWork():
        found = torch.randn(100, 100) @ torch.ones(100, 9)
        assert torch.ones(100, 100).nonzero().shape == (10_000, 2)
        assert torch.ones(1).expand(1 << 30).shape == (1 << 30,)
        assert torch.empty(1 << 30, device="meta").is_meta
        with pytest.raises(NotTraceableError):
            torch.arange(1 << 40)
    assert torch.equal(found, expected)
