"""NaN and infinite weights are told: the first tensor by its name, and how many."""

import torch
from torch import nn

from bayesify.cli.source import Source
from bayesify.files.not_finite import not_finite
from tests.files.made_files import net, saved


def test_finite_weights_and_masks_are_not_told():
    model = net()
    model.register_buffer("mask", torch.full((2, 2), -torch.inf))
    assert not_finite(model) is None
    assert not_finite(nn.Linear(2, 2, device="meta")) is None
    assert not_finite(nn.LazyLinear(2)) is None


def test_the_first_tensor_and_the_count_are_told():
    model = net()
    with torch.no_grad():
        model[0].weight[0, :2] = torch.tensor([torch.nan, torch.inf])
    assert not_finite(model) == "0.weight has NaN or infinite weights (2 of 12)"
    with torch.no_grad():
        model[3].bias[0] = -torch.inf
    assert not_finite(model) == "0.weight has NaN or infinite weights (2 of 12), the first of 2 tensors that do"


def test_opening_a_file_tells_them_once(file):
    model = net()
    with torch.no_grad():
        model[0].bias[0] = torch.nan
    path = file(saved(model))
    notes = []
    Source(str(path)).open(tell=notes.append)
    assert notes == [f"{path}: 0.bias has NaN or infinite weights (1 of 3)"]
