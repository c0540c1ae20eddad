"""What is done in the place of each of torch's functions that a pickled tensor names. None of them is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from ...errors import FileRefusedError
from .builder import Builder, Rule, all_of, is_data, refuse_extras
from .content import NO_ALLOW, SHORT
from .global_names import Name, words
from .nodes import Call
from .tensors import parameter, with_gradient, with_marks


def _tensor(builder: Builder, node: Call) -> Tensor:
    """`_rebuild_tensor(storage, offset, size, stride)` and its successors, which take more."""
    refuse_extras(node)
    _, offset, size, stride, *more = builder.args(node, 4, 8)
    memory = builder.memory(node.args[0])
    assert isinstance(node.maker, Name)
    later = node.maker.qualname.rpartition("_")[2]
    requires_grad, hooks, *rest = more if later in ("v2", "v3") and len(more) > 1 else (False, None)
    dtype = rest.pop(0) if later == "v3" and rest else None
    if hooks or len(rest) > 1:
        raise FileRefusedError(f"has hooks on a tensor, which torch never saves; {SHORT}")
    made = builder.tensors.strided(memory, offset, size, stride, dtype)
    return with_gradient(with_marks(made, rest[0] if rest else None), requires_grad)


def _parameter(builder: Builder, node: Call) -> Any:
    refuse_extras(node)
    data, requires_grad, hooks, *state = builder.args(node, 3, 4)
    if hooks:
        raise FileRefusedError(f"has hooks on a Parameter, which torch never saves; {SHORT}")
    return _with_state(parameter(data, requires_grad), state[0] if state else None)


def _bare_parameter(builder: Builder, node: Call) -> Parameter:
    """`Parameter(data, requires_grad)`, as torch wrote it once."""
    refuse_extras(node)
    data, requires_grad = (*builder.args(node, 1, 2), True)[:2]
    return parameter(data, requires_grad)


def _of_type(builder: Builder, node: Call) -> Any:
    """`_rebuild_from_type_v2(function, type, args, state)`: a tensor of a subclass, or with attributes of its own."""
    refuse_extras(node)
    if len(node.args) != 4:
        raise FileRefusedError(f"calls {node.maker} as saved files never do; {SHORT}")
    function, kind, args, state = node.args
    if not isinstance(function, Name) or str(function) not in TENSOR_RULES or "._rebuild_" not in str(function):
        raise FileRefusedError(
            f"calls {function if isinstance(function, Name) else 'what it made'} by way of {node.maker}, which saved "
            f"models never do; {NO_ALLOW}"
        )
    if not isinstance(kind, Name) or str(kind) not in _TENSOR_TYPES or not isinstance(args, tuple):
        raise FileRefusedError(f"has a tensor of the class {kind}, which is not torch's own; save it as a plain tensor")
    made = builder.value(Call(function, args, new=False))
    if str(kind).endswith(".Parameter") and not isinstance(made, Parameter):
        made = parameter(made, made.requires_grad)
    return _with_state(made, builder.value(state))


def _with_state(tensor: Any, state: Any) -> Any:
    """The tensor with plain attributes of its own."""
    if isinstance(state, tuple) and len(state) == 2 and not state[1]:
        state = state[0]
    for name, value in (state or {}).items() if isinstance(state, Mapping | None) else [(None, None)]:
        if not isinstance(name, str) or name.startswith("__") or hasattr(Tensor, name) or not is_data(value):
            raise FileRefusedError(f"has a tensor with an attribute {str(name)[:80]!r}, which it cannot carry; refused")
        setattr(tensor, name, value)
    return tensor


def _sparse(builder: Builder, node: Call) -> Tensor:
    refuse_extras(node)
    return builder.tensors.sparse(*builder.args(node, 2))


def _meta(builder: Builder, node: Call) -> Tensor:
    refuse_extras(node)
    dtype, size, stride, requires_grad = builder.args(node, 4)
    return with_gradient(builder.tensors.on_meta(dtype, size, stride), requires_grad)


def _moved(builder: Builder, node: Call) -> Tensor:
    """A tensor of a device whose memory torch saves by way of the CPU's: here it stays there."""
    refuse_extras(node)
    data, dtype, _, requires_grad = builder.args(node, 4)
    if not isinstance(data, Tensor) or data.dtype != dtype:
        raise FileRefusedError(f"describes a tensor that cannot be; {SHORT}")
    return with_gradient(data.detach(), requires_grad)


def _size(builder: Builder, node: Call) -> torch.Size:
    refuse_extras(node)
    (sizes,) = builder.args(node, 1)
    return torch.Size(all_of(sizes if isinstance(sizes, tuple | list) else [None], int))


def _device(builder: Builder, node: Call) -> torch.device:
    refuse_extras(node)
    kind, *index = all_of(builder.args(node, 1, 2), str | int)
    try:
        return torch.device(kind, *index) if index else torch.device(kind)
    except RuntimeError:
        raise FileRefusedError(f"has a device {str(kind)[:40]!r}, which torch has not") from None


def _layout(builder: Builder, node: Call) -> torch.layout:
    refuse_extras(node)
    (name,) = builder.args(node, 1)
    layout = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else None
    if not isinstance(layout, torch.layout):
        raise FileRefusedError(f"has a layout that torch has not; {SHORT}")
    return layout


_TENSOR_TYPES = words("torch.Tensor torch._C.TensorBase torch.nn.parameter.Parameter torch.nn.parameter.Buffer")

TENSOR_RULES: dict[str, Rule] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _bare_parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _moved,
    "torch.serialization._get_layout": _layout,
    "torch.Size": _size,
    "torch.device": _device,
}
