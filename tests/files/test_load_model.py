"""A pickled model opens if all that it names is torch's, a known library's, bayesify's or the user's own word."""

import os
import pathlib

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from bayesify.errors import FileRefusedError, UsageError
from bayesify.files.load_model import load_model
from tests.files.made_files import net, saved


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


@pytest.mark.parametrize("gone", [None, "deleted"])
def test_a_layer_without_a_parameter_that_it_needs_is_refused_by_its_name(gone, file):
    model = net()
    model[3]._parameters["weight"] = None
    if gone:
        del model[3]._parameters["weight"]
    for meta in (False, True):
        with pytest.raises(FileRefusedError, match="layer '3' is a Linear without its weight"):
            load_model(file(saved(model)), meta=meta)


def test_a_bias_may_be_none(file):
    assert load_model(file(saved(nn.Sequential(nn.Linear(2, 2, bias=False)))))[0].bias is None


def test_a_quantized_model_is_told_as_one(tmp_path):
    kind = torch.ao.nn.quantized.dynamic.Linear
    torch.save(nn.Sequential(kind(2, 2)), tmp_path / "q.pt")
    with pytest.raises(FileRefusedError, match="holds quantized weights"):
        load_model(tmp_path / "q.pt")
