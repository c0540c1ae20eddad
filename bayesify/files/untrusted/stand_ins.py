"""What stands in for a global that a pickle names but that must not get the real thing.

torch's weights_only reader takes a mapping from dotted names to objects, so that a name can be given a narrower object.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import nn

from .global_names import words

# `torch.relu` is pickled as getattr(torch._C._VariableFunctionsClass, "relu"), `nn.functional.relu` by its own name
ACTIVATIONS = words("""
    relu relu_ relu6 gelu silu silu_ elu elu_ selu selu_ celu leaky_relu leaky_relu_ softplus softsign mish hardswish
    hardtanh hardsigmoid tanh tanhshrink sigmoid logsigmoid softmax log_softmax softmin glu rrelu prelu tanh_ sigmoid_
    sin cos exp square normalize pairwise_distance cosine_similarity interpolate
""")
HOOKS = words("_infer_parameters _lazy_load_hook load_hook")
VARIABLE_FUNCTIONS: Any = vars(torch._C)["_VariableFunctionsClass"]  # not in torch's type stubs


def attribute(owner: Any, name: str) -> Any:
    """In place of `builtins.getattr`: torch's own activations, lazy layers' hooks and nested classes, nothing else."""
    if owner is VARIABLE_FUNCTIONS and name in ACTIVATIONS:
        return getattr(torch, name)
    if isinstance(owner, nn.Module) and name in HOOKS:
        return getattr(owner, name)
    inner = vars(owner).get(name) if isinstance(owner, type) else None
    if isinstance(inner, type) and inner.__qualname__ == f"{owner.__qualname__}.{name}":
        return inner  # the listing has it as a global of its own, judged as any other
    raise ValueError(f"getattr(..., {name!r}) is refused")


def class_of_note(kind: str, cls: type, file: str, source: str) -> type:
    """The class of an old-format note ("module", class, file, source) about its source code."""
    return cls


class NumpyType:
    """In place of `numpy.dtype`: the code of a plain number."""

    def __init__(self, code: str, *flags: bool) -> None:
        if not re.fullmatch(r"[biufc]\d{1,2}", code):
            raise ValueError(f"numpy type {code!r} is refused")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


def numpy_scalar(kind: NumpyType, content: bytes) -> Any:
    """In place of numpy's `scalar`: a number of a plain type."""
    return np.frombuffer(content, kind.dtype, count=1)[0]
