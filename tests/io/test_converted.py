"""A converted model is written and opens again, in both formats, without a word of permission."""

import pytest
import torch
from files import net, saved
from torch import nn

import bayesify
from bayesify.io import load, save

MODELS = {
    "linear and norm": (net, (2, 4)),
    "convolutions": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.ConvTranspose1d(4, 3, 3)), (2, 3, 9)),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        (2, 3, 8),
    ),
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("policy", ["flipout", "lrt", "moped", "sparse", "scratch"])
@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_opens_again(name, policy, old, file, tmp_path):
    build, shape = MODELS[name]
    model, x = build().eval(), torch.randn(shape)
    converted = bayesify.convert(model, policy)
    if old:
        path = file(saved(converted, old=True))
    else:
        path = tmp_path / "converted.pt"
        save(converted, path)
    opened = load(path)
    with bayesify.posterior_mean(opened), bayesify.posterior_mean(converted):
        assert torch.equal(opened(x), converted(x))
    assert not torch.equal(opened(x), opened(x))
    assert torch.equal(opened.kl(), converted.kl())
    assert all(parameter.is_meta for parameter in load(path, meta=True).parameters())


@pytest.mark.parametrize("method", ["flipout", "lrt"])
def test_a_lazily_converted_model_opens_and_takes_shape(method, tmp_path):
    save(bayesify.convert(nn.Sequential(nn.LazyLinear(3)), method), tmp_path / "m.pt")
    opened = load(tmp_path / "m.pt")
    assert opened(torch.ones(2, 5)).shape == (2, 3)
    assert opened.kl() > 0
