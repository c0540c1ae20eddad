"""A converted model is written and opens again, in both formats, without a word of permission."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import bayesify
from bayesify.errors import FileRefusedError
from bayesify.files.load_model import load_model as load
from bayesify.files.save import save
from bayesify.files.untrusted.global_names import Name
from bayesify.files.untrusted.trust import Refused, judge
from tests.files.made_files import net, saved

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(bayesify.__file__))}

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


SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F

class Projection(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4))
    def forward(self, x):
        return x @ self.matrix

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.read = Projection(), nn.Linear(4, 4)
    def forward(self, x):
        return F.linear(self.inner(x), self.read.weight)

class Scripted(torch.jit.ScriptModule):
    pass
"""

ALONE = """
import json, sys, torch, bayesify
from bayesify import load
model = load(sys.argv[1], allow=["{0}.models.*"])
x = torch.ones(2, 4)
with bayesify.posterior_mean(model):
    mean = model(x)
print(json.dumps([mean.tolist(), bool(torch.equal(model(x), mean)), float(model.kl())]))
"""


def test_rerouted_classes_open_where_their_origin_may(package, tmp_path):
    package.write("waterfall", SOURCE)
    with package.imported("waterfall") as models:
        model = bayesify.convert(models.Net().eval())
        with bayesify.posterior_mean(model):
            mean = model(torch.ones(2, 4))
        save(model, tmp_path / "net.pt")
    flags = r"--allow waterfall\.models\.Net --allow waterfall\.models\.Projection"
    with pytest.raises(FileRefusedError, match=flags) as error:
        load(tmp_path / "net.pt")
    assert "registered" not in str(error.value)
    command = [sys.executable, "-c", ALONE.format("waterfall"), str(tmp_path / "net.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    found, quiet, kl = json.loads(done.stdout)
    torch.testing.assert_close(torch.tensor(found), mean)
    assert not quiet
    assert kl == pytest.approx(float(model.kl()))


@pytest.mark.parametrize(
    "path", ["Flipout/os/system", "Flipout/torch-jit/ScriptModule", "Flipout/bayesify-nn-linear/FlipoutLinear",
             "derived", "Flipout/torch-nn/functional", "Other/torch-nn/Linear", "Flipout/torch-nn-Linear",
             "FlipoutRerouted/os/system", "Rerouted/torch-nn/Linear"],
)  # fmt: skip
def test_a_derived_class_is_trusted_no_further_than_its_origin(path):
    verdict = judge(Name("bayesify.nn", path), ["os.*", "torch.*", "bayesify.*"])
    assert isinstance(verdict, Refused)
