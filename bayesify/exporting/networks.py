"""What is exported, as modules that torch.export traces: one forward pass, and the summary of several."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import UsageError
from ..nn.held_draws import HeldDraws
from ..nn.switches import switched
from ..uncertainty.calibration import Calibration
from ..uncertainty.measures import measure, triple
from ..uncertainty.observation_noise import Noise, split_noise
from ..uncertainty.outputs import flattened, picked
from ..uncertainty.prediction import Task, is_float
from .tensor_call import TensorCall, as_name

Mode = Literal["mean", "noise", "samples", "draws"]
_FIELDS: dict[Task | None, dict[str, str]] = {
    "classification": {"probability": "mean", "entropy": "total", "mutual_information": "epistemic"},
    "regression": {"mean": "mean", "variance": "total", "epistemic": "epistemic"},
    None: {"mean": "mean", "variance": "total"},
}


@dataclass(frozen=True)
class Asked:
    """What is read off the model's output, as `predict` is asked for it.

    Attributes:
        task, output, dim, noise: as `predict` has them, the noise settled.
        fitted: what `calibrate` fitted for this task, if it did.
    """

    task: Task | None
    output: str | int | None
    dim: int
    noise: Noise
    fitted: Calibration | None

    def measured(self, output: Any) -> tuple[Any, Tensor | None]:
        """The part of an output that is summed up over passes, and the log-variance around it."""
        part, log_variance = split_noise(output, self.noise, self.output, self.dim)
        return (part, log_variance) if self.fitted is None else self.fitted.applied(part, log_variance)


class Pass(nn.Module):
    """One forward pass, from the tensors of a call to those of the output.

    `forward` takes the number of the pass first, (1,) of int64, which means something where draws are held: theirs.
    """

    def __init__(self, model: nn.Module, call: TensorCall, asked: Asked, *, summed_up: bool) -> None:
        super().__init__()
        self.model, self.call, self.asked, self.summed_up = model, call, asked, summed_up

    def forward(self, number: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The output's tensors; of what is summed up, the floating point ones and last the log-variance, if any."""
        output = self._run(number, tensors)
        if not self.summed_up:
            leaves = pytree.tree_leaves(picked(output, self.asked.output))
            return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        part, log_variance = self.asked.measured(output)
        leaves, _ = flattened(part, type(self.model).__name__)
        kept = tuple(leaf for leaf in leaves if is_float(leaf))
        return kept if log_variance is None else (*kept, log_variance)

    def output_names(self) -> tuple[str, ...]:
        """The names of the output's tensors, or of what is summed up of each: where it is, in the model's output."""
        output = self._run(torch.zeros(1, dtype=torch.int64), self.call.tensors)
        part = self.asked.measured(output)[0] if self.summed_up else picked(output, self.asked.output)
        keyed, _ = pytree.tree_flatten_with_path(part)
        kept = [path for path, leaf in keyed if (is_float(leaf) if self.summed_up else isinstance(leaf, Tensor))]
        if not kept:
            raise UsageError(f"the output of {type(self.model).__name__} holds no tensor: name a part of it by output=")
        return tuple(map(_name, kept))

    def _run(self, number: Tensor, tensors: Sequence[Tensor]) -> Any:
        args, kwargs = self.call.arguments(tensors)
        return self.model(*args, **kwargs)


class HeldPass(Pass):
    """One forward pass with the held draw of its number; the draws' standard normal numbers are its buffers."""

    def __init__(self, model: nn.Module, call: TensorCall, asked: Asked, held: dict[nn.Module, HeldDraws]) -> None:
        super().__init__(model, call, asked, summed_up=True)
        self.held: list[tuple[nn.Module, dict[str, str]]] = []
        buffers: dict[int, str] = {}
        for layer, own in held.items():
            for numbers in own.numbers.values():
                if id(numbers) not in buffers:
                    buffers[id(numbers)] = f"numbers_{len(buffers)}"
                    self.register_buffer(buffers[id(numbers)], numbers)
            self.held.append((layer, {name: buffers[id(numbers)] for name, numbers in own.numbers.items()}))

    def _run(self, number: Tensor, tensors: Sequence[Tensor]) -> Any:
        ways = {
            layer: HeldDraws({name: self.get_buffer(at).index_select(0, number) for name, at in names.items()})
            for layer, names in self.held
        }
        with switched(ways):
            return super()._run(number, tensors)


class Summary(nn.Module):
    """The measures over passes, from each output's tensors stacked, (passes, *shape), to named tensors."""

    def __init__(self, asked: Asked, names: Sequence[str]) -> None:
        super().__init__()
        self.asked, self.of = asked, tuple(names)

    def output_names(self) -> tuple[str, ...]:
        """The names of the measures; of several outputs, each after its output's name."""
        fields = _FIELDS[self.asked.task]
        return tuple(f"{name}_{field}" if len(self.of) > 1 else field for name in self.of for field in fields)

    def forward(self, *stacked: Tensor) -> tuple[Tensor, ...]:
        """The measures, in the order of their names."""
        log_variances = stacked[-1] if len(stacked) > len(self.of) else None
        measures: list[Tensor] = []
        for draws in stacked[: len(self.of)]:
            own = measure(self.asked.task, self.asked.dim, keep=False)
            own.add(draws, log_variances)
            result = own.result()
            if self.asked.noise is not None and not isinstance(self.asked.noise, str):
                variance = torch.as_tensor(self.asked.noise, dtype=draws.dtype, device=draws.device).square()
                result |= triple(variance.expand_as(result["mean"]), result["epistemic"])
            measures += [result[field] for field in _FIELDS[self.asked.task].values()]
        return tuple(measures)


class Network(nn.Module):
    """All of what the file computes: a pass, or so many and their summary; called as the model is, with its tensors."""

    def __init__(self, one: Pass, summary: Summary | None = None, passes: int = 1) -> None:
        super().__init__()
        self.one, self.summary, self.passes = one, summary, passes
        names = one.output_names() if summary is None else summary.output_names()
        self.names = tuple(f"{name}_output" if name in one.call.names else name for name in names)
        self.forward = self._named(one.call.names)

    def _named(self, names: Sequence[str]) -> Any:
        """`_outputs` as a function of arguments with these names, which torch.export takes over."""

        def forward(*args: Tensor, **kwargs: Tensor) -> Tensor | dict[str, Tensor]:
            return self._outputs(*args, *(kwargs[name] for name in names[len(args) :]))

        either = inspect.Parameter.POSITIONAL_OR_KEYWORD
        vars(forward)["__signature__"] = inspect.Signature([inspect.Parameter(name, either) for name in names])
        return forward

    def _outputs(self, *tensors: Tensor) -> Tensor | dict[str, Tensor]:
        """The named tensors; one that is the whole output of a pass, by itself."""
        if self.summary is None:
            outputs = self.one(torch.zeros(1, dtype=torch.int64), *tensors)
            return outputs[0] if len(outputs) == 1 else dict(zip(self.names, outputs, strict=True))
        passes = [self.one(torch.full((1,), at, dtype=torch.int64), *tensors) for at in range(self.passes)]
        stacked = [torch.stack(own) for own in zip(*passes, strict=True)]
        return dict(zip(self.names, self.summary(*stacked), strict=True))

    def outputs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the file is to give for these tensors, in the order of `names`."""
        given = self(*tensors)
        return [given] if isinstance(given, Tensor) else list(given.values())

    def split(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """One value for each tensor of the call, as positional arguments and keywords."""
        call = self.one.call
        first = len(call.names) - call.keywords
        return tuple(values[:first]), dict(zip(call.names[first:], values[first:], strict=True))


def _name(path: Any) -> str:
    """`output` for an output that is one tensor; else the keys to it, a place by itself as `output_1`."""
    keys = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
    return as_name("_".join(["output", *keys] if not keys or keys[0].isdigit() else keys))
