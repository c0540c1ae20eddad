"""`predict` takes every architecture as it is, its inputs and outputs of whatever structure."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import bayesify
from tests.models.zoo import ZOO


@pytest.fixture(autouse=True, scope="module")
def _libraries(request: pytest.FixtureRequest) -> None:
    """timm and transformers import torchvision where it is, and fail where it does not import."""
    if find_spec("torchvision"):
        request.getfixturevalue("vision")


@pytest.mark.parametrize("name", ZOO)
def test_predict(name: str) -> None:
    architecture = ZOO[name]
    plain = architecture.built()
    inputs = architecture.given()
    model: Any = bayesify.convert(plain, "flipout", inplace=True)
    call = (inputs,) if isinstance(inputs, dict) else inputs
    torch.manual_seed(2)
    with torch.no_grad():
        once = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    found = bayesify.predict(model, *call, samples=3, seed=0)
    shapes = [leaf.shape for leaf in pytree.tree_leaves(once) if isinstance(leaf, torch.Tensor)]
    assert [leaf.shape for leaf in pytree.tree_leaves(found.mean) if isinstance(leaf, torch.Tensor)] == shapes
    assert type(found.mean) is type(once)
    totals = [
        leaf for leaf in pytree.tree_leaves(found.total) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    ]
    assert any((total > 0).any() for total in totals)
    assert not any((total < 0).any() for total in totals)
