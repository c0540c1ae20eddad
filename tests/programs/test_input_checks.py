"""What a converted program is called with: held to what it was exported for, and where its batch is."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export

import bayesify
from bayesify.errors import UsageError
from bayesify.programs.batch_dimension import batch_of


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x, y, flag=True):
        return self.fc(x).reshape(-1, 3) + y


@pytest.fixture(scope="module")
def model():
    batch = {0: Dim("batch", min=3, max=8)}
    given = (torch.randn(3, 4), torch.randn(3, 3), True)
    return bayesify.convert(export(Net(), given, dynamic_shapes=(batch, batch, None)))


@pytest.mark.parametrize("size", [3, 8])
def test_sizes_within_the_bounds_pass(size, model):
    assert model(torch.randn(size, 4), torch.randn(size, 3), True).shape == (size, 3)


@pytest.mark.parametrize(
    ("x", "y", "flag", "told"),
    [
        ((2, 4), (2, 3), True, "at least 3"),
        ((9, 4), (9, 3), True, "at most 8"),
        ((5, 4), (1, 3), True, r"y has shape \(1, 3\); the program was exported for \(s\d+, 3\) with s\d+=5"),
        ((5, 5), (5, 3), True, r"x has shape \(5, 5\)"),
        ((5, 2, 4), (5, 3), True, r"x has shape \(5, 2, 4\)"),
        ((5, 4), (5, 3), False, "flag=True, and not for False"),
    ],
)
def test_other_inputs_are_refused_in_words(x, y, flag, told, model):
    with pytest.raises(UsageError, match=told):
        model(torch.randn(x), torch.randn(y), flag)


def test_what_is_no_tensor_is_refused(model):
    with pytest.raises(UsageError, match="x must be a tensor"):
        model(5, torch.randn(5, 3), True)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x):
        q, k, v = self.qkv(x).transpose(0, 1).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x).mean(0)


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(x.permute(3, 2, 0, 1)).permute(2, 3, 1, 0)


@pytest.mark.parametrize(
    ("net", "shape", "dynamic", "dim"),
    [(Attention, (5, 3, 4), (0, 1), 1), (Pooled, (5, 3, 4), (0, 1), 1), (Images, (6, 7, 3, 2), (0, 1, 3), 3)],
)
def test_of_several_dynamic_sizes_the_batch_is_the_one_that_the_program_treats_as_such(net, shape, dynamic, dim):
    sizes = {size: Dim(f"size{size}", min=2, max=64) for size in dynamic}
    program = export(net(), (torch.randn(shape),), dynamic_shapes=(sizes,))
    assert batch_of(program.module().graph).dim == dim
