"""The means of a model, followed through one forward: a product of data with one, in the user's code, is an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode

from ..errors import BypassError
from .base import Variational
from .parametrized_weights import sources
from .switches import is_quiet
from .torch_functions import BODIES, MULTIPLICATIONS, Role, role
from .user_code import OURS, user_code

READ_BESIDE = "_read_beside"  # on a model: names of layers of which the plan says that code takes their weight beside

_RECURRENT = frozenset((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu))
# files of ours below which the forwards of the user's run
_AROUND_USERS = tuple(f"{OURS}nn/{name}.py" for name in ("rerouting", "product_rerouting", "leaf_module"))


class FollowedMeans(TorchFunctionMode):
    """Follows the means of a model, and what is computed from them alone, through one forward."""

    def __init__(self, model: nn.Module, frame: FrameType) -> None:
        super().__init__()
        self.frame, self.known = frame, dict[int, tuple[Tensor, str]]()
        self.constants = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        beside, modules = vars(model).get(READ_BESIDE, ()), list(model.named_modules())
        self.modules = {module for _, module in modules}
        plain = {id(own) for _, module in modules if not _is_followed(module) for own in module._parameters.values()}
        for name, layer in modules:
            if isinstance(layer, Variational) and name not in beside and not is_quiet(layer):
                means = [mean for own in layer.means() for mean in sources(layer, own)]
                self.known.update((id(mean), (mean, name)) for mean in means if id(mean) not in plain)
        # by state_dict() and by `data` a forward gets other tensors over the same memory
        self.memory = {at: name for mean, name in self.known.values() if (at := _memory(mean)) != (0, 0)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        tensors = [each for each in _flat([*args, *kwargs.values()]) if isinstance(each, Tensor)]
        known = [each for each in tensors if self._knows(each)]
        data = [each for each in tensors if id(each) not in self.known and id(each) not in self.constants]
        if (data and not known) or not tensors or not self._is_users():
            return func(*args, **kwargs)
        if data and (func in MULTIPLICATIONS or func in BODIES or func in _RECURRENT):
            name = self.known[id(known[0])][1]
            raise BypassError(
                f"`{func.__name__}` at {user_code(sys._getframe(1))} multiplies by the weight of the "
                f"variational layer {name!r} past its noise: call the layer there, or keep it by `ignore` in the policy"
            )
        output = func(*args, **kwargs)
        outputs = [each for each in _flat([output]) if isinstance(each, Tensor) and id(each) not in self.constants]
        if not data and not known:
            self.constants.update((id(each), each) for each in outputs)
        elif not data and role(func, args, kwargs, known[0]) not in (Role.FORM, Role.ROWS):
            self.known.update((id(each), (each, self.known[id(known[0])][1])) for each in outputs)
        return output

    def _knows(self, tensor: Tensor) -> bool:
        name = None if id(tensor) in self.known or id(tensor) in self.constants else self.memory.get(_memory(tensor))
        if name is not None:
            self.known[id(tensor)] = tensor, name
        return id(tensor) in self.known

    def _is_users(self) -> bool:
        """Whether code of the user's calls, and not what a variational layer computes, or a graph that was compiled."""
        for frame in callers(sys._getframe(2)):
            place = frame.f_code.co_filename
            if frame is self.frame:
                return True
            ours = place.startswith(OURS) and place not in _AROUND_USERS
            if ours or place.startswith("<eval_with_key>") or "extern_kernels" in frame.f_globals:
                return False
        return False


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """The frame and those that called it, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_followed(module: nn.Module) -> bool:
    """Whether what multiplies by its Parameters should have their noise, or is asked about them first."""
    return isinstance(module, Variational | ParametrizationList | nn.Embedding)


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Where the tensor's numbers are, where it alone has them; (0, 0) where they lie among others or nowhere."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_meta:
        return 0, 0
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return 0, 0
    storage = tensor.untyped_storage()
    whole = storage.nbytes() == tensor.numel() * tensor.element_size()
    return (storage.data_ptr(), storage.nbytes()) if whole else (0, 0)


def _flat(values: list[Any]) -> list[Any]:
    return [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
