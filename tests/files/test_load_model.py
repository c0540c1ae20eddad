"""A pickled model opens if all that it names is torch's, a known library's, bayesify's or the user's own word."""

import argparse
import collections
import concurrent.futures
import datetime
import decimal
import fractions
import importlib
import os
import pathlib
import sys
import types
import uuid

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import bayesify
from bayesify.errors import FileRefusedError, UsageError
from bayesify.files.load_model import load_model
from bayesify.files.read_weights import read_weights
from bayesify.files.untrusted.global_names import Name
from bayesify.files.untrusted.trust import Refused, judge
from tests.files.made_files import as_zip, edit_pickle, net, saved

SOURCE = """
import enum, dataclasses, math
import numpy as np
from torch import nn

class Mode(enum.Enum):
    FAST = "fast"

@dataclasses.dataclass
class Config:
    width: int = 3

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.mode, self.config, self.scale = Block(), Mode.FAST, Config(), np.sqrt(np.float64(2))

class Outer:
    class Inner(nn.Module):
        pass

def helper():
    raise SystemExit
"""


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    tensors = [name for name, value in mine.items() if isinstance(value, torch.Tensor)]
    known = [name for name in tensors if not torch.nn.parameter.is_lazy(mine[name])]
    return str(one) == str(other) and list(mine) == list(theirs) and all(torch.equal(mine[n], theirs[n]) for n in known)


MODELS = {
    "plain": net,
    "half": lambda: net().half(),
    "transformer": lambda: nn.Transformer(8, 2, 1, 1, 16, activation="gelu"),
    "torch.relu": lambda: nn.TransformerEncoderLayer(8, 2, 16, activation=torch.relu),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(3), nn.LazyConv2d(3, 3), nn.LazyBatchNorm1d()),
    "weight_norm": lambda: nn.utils.weight_norm(nn.Linear(3, 3)),
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(3, 3)),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5),
    "recurrent": lambda: nn.LSTM(3, 4, 2),
    "containers": lambda: nn.ModuleDict({"a": nn.ParameterList([torch.ones(2)]), "b": nn.Embedding(3, 2)}),
    "data parallel": lambda: nn.DataParallel(net()),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(net()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("name", MODELS)
def test_torchs_own_models_open_in_both_formats(name, old, file):
    model = MODELS[name]().eval()
    path = file(saved(model, old), "model.safetensors")  # the name says nothing
    opened = load_model(path)
    assert equal(model, opened)
    assert not opened.training
    tensors = list(load_model(path, meta=True).parameters())
    assert all(tensor.is_meta for tensor in tensors if not torch.nn.parameter.is_lazy(tensor))


def test_a_lazy_model_still_takes_shape(file):
    model = load_model(file(saved(nn.Sequential(nn.LazyLinear(3)))))
    assert model(torch.ones(2, 5)).shape == (2, 3)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "tf_efficientnet_b0", "vitamin_small_224"])
def test_timm(name, file, vision):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name)
    model.act = timm.layers.activations.gelu  # as in NFNets
    opened = load_model(file(saved(model)))
    assert equal(model, opened)
    assert opened.act is model.act


VISION = {
    "resnet": lambda models: models.resnet18(),
    "functools.partial": lambda models: models.VisionTransformer(32, 16, 1, 2, 16, 32),
    "convnext": lambda models: models.ConvNeXt([models.convnext.CNBlockConfig(8, None, 2)]),
    "a function": lambda models: models.optical_flow.raft_small(),
    "plain objects": lambda models: models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None),
}


@pytest.mark.parametrize("name", VISION)
def test_torchvision(name, file, vision):
    model = VISION[name](vision.models)
    assert equal(model, load_model(file(saved(model))))


@pytest.mark.parametrize("name", ["Bert", "GPT2", "Llama", "Gemma", "Mamba", "T5", "Reformer"])
def test_transformers(name, file, vision):
    transformers = pytest.importorskip("transformers")
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    own = {
        "GPT2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50},
        "T5": {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 50, "d_kv": 8},
        "Reformer": {},
        "Gemma": {**small, "head_dim": 8, "num_key_value_heads": 2},
    }
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**own.get(name, small)))
    opened = load_model(file(saved(model)))
    assert equal(model, opened)
    assert opened.config.to_dict() == model.config.to_dict()


@pytest.fixture
def users_file(package, file):
    package.write("mypkg", SOURCE)
    with package.imported("mypkg") as models:
        return file(saved(models.Net()))


FLAGS = ["mypkg.models.Net", "mypkg.models.Block", "mypkg.models.Config", "mypkg.models.Mode"]


def test_the_users_classes_are_listed_with_the_flags_that_allow_them(users_file):
    with pytest.raises(FileRefusedError) as caught:
        load_model(users_file)
    assert all(f"--allow {flag}" in str(caught.value) for flag in FLAGS)
    assert "--allow 'mypkg.models.*'" in str(caught.value)
    assert "mypkg" not in sys.modules, "a module is never imported because a file names it"


def test_the_users_classes_open_when_allowed_by_name(users_file):
    model = load_model(users_file, allow=FLAGS)
    assert type(model).__name__ == "Net"
    assert model.mode.name == "FAST"
    assert model.config.width == 3
    assert model.scale == 2**0.5


def test_a_pattern_lets_in_modules_only(users_file):
    with pytest.raises(FileRefusedError) as caught:
        load_model(users_file, allow=["mypkg.models.*"])
    assert "--allow mypkg.models.Config" in str(caught.value)
    assert "mypkg.models.Net" not in str(caught.value)
    assert load_model(users_file, allow=["mypkg.models.*", *FLAGS[2:]]).config.width == 3


def test_a_function_is_never_allowed(package, file):
    package.write("mypkg", SOURCE)
    with package.imported("mypkg") as models:
        model = net()
        model.extra = models.helper
        path = file(saved(model))
    for allow in (["mypkg.models.helper"], ["mypkg.models.*"]):
        with pytest.raises(FileRefusedError, match=r"mypkg\.models\.helper.*no --allow lifts this"):
            load_model(path, allow=allow)


def test_a_class_in_a_class(package, file):
    package.write("mypkg", SOURCE)
    with package.imported("mypkg") as models:
        path = file(saved(models.Outer.Inner()))
    with pytest.raises(FileRefusedError, match=r"--allow mypkg\.models\.Outer\.Inner"):
        load_model(path)
    assert type(load_model(path, allow=["mypkg.models.Outer", "mypkg.models.Outer.Inner"])).__name__ == "Inner"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (b"__main__", "defined in a script"),
        (b"nowhere.models", "nowhere is not installed"),
        (b"torch.nn.modules.linaer", "importing torch.nn.modules.linaer fails"),
    ],
)
def test_a_class_that_cannot_be_found(module, words, file):
    path = file(edit_pickle(saved(net()), b"ctorch.nn.modules.linear\n", b"c" + module + b"\n"))
    with pytest.raises(FileRefusedError, match=words):
        load_model(path, allow=["nowhere.models.Linear"])


def test_a_class_that_the_library_lost_names_the_nearest(file):
    path = file(edit_pickle(saved(net()), b"linear\nLinear\n", b"linear\nLinaer\n"))
    with pytest.raises(FileRefusedError, match="Did you mean 'Linear'"):
        load_model(path)


@pytest.mark.parametrize("allow", ["*", "mypkg", "mypkg*", "mypkg.*.Net", "", "os.system()"])
def test_allow_takes_dotted_names_only(allow, file):
    with pytest.raises(UsageError, match="--allow"):
        load_model(file(saved(net())), allow=[allow])


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_weights_given_as_the_model_name_the_call_that_would_work(old, file):
    path = file(saved(net().state_dict(), old))
    with pytest.raises(FileRefusedError, match=rf"holds 9 tensors but no architecture.*--weights {path}$"):
        load_model(path)
    path = file(saved({"epoch": 3, "model_state": net().state_dict(), "args": pathlib.Path("x")}, old))
    with pytest.raises(
        FileRefusedError, match=rf"9 tensors under key 'model_state'.*--weights {path} --key model_state$"
    ):
        load_model(path)
    path = file(saved({"epoch": 3, "model": net()}, old))
    with pytest.raises(FileRefusedError, match=r"--key model$"):
        load_model(path)


def test_safetensors_given_as_the_model(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "m.pt")
    with pytest.raises(FileRefusedError, match="holds 1 tensors but no architecture"):
        load_model(tmp_path / "m.pt")


def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(net().eval(), torch.ones(2, 4)), tmp_path / "m.pt")
    with pytest.raises(FileRefusedError, match="TorchScript"):
        load_model(tmp_path / "m.pt")


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_torchs_own_reader_is_never_asked_and_no_class_becomes_safe_for_it(old, file, monkeypatch):
    path = file(saved(net(), old))
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    before = set(torch.serialization.get_safe_globals())
    load_model(path)
    assert set(torch.serialization.get_safe_globals()) == before

def test_a_module_whose_state_is_code_is_never_allowed(package, file):
    package.write("mypkg", "import torch\nclass Traced(torch.fx.GraphModule):\n    pass\n")
    path = file(as_zip(b"\x80\x02cmypkg.models\nTraced\n)\x81."))
    for allow in (["mypkg.models.Traced"], ["mypkg.models.*"]):
        with pytest.raises(FileRefusedError, match="no --allow lifts this"):
            load_model(path, allow=allow)


def test_a_librarys_module_whose_state_is_code_is_refused(vision):
    importlib.import_module("torchvision.models.feature_extraction")
    verdict = judge(Name("torchvision.models.feature_extraction", "DualGraphModule"), ())
    assert verdict == Refused()


def test_a_model_in_a_dict_is_opened_by_its_key(file):
    path = file(saved({"epoch": 3, "state": {"model": net()}, "loss": print}))
    opened = load_model(path, key="state.model")
    assert isinstance(opened, nn.Sequential)
    with pytest.raises(UsageError, match=r"nothing there. Did you mean 'state'"):
        load_model(path, key="stat")


@pytest.mark.parametrize("place", ["pipe", "/dev/null", ".", "/"])
def test_what_is_not_a_file_is_refused_at_once(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(FileRefusedError, match=r"is a (folder|pipe)"):
        load_model(place)


EVERYDAY = {
    "array": np.arange(6).reshape(2, 3), "path": pathlib.Path("a/b"), "date": datetime.datetime(2020, 1, 2),
    "zone": datetime.timezone.utc, "delta": datetime.timedelta(1), "deque": collections.deque([1, 2], 3),
    "namespace": argparse.Namespace(lr=0.1), "simple": types.SimpleNamespace(a=1),
    "counter": collections.Counter("aab"), "decimal": decimal.Decimal("1.5"),
    "defaultdict": collections.defaultdict(list, {"a": [1]}), "ordered": collections.OrderedDict(a=1), "set": {1, 2},
    "frozen": frozenset({1}), "range": range(3), "slice": slice(1, None), "complex": 1j,
    "fraction": fractions.Fraction(1, 3), "uuid": uuid.UUID(int=5), "size": torch.Size([2]), "dtype": torch.float16,
    "device": torch.device("cuda:1"), "bytes": b"ab", "bytearray": bytearray(b"ab"), "scalar": np.float32(2),
    "infinity": float("inf"), "sparse": torch.eye(3).to_sparse(), "nested": {"a": [({1: None}, "x")]},
}  # fmt: skip


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("name", EVERYDAY)
def test_everyday_attributes_are_kept(name, old, file):
    model = nn.Identity()
    model.extra = EVERYDAY[name]
    opened = load_model(file(saved(model, old)))
    assert type(opened.extra) is type(model.extra)
    if isinstance(model.extra, torch.Tensor):
        assert torch.equal(opened.extra.to_dense(), model.extra.to_dense())
    else:
        assert np.array_equal(opened.extra, model.extra) if name == "array" else opened.extra == model.extra


def test_a_generator_goes_on_where_it_was(file):
    model = nn.Identity()
    model.generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=model.generator)
    opened = load_model(file(saved(model)))
    assert torch.equal(torch.rand(3, generator=opened.generator), torch.rand(3, generator=model.generator))


def test_many_threads_open_at_once(file):
    paths = [file(saved(net()), f"{number}.pt") for number in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(isinstance(model, nn.Sequential) for model in pool.map(load_model, paths * 10))


def test_hooks_of_an_opened_model_are_not_overwritten_by_the_next(file):
    path = file(saved(bayesify.convert(net())))
    opened = load_model(path)
    for _ in range(200):
        opened[0].register_forward_hook(lambda *_: None)
    opened(torch.ones(2, 4))
    assert opened.kl(reached=True) == opened.kl()


@pytest.mark.parametrize("form", ["zip", "weights"])
def test_no_flipped_bit_passes_for_other_weights(form, file):
    value = net() if form == "zip" else net().state_dict()
    content = saved(value)
    expected = value.state_dict() if form == "zip" else value
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(0, len(content) * 8, (300,), generator=generator).tolist():
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path = file(bytes(changed))
        try:
            found = load_model(path).state_dict() if form == "zip" else read_weights(path).state_dict
        except (FileRefusedError, UsageError):
            continue
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    for size in torch.randint(0, len(content), (100,), generator=generator).tolist():
        with pytest.raises(FileRefusedError):
            read_weights(file(content[:size]))
