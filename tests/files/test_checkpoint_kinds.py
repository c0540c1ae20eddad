"""Every kind of file that people have goes in, is converted, goes out and comes in again, bit by bit the same."""

import functools

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bayesify
from bayesify.cli.source import Source
from bayesify.errors import FileRefusedError
from tests.files.made_files import net

FACTORY = "tests.files.made_files:net"
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}


def trained() -> nn.Sequential:
    model = net()
    torch.manual_seed(1)
    model(torch.randn(8, 4))  # statistics of batches of its own
    return model.eval()


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in trained().state_dict().items()}


def exported(path) -> None:
    torch.export.save(torch.export.export(trained(), (torch.randn(3, 4),)), path)


write = functools.partial(functools.partial, lambda value, path, **kwargs: torch.save(value(), path, **kwargs))
old = functools.partial(write, _use_new_zipfile_serialization=False)

# name -> (what writes it, key of what is in it); the module itself is in those that need no factory
MODULES = {
    "a module": (write(trained), None),
    "a module in the old format": (old(trained), None),
    "a module in a checkpoint": (write(lambda: {"model": trained(), "epoch": 3, "optimizer": OPTIMIZER}), "model"),
    "an exported program": (exported, None),
    "a converted model": (lambda path: bayesify.save(bayesify.convert(trained()), path), None),
}
WEIGHTS = {
    "a state_dict": (write(lambda: trained().state_dict()), None),
    "a state_dict in the old format": (old(lambda: trained().state_dict()), None),
    "a checkpoint of a training": (
        write(lambda: {"model": trained().state_dict(), "optimizer": OPTIMIZER, "epoch": 3}), None
    ),
    "a checkpoint of Lightning": (
        write(lambda: {"state_dict": trained().state_dict(), "optimizer_states": [OPTIMIZER], "hyper_parameters": {},
                       "pytorch-lightning_version": "2.6", "callbacks": {}, "loops": {}}), None
    ),
    "of a parallel model": (write(lambda: prefixed("module.")), None),
    "of a compiled model": (write(lambda: prefixed("_orig_mod.")), None),
    "of an averaged model": (write(lambda: torch.optim.swa_utils.AveragedModel(trained()).state_dict()), None),
    "the weights of a module": (write(trained), None),
    "one of several": (write(lambda: {"ema": trained().state_dict(), "last": net().state_dict()}), "ema"),
    "safetensors": (lambda path: save_file(trained().state_dict(), path), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*MODULES, *WEIGHTS])
def test_it_goes_in_and_out_and_in_again(kind, tmp_path):
    writing, key = {**MODULES, **WEIGHTS}[kind]
    path, expected = tmp_path / "given", trained()
    writing(path)
    if kind in MODULES:
        model = Source(str(path), key=key).open()
    else:
        model = Source(FACTORY, weights=str(path), key=key).open().eval()
    converted = model if kind == "a converted model" else bayesify.convert(model)
    assert len(list(bayesify.variational_layers(converted))) == 2
    bayesify.save(converted, tmp_path / "out.pt")
    opened = bayesify.load(tmp_path / "out.pt")
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    if kind == "an exported program":
        x = x[:3]
    with bayesify.posterior_mean(opened):
        assert torch.equal(opened(x), expected(x))
    bayesify.save(bayesify.revert(opened), tmp_path / "back.pt")
    assert torch.equal(bayesify.load(tmp_path / "back.pt")(x), expected(x))


def script(path) -> None:
    torch.jit.save(torch.jit.trace(trained(), torch.ones(2, 4)), path)


def raw(path) -> None:
    import pickle

    path.write_bytes(pickle.dumps(trained()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("writing", [script, raw])
def test_what_holds_no_layers_or_is_no_file_of_torch_says_what_to_do(writing, tmp_path):
    writing(tmp_path / "given")
    for source in (Source(str(tmp_path / "given")), Source(FACTORY, weights=str(tmp_path / "given"))):
        with pytest.raises(FileRefusedError, match="state_dict"):
            source.open()
