"""Classes of the user's own in a model file: listed, allowed by name, found or not."""

import importlib
import sys

import pytest

from bayesify.errors import FileRefusedError, UsageError
from bayesify.files.load_model import load_model
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
