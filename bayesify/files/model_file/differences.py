"""Whether a model that was opened again is the one that was saved: what a file would lose is told before it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn

from ..untrusted.hook_rules import HOOK_TABLES
from .attribute_values import form_of, same_value
from .live_nodes import named_tensors

# A module's attributes that are compared by what they mean, or made again by its class.
COMPARED_APART = {
    "_parameters", "_buffers", "_modules", "_flat_weight_refs", "_compiled_call_impl", "_reached", *HOOK_TABLES,
}  # fmt: skip
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def first_difference(model: nn.Module, opened: nn.Module, *, rebuilt: bool = False) -> str | None:
    """What the opened model lacks, or has otherwise, as a part of a sentence; None if it is the same.

    Args:
        model: the model.
        opened: what its file gives.
        rebuilt: whether code built it: its attributes have the values that the code gives them.
    """
    return next(_differences(model, opened, None if rebuilt else {}), None)


def _differences(model: nn.Module, opened: nn.Module, seen: dict[int, Any] | None) -> Iterator[str]:
    mine, theirs = (dict(root.named_modules(remove_duplicate=False)) for root in (model, opened))
    yield from (f"layer {name!r}" for name in mine if name not in theirs)
    yield from (f"layer {name!r}" for name in theirs if name not in mine)
    for name, module in mine.items():
        what = _of_module(module, theirs[name], seen)
        if what is not None:
            yield f"{what} of {name!r}" if name else what
    mine_tensors, their_tensors = dict(named_tensors(model)), dict(named_tensors(opened))
    yield from (f"tensor {name!r}" for name in mine_tensors.keys() ^ their_tensors.keys())
    for name, tensor in mine_tensors.items():
        if form_of(tensor) != form_of(their_tensors[name]):
            yield f"the form of tensor {name!r}"
    if _groups(mine_tensors) != _groups(their_tensors):
        yield "which tensors are tied"


def _of_module(module: nn.Module, opened: nn.Module, seen: dict[int, Any] | None) -> str | None:
    if type(module) is not type(opened) and not isinstance(module, fx.GraphModule):
        return f"the class {type(module).__name__}"
    if module.training != opened.training:
        return "the mode (train or eval)"
    for table in _HOOKS:
        if len(getattr(module, table)) != len(getattr(opened, table)):
            return "a hook"
    if isinstance(module, fx.GraphModule):
        return None
    mine, theirs = ({k: v for k, v in vars(one).items() if k not in COMPARED_APART} for one in (module, opened))
    lost = mine.keys() - theirs.keys()
    if seen is not None:
        lost |= {name for name in mine.keys() & theirs.keys() if not same_value(mine[name], theirs[name], seen)}
    return f"the attribute {min(lost)!r}" if lost else None


def _groups(tensors: dict[str, Tensor]) -> list[list[str]]:
    """The names that are one tensor."""
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())
