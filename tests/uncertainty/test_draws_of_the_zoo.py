"""A held draw is one plain network, whatever the architecture: the one that `sample` writes out."""

from __future__ import annotations

import gc
from importlib.util import find_spec
from typing import Any

import pytest
import torch

import bayesify
from bayesify.errors import UsageError
from bayesify.nn.parametrized_weights import is_computed
from tests.models.zoo import ZOO
from tests.models.zoo_case import run
from tests.support import METHODS


@pytest.fixture(autouse=True, scope="module")
def _libraries(request: pytest.FixtureRequest) -> None:
    """timm and transformers import torchvision where it is, and fail where it does not import."""
    if find_spec("torchvision"):
        request.getfixturevalue("vision")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_a_held_draw_is_the_sampled_network(name: str, method: str) -> None:
    architecture = ZOO[name]
    model: Any = bayesify.convert(architecture.built(), method, inplace=True)
    inputs = architecture.given()
    with bayesify.posterior_mean(model):
        mean = run(model, inputs)
    with bayesify.draw(model, seed=7):
        held, again = run(model, inputs), run(model, inputs)
    for first, second in zip(held, again, strict=True):
        torch.testing.assert_close(first, second, rtol=0.0, atol=0.0, equal_nan=True)
    assert any(not torch.equal(first, second) for first, second in zip(held, mean, strict=True))
    if any(is_computed(layer, mean) for _, layer in bayesify.variational_layers(model) for mean in layer.means()):
        with pytest.raises(UsageError, match="parametrization"):
            bayesify.sample(model, seed=7)
        return
    plain = bayesify.sample(model, seed=7)
    for first, second in zip(held, run(plain, inputs), strict=True):
        scale = float(second.abs().nan_to_num().max())
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)
    gc.collect()
