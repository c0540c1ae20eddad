"""Models and policies that the tests of conversion share."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from tests.nets import SmallResNet, Tangled, image, tokens

VARIATIONAL_BIAS = {"method": "flipout", "bias": "variational"}
METHODS = ("flipout", "lrt")
MODELS: dict[str, tuple[Any, Any]] = {"resnet": (SmallResNet, image), "tangled": (Tangled, tokens)}
KINDS = pytest.mark.parametrize(("make", "data"), MODELS.values(), ids=MODELS)


def encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


POLICIES = ["flipout", "moped", "scratch", "sparse", VARIATIONAL_BIAS]
