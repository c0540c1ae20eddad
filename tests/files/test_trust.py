"""The narrow places: what is judged by what it is, not only by where it is named."""

import enum

import numpy as np
import pytest
import torch
from torch import nn

from bayesify.files.untrusted.global_names import Name
from bayesify.files.untrusted.stand_ins import VARIABLE_FUNCTIONS, NumpyType, attribute, numpy_scalar
from bayesify.files.untrusted.trust import Refused, judge


def test_a_function_of_an_imported_module_is_never_offered_by_allow():
    assert judge(Name("numpy", "apply_along_axis"), ()) == Refused(never=True)
    assert judge(Name("numpy", "ndarray.sort"), ()) == Refused(never=True)
    assert judge(Name("afar.models", "Net"), ()) == Refused(never=False)


def test_what_a_library_only_re_exports_is_not_the_librarys(vision):
    api = __import__("torchvision.models._api", fromlist=["Enum"])
    assert api.Enum is enum.Enum
    assert judge(Name("torchvision.models._api", "Enum"), ()) == Refused()


def test_getattr_reaches_hooks_activations_and_nested_classes_only():
    lazy = nn.LazyLinear(2)
    assert attribute(lazy, "_infer_parameters") == lazy._infer_parameters
    assert attribute(VARIABLE_FUNCTIONS, "relu") is torch.relu
    for owner, name in ((lazy, "forward"), (VARIABLE_FUNCTIONS, "from_file"), (nn.Linear, "forward"), (torch, "relu")):
        with pytest.raises(ValueError, match="refused"):
            attribute(owner, name)


def test_numpy_scalars_are_numbers_of_plain_types():
    kind = NumpyType("f8", False, True)
    kind.__setstate__((3, ">", None, None, None, -1, -1, 0))
    assert numpy_scalar(kind, np.array(2.5, ">f8").tobytes()) == 2.5
    with pytest.raises(ValueError, match="refused"):
        NumpyType("O8", False, True)
