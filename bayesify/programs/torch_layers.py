"""Plain torch layers out of the products of a program."""

from __future__ import annotations

from typing import Any

from torch import nn

from .part import Ref, Step

_CONVS: dict[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d, "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d, "conv_transpose3d": nn.ConvTranspose3d,
}  # fmt: skip
_NAMES = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
_WEIGHT, _BIAS = Ref("weight", "weight"), Ref("weight", "bias")


def put(root: nn.Module, owner: str, layer: nn.Module) -> None:
    """Put a layer in the place of the module `owner`, around its very Parameters, buffers and children."""
    module = root.get_submodule(owner)
    absent = {name: None for name, parameter in layer._parameters.items() if parameter is None}
    layer._parameters = {**module._parameters, **absent}
    layer._buffers, layer._non_persistent_buffers_set = module._buffers, module._non_persistent_buffers_set
    layer._modules = module._modules
    parent, _, leaf = owner.rpartition(".")
    root.get_submodule(parent)._modules[leaf] = layer


def torch_layer(steps: tuple[Step, ...], module: nn.Module, bias: bool) -> nn.Module | None:
    """The layer whose forward is this one step on `module`'s Parameters, on meta; None where there is no such layer."""
    (step, *more) = steps
    named = dict(zip(("input", "weight", "bias"), step.args[:3], strict=False)) | dict(step.kwargs)
    x, given = named.get("input"), named.get("bias")
    if more or not isinstance(x, Ref) or x.kind != "input" or named.get("weight") != _WEIGHT:
        return None
    if given != (_BIAS if bias else None):
        return None
    shape = module.get_parameter("weight").shape
    if step.function == "linear":
        return nn.Linear(shape[1], shape[0], bias, device="meta")
    return _conv(step, shape, bias) if step.function in _CONVS else None


def _conv(step: Step, shape: Any, bias: bool) -> nn.Module | None:
    transposed = step.function.startswith("conv_transpose")
    names = _TRANSPOSED if transposed else _NAMES
    by_name = {name: option for name, option in step.kwargs if name in names}
    options = dict(zip(names, step.args[3:], strict=False)) | by_name
    if any(
        isinstance(size, Ref)
        for value in options.values()
        for size in (value if isinstance(value, tuple) else (value,))
    ):
        return None
    dims = len(shape) - 2
    options = {name: _each(value, dims) if name != "groups" else value for name, value in options.items()}
    groups = options.get("groups", 1)
    channels = (shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0])
    made: nn.Module = _CONVS[step.function](*channels, tuple(shape[2:]), bias=bias, device="meta", **options)
    return made


def _each(value: Any, dims: int) -> Any:
    return tuple(value) * dims if isinstance(value, tuple) and len(value) == 1 else value
