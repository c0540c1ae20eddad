"""Every broken, foreign or malicious file is one line of help and exit code 4, and nothing in it runs."""

import builtins
import ctypes
import functools
import importlib
import operator
import os
import pickle
import pickletools
import posix
import runpy
import shutil
import socket
import subprocess
import webbrowser
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from bayesify.errors import FileRefusedError
from bayesify.files.load_model import load_model
from bayesify.files.read_weights import read_weights
from tests.files.made_files import Evil, as_old, as_zip, edit_pickle, net, safetensors_bytes, saved

WEIGHTS = {"weight": torch.ones(3)}


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(FileRefusedError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert caught.value.exit_code == 4
    assert "\n" not in text
    assert "weights_only" not in text
    assert "\x1b" not in text
    assert len(text) > 30, "says what to do"
    return text


def calls(command: str, path: str):
    """name -> (function, args) that would leave a marker, or do something else that no weights need."""
    code = f"open({path!r}, 'w')"
    return {
        "os.system": (os.system, command),
        "posix.system": (posix.system, command),
        "subprocess.Popen": (subprocess.Popen, ["sh", "-c", command]),
        "subprocess.check_output": (subprocess.check_output, ["sh", "-c", command]),
        "builtins.eval": (eval, code),
        "builtins.exec": (exec, code),
        "builtins.__import__": (builtins.__import__, "os"),
        "builtins.open": (open, path, "w"),
        "builtins.compile": (compile, code, "x", "exec"),
        "shutil.rmtree": (shutil.rmtree, path),
        "runpy.run_path": (runpy.run_path, path),
        "webbrowser.open": (webbrowser.open, "http://localhost"),
        "ctypes.CDLL": (ctypes.CDLL, "libc.so.6"),
        "socket.socket": (socket.socket,),
        "importlib.import_module": (importlib.import_module, "os"),
        "_pickle.loads": (pickle.loads, pickle.dumps(Evil(os.system, command))),
        "functools.reduce": (functools.reduce, operator.add, [1, 2]),
        "operator.methodcaller": (operator.methodcaller("system", command).__class__, "system", command),
        "torch.hub.load": (torch.hub.load, "evil/repo", "net"),
        "torch.jit._serialization.load": (torch.jit.load, path),
        "torch.serialization.load": (torch.load, path),
        "pickletools.dis": (pickletools.dis, b"."),
        "numpy.load": (np.load, path),
    }


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("name", sorted(calls("", "")))
def test_a_malicious_pickle_is_refused_by_name_without_running(name, old, file, marker):
    path, command = marker
    evil = Evil(*calls(command, str(path))[name])
    made = file(saved({**WEIGHTS, "extra": evil}, old))
    assert name.split(".", 1)[1] in refused(read_weights, made)
    model = net()
    model.extra = evil
    made = file(saved(model, old))
    for allow in ((), (name,)):
        text = refused(load_model, made, allow=allow)
        assert name.split(".", 1)[1] in text
        assert "no --allow lifts this" in text


def protocol_0(command: str) -> bytes:
    return f"cos\nsystem\n(S'{command}'\ntR.".encode()


def unicode(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def stack_global(command: str) -> bytes:
    """Protocol 4, the names by way of the memo."""
    names = b"\x80\x04" + unicode("os") + b"\x94" + unicode("system") + b"\x94" + b"00h\x00h\x01\x93"
    return names + unicode(command) + b"\x85R."


def by_getattr(command: str) -> bytes:
    return b"\x80\x02c__builtin__\ngetattr\nctorch\nos\n" + unicode("system") + b"\x86R" + unicode(command) + b"\x85R."


STREAMS = {
    "GLOBAL": protocol_0,
    "STACK_GLOBAL": stack_global,
    "INST": lambda command: f"(S'{command}'\nios\nsystem\n.".encode(),
    "OBJ": lambda command: f"(cos\nsystem\nS'{command}'\no.".encode(),
    "getattr": by_getattr,
    "dotted": lambda command: b"\x80\x02ctorch.serialization\nos.system\n" + unicode(command) + b"\x85R.",
    "dotted and foreign": lambda command: b"\x80\x02cafar.models\nos.system\n" + unicode(command) + b"\x85R.",
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("wrap", [as_zip, as_old])
def test_every_way_to_name_a_global_is_seen(stream, wrap, file, marker):
    made = file(wrap(stream(marker[1])))
    assert "system, which weights have no need of" in refused(read_weights, made)
    assert "system" in refused(load_model, made, allow=["os.system"])


class Constructed(nn.Module):
    """Pickles as a call of its class, which no saved module does."""

    def __reduce__(self):
        return (nn.Linear, (2, 2))


def test_a_module_class_that_the_file_calls_is_refused(file):
    made = file(saved(nn.Sequential(Constructed())))
    assert "calls torch.nn.modules.linear.Linear" in refused(load_model, made)


def test_a_constructor_by_way_of_a_rebuilder_is_refused(file):
    model = net()
    model.extra = Evil(torch._tensor._rebuild_from_type_v2, nn.Linear, nn.Linear, (2, 2), {})
    assert "calls torch.nn.modules.linear.Linear by way of" in refused(load_model, file(saved(model)))


class Partial:
    """Pickles as a functools.partial whose call and whose state name different functions."""

    def __init__(self, called, set_to):
        self.reduced = (functools.partial, (called,), (set_to, (), {}, None))

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("functions", [(OrderedDict, nn.LayerNorm), (nn.LayerNorm, OrderedDict), (print, print)])
def test_a_partial_of_anything_but_layers_and_activations_is_refused(functions, file):
    model = net()
    model.norm = Partial(nn.LayerNorm, nn.LayerNorm)
    assert load_model(file(saved(model))).norm.func is nn.LayerNorm
    model.norm = Partial(*functions)
    refused(load_model, file(saved(model)))


GOOD = saved(WEIGHTS)
HUGE = edit_pickle(GOOD, b"K\x03tq", b"J\xff\xff\xff\x7ftq")
FILES = {
    "empty": b"",
    "one byte": b"\x80",
    "zip magic only": b"PK\x03\x04",
    "cut zip": GOOD[: len(GOOD) // 2],
    "cut old": saved(WEIGHTS, old=True)[:-6],
    "cut old head": saved(WEIGHTS, old=True)[:40],
    "cut safetensors": safetensors_bytes(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 4),
    "safetensors header beyond the file": b"\xff\xff\0\0\0\0\0\0{",
    "storage too long": HUGE,
    "storage of negative size": edit_pickle(GOOD, b"K\x03tq", b"J\xfd\xff\xff\xfftq"),
    "old storage too long": saved(WEIGHTS, old=True).replace(b"K\x03N", b"J\xff\xff\xff\x7fN"),
    "unknown storage type": edit_pickle(GOOD, b"FloatStorage", b"EvilyStorage"),
    "compressed": edit_pickle(GOOD, b"", b"", zipfile.ZIP_DEFLATED),
    "storage missing": edit_pickle(GOOD, b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007"),
    "foreign persistent id": as_zip(b"\x80\x02X\x04\x00\x00\x00evilQ."),
    "pickle of nothing": as_zip(b"."),
    "pickle without end": as_zip(b"\x80\x02}"),
    "unknown opcode": as_zip(b"\x80\x02\xff."),
    "extension registry": as_zip(b"\x80\x02\x82\x01."),
    "python object, protocol 5": saved({"a": frozenset({1})}, pickle_protocol=5),
    "a number": saved(3),
    "no tensors": saved({"epoch": 3}),
    "optimizer only": saved({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}),
    "plain pickle": pickle.dumps({"a": 1}),
    "HTML": b"<!DOCTYPE html><html>404</html>",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    "text": b"epochs: 3\n",
    "HDF5": b"\x89HDF\r\n\x1a\n" + b"\0" * 100,
    "npy": b"\x93NUMPY\x01\x00",
    "ONNX": b"\x08\x07\x12\x07pytorch\x1a\x011",
    "GGUF": b"GGUF\x03\0\0\0",
    "tar": b"x\0" * 128 + b"\0ustar\0" + b"\0" * 300,
    "noise": bytes(range(255, 0, -1)) * 40,
}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_one_line_of_help(name, file):
    path = file(FILES[name])
    for call in (read_weights, load_model):
        assert str(path) in refused(call, path)
        refused(call, path, meta=True)


def test_a_folder_a_text_and_a_foreign_zip(tmp_path, file):
    assert "folder" in refused(load_model, tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("readme.txt", "hello")
    assert "zip" in refused(load_model, tmp_path / "a.zip")
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    assert "numpy" in refused(load_model, tmp_path / "a.npz")


def test_weights_that_were_saved_from_meta(file):
    assert "meta" in refused(read_weights, file(saved(nn.Linear(2, 2, device="meta").state_dict())))
