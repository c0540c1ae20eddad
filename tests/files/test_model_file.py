"""A file of ours gives the model back, whole: from its structure, or around a network that somebody else built."""

import json
import pathlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, prune

import bayesify
from bayesify.errors import FactoryError, FileRefusedError, UsageError
from bayesify.files.model_file.conversion import EXTRAS
from bayesify.files.read_weights import read_weights
from tests.files.made_files import net


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.read = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.read.weight = self.table.weight
        self.register_buffer("mask", torch.arange(4.0), persistent=False)
        self.register_buffer("steps", torch.tensor(3))
        self.offset = nn.Parameter(torch.ones(4), requires_grad=False)
        self.shared = self.mask[1:3]

    def forward(self, ids):
        return self.read(self.table(ids) * self.mask + self.offset)


class Carrying(nn.Module):
    """Holds a function, which is not data."""

    def __init__(self, width=3):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 2))
        self.act = lambda x: x.relu()

    def forward(self, x):
        return self.act(self.inner(x))


MODELS = {
    "mlp": (net, lambda: torch.randn(5, 4)),
    "tied": (Tied, lambda: torch.arange(6).reshape(2, 3)),
    "carrying": (Carrying, lambda: torch.randn(5, 2)),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.Flatten(), nn.Linear(64, 2)),
        lambda: torch.randn(2, 3, 6, 6),
    ),
    "recurrent": (lambda: nn.LSTM(3, 4, 2), lambda: torch.randn(5, 2, 3)),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        lambda: torch.randn(2, 3, 8),
    ),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3)), nn.Linear(3, 2)), lambda: torch.randn(5, 2)
    ),
    "pruned": (
        lambda: nn.Sequential(prune.l1_unstructured(nn.Linear(2, 3), "weight", 0.5)), lambda: torch.randn(5, 2)
    ),
    "half": (lambda: net().bfloat16(), lambda: torch.randn(5, 4).bfloat16()),
}  # fmt: skip
NOT_DATA = {"carrying", "weight norm"}


def same(one: nn.Module, other: nn.Module, x: torch.Tensor) -> None:
    torch.manual_seed(1)
    noisy = one(x)
    torch.manual_seed(1)
    torch.testing.assert_close(other(x), noisy, rtol=0, atol=0)
    assert torch.equal(one.kl(), other.kl())
    for mine, theirs in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert mine[0] == theirs[0]
        assert torch.equal(mine[1], theirs[1])
    mine, theirs = (list(model.named_parameters(remove_duplicate=False)) for model in (one, other))
    assert [(name, p.requires_grad) for name, p in mine] == [(name, p.requires_grad) for name, p in theirs]
    assert len(list(one.parameters())) == len(list(other.parameters()))
    assert [type(m) for m in one.modules()] == [type(m) for m in other.modules()] or "Parametrized" in str(one)
    assert [m.training for m in one.modules()] == [m.training for m in other.modules()]


@pytest.mark.parametrize("method", ["flipout", "lrt"])
@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_comes_back_from_its_structure(name, method, tmp_path):
    build, inputs = MODELS[name]
    model = bayesify.convert(build().eval(), method)
    path = tmp_path / "m.pt"
    if name in NOT_DATA:
        with pytest.raises(UsageError, match=r"factory='package.module:callable'.*structure=False.*into=network"):
            bayesify.save(model, path)
        assert not path.exists()
        return
    bayesify.save(model, path)
    same(model, bayesify.load(path, allow=["tests.files.test_model_file.*"]), inputs())
    assert b"pickle" not in path.read_bytes()
    assert all(torch.equal(value.flatten().view(torch.uint8), model.state_dict()[key].flatten().view(torch.uint8))
               for key, value in load_file(path).items()
               if key in model.state_dict() and value.dtype == model.state_dict()[key].dtype)  # fmt: skip


@pytest.mark.parametrize("method", ["flipout", "lrt"])
@pytest.mark.parametrize("name", MODELS)
def test_it_comes_back_around_the_callers_own_network(name, method, tmp_path):
    build, inputs = MODELS[name]
    model = bayesify.convert(build().eval(), method)
    bayesify.save(model, tmp_path / "m.pt", structure=False)
    network = build()
    opened = bayesify.load(tmp_path / "m.pt", into=network)
    assert opened is network
    same(model, opened, inputs())
    same(model, bayesify.load(tmp_path / "m.pt", factory=build), inputs())
    with pytest.raises(FileRefusedError, match="into=network"):
        bayesify.load(tmp_path / "m.pt")


def test_a_network_of_the_meta_device_takes_the_files_memory(tmp_path):
    model = bayesify.convert(net())
    bayesify.save(model, tmp_path / "m.pt")
    with torch.device("meta"):
        network = net()
    same(model, bayesify.load(tmp_path / "m.pt", into=network), torch.randn(5, 4))


OTHERS = {
    "a layer less": (lambda: nn.Sequential(*net()[:3]), "has a layer '3', which the network that was given has not"),
    "a layer more": (lambda: net().append(nn.ReLU()), "layer '4' is not in the file"),
    "another layer": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.GELU(), nn.Linear(3, 2)), "layer '2' is a .*ReLU"
    ),
    "wider": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)),
        r"0.weight is \(3, 4\), and \(5, 4\) in the network",
    ),
    "without a bias": (
        lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)),
        "has a tensor '0.bias', which the network has not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_network_is_refused_by_what_differs(name, tmp_path):
    bayesify.save(bayesify.convert(net()), tmp_path / "m.pt")
    build, words = OTHERS[name]
    with pytest.raises(FileRefusedError, match=words):
        bayesify.load(tmp_path / "m.pt", into=build())


def test_tied_weights_stay_tied_and_others_are_not_made_so(tmp_path):
    bayesify.save(bayesify.convert(Tied()), tmp_path / "tied.pt", structure=False)
    untied = Tied()
    untied.read = nn.Linear(4, 7, bias=False)
    opened = bayesify.load(tmp_path / "tied.pt", into=untied)
    assert opened.read.weight is opened.table.weight
    bayesify.save(bayesify.convert(_untied()), tmp_path / "untied.pt", structure=False)
    with pytest.raises(FileRefusedError, match=r"table.weight and read.weight are one tensor in the network"):
        bayesify.load(tmp_path / "untied.pt", into=Tied())


def _untied():
    model = Tied()
    model.read = nn.Linear(4, 7, bias=False)
    return model


FACTORY = "tests.files.test_model_file:Carrying"


def test_a_factory_that_the_file_names_runs_at_the_callers_word_only(tmp_path):
    model, path = bayesify.convert(Carrying(width=4)), tmp_path / "m.pt"
    bayesify.save(model, path, factory=FACTORY, args={"width": 4})
    with pytest.raises(FileRefusedError, match=rf"is built by {FACTORY}.*--allow {FACTORY}.*factory='{FACTORY}'"):
        bayesify.load(path)
    same(model, bayesify.load(path, allow=FACTORY), torch.randn(5, 2))
    same(model, bayesify.load(path, factory=FACTORY), torch.randn(5, 2))
    same(model, bayesify.load(path, factory=Carrying, args={"width": 4}), torch.randn(5, 2))
    with pytest.raises(FileRefusedError, match="in the network"):
        bayesify.load(path, factory=Carrying, args={})
    with pytest.raises(FactoryError):
        bayesify.load(path, factory="tests.files.test_model_file:Carying")


def test_a_factory_that_builds_another_network_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="with its factory, the file would not open again"):
        bayesify.save(bayesify.convert(Carrying(4)), tmp_path / "m.pt", factory=FACTORY)
    with pytest.raises(UsageError, match="plain values"):
        bayesify.save(bayesify.convert(Carrying(4)), tmp_path / "m.pt", factory=FACTORY, args={"width": object()})
    with pytest.raises(UsageError, match=r"package.module:callable"):
        bayesify.save(bayesify.convert(Carrying(4)), tmp_path / "m.pt", factory="Carrying")
    assert list(tmp_path.iterdir()) == []


NOTEBOOK = """
import sys, torch, bayesify
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
    def forward(self, x):
        return self.fc(x)
model = bayesify.convert(nn.Sequential(Net(), nn.Linear(2, 2)))
try:
    bayesify.save(model, sys.argv[1])
except bayesify.BayesifyError as error:
    assert "structure=False" in str(error), error
bayesify.save(model, sys.argv[1], structure=False)
opened = bayesify.load(sys.argv[1], into=nn.Sequential(Net(), nn.Linear(2, 2)))
assert torch.equal(opened.kl(), model.kl())
"""


def test_a_class_of_a_notebook_goes_out_and_in_again(tmp_path):
    root = pathlib.Path(bayesify.__file__).parents[1]
    command = [sys.executable, "-c", NOTEBOOK, str(tmp_path / "m.pt")]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(root)}, check=False)
    assert done.returncode == 0, done.stderr


def test_what_was_added_to_a_program_is_not_lost_in_silence(tmp_path):
    program = torch.export.export(net().eval(), (torch.randn(2, 4),))
    model = bayesify.convert(program)
    bayesify.save(model, tmp_path / "m.pt")
    for add in (
        lambda m: setattr(m, "head", nn.Linear(2, 2)),
        lambda m: m.register_parameter("scale", nn.Parameter(torch.ones(2))),
        lambda m: m.register_forward_hook(print),
    ):
        changed = bayesify.convert(program)
        add(changed)
        with pytest.raises(UsageError, match=r"the file would lose|would not open again|cannot be pickled"):
            bayesify.save(changed, tmp_path / "n.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_plan_versions_and_extras_are_kept(tmp_path):
    plan = bayesify.plan(net(), "lrt")
    model = bayesify.convert(net(), "lrt")
    vars(model)[EXTRAS] = {"calibration": {"temperature": 1.5}}
    bayesify.save(model, tmp_path / "m.pt")
    content = (tmp_path / "m.pt").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    kept = json.loads(header["__metadata__"]["bayesify"])
    assert kept["plan"] == json.loads(json.dumps(plan.to_dict()))
    assert kept["versions"]["torch"] == torch.__version__
    assert vars(bayesify.load(tmp_path / "m.pt"))[EXTRAS] == {"calibration": {"temperature": 1.5}}
    assert vars(bayesify.load(tmp_path / "m.pt", into=net()))[EXTRAS] == {"calibration": {"temperature": 1.5}}


def test_its_weights_are_read_by_name(tmp_path):
    model = bayesify.convert(Tied())
    bayesify.save(model, tmp_path / "m.pt")
    found = read_weights(tmp_path / "m.pt").state_dict
    assert set(model.state_dict()) <= set(found)
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_a_plain_model_is_written_for_any_program_that_knows_torch(tmp_path):
    bayesify.save(bayesify.revert(bayesify.convert(net())), tmp_path / "m.pt")
    assert isinstance(torch.load(tmp_path / "m.pt", weights_only=False), nn.Sequential)


def test_it_goes_to_a_device(tmp_path):
    bayesify.save(bayesify.convert(net()), tmp_path / "m.pt")
    assert next(bayesify.load(tmp_path / "m.pt", map_location="meta").parameters()).is_meta


def test_wrong_calls_are_answered_with_what_was_meant(tmp_path):
    with pytest.raises(UsageError, match="save takes a model"):
        bayesify.save(None, tmp_path / "m.pt")
    bayesify.save(bayesify.convert(net()), tmp_path / "m.pt")
    with pytest.raises(UsageError, match="give one of them"):
        bayesify.load(tmp_path / "m.pt", into=net(), factory=net)


@pytest.mark.parametrize("seed", range(3))
def test_every_flipped_bit_is_seen(seed, tmp_path):
    model = bayesify.convert(net())
    bayesify.save(model, tmp_path / "m.pt")
    content = (tmp_path / "m.pt").read_bytes()
    generator = torch.Generator().manual_seed(seed)
    for place in torch.randint(0, len(content) * 8, (100,), generator=generator).tolist():
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        (tmp_path / "f.pt").write_bytes(changed)
        try:
            opened = bayesify.load(tmp_path / "f.pt")
        except FileRefusedError:
            continue
        pairs = zip(opened.state_dict().values(), model.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    for size in torch.randint(0, len(content), (33,), generator=generator).tolist():
        (tmp_path / "f.pt").write_bytes(content[:size])
        with pytest.raises(FileRefusedError):
            bayesify.load(tmp_path / "f.pt")
