"""`export`: a converted model as an ONNX file or a program of torch.export, checked in its own runtime.

The file is opened in its own runtime and run beside the model first, in eval mode: it appears once it has computed the
same, or with the same law where it draws noise. What sums up several passes has outputs as `predict`'s. Classification:
`probability`, `entropy`, `mutual_information`; regression: `mean`, `variance`, `epistemic`; else `mean` and `variance`;
with the temperature or the observation noise that `calibrate` fitted.

onnxruntime starts all sessions of a process at one seed: `onnxruntime.set_seed(n)` before a session is made sets it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from ..analysis.probe.example_inputs import ExampleInputs
from ..errors import ExportMismatchError, UsageError
from ..escaping import first_line
from ..files.model_file.conversion import kept_plan
from ..files.model_file.description import present_versions
from ..files.output_file import output_file, told
from ..nn.kl import layers_of
from ..surgery.reset import refuse_lazy
from ..surgery.revert import revert
from ..uncertainty.calibration import Calibration, stored_calibration
from ..uncertainty.draws import drawn_numbers
from ..uncertainty.observation_noise import Noise, settled_noise
from ..uncertainty.passes import undisturbed
from ..uncertainty.prediction import Task
from ..uncertainty.seeds import seeded
from .agreement import FEW, MANY, check_equal, check_law
from .networks import Asked, HeldPass, Mode, Network, Pass, Summary
from .onnx_file import require_onnx, write_onnx
from .program import Outputs, write_pt2
from .tensor_call import TensorCall, at_least_two, tensor_call

ENDINGS = (".onnx", ".pt2")


def export(
    model: nn.Module, path: str | PathLike[str], example_inputs: ExampleInputs, *, mean: bool = False,
    noise: bool = False, samples: int | None = None, draws: int | None = None, task: Task | None = None,
    output: str | int | None = None, dim: int = -1, observation_noise: Noise = None, seed: int | None = None,
    dynamic_batch: bool = True, overwrite: bool = True, progress: bool | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a converted model as `.onnx` or `.pt2` (torch.export.load), and return the file's metadata.

    Args:
        example_inputs: what the model is called with, as `convert` takes it.
        mean, noise, samples, draws: one of them says what the file computes: the network at the posterior means; one
            pass with noise, anew at each run; so many of these, summed up; so many held draws, constants, summed up.
        task, output, dim, observation_noise: as `predict` has `task`, `output`, `dim` and `noise`; where no task is
            given and the model was calibrated, those that it was calibrated for.
        seed: of the held draws, which are those of `draw(model, seed, draws)`.
        dynamic_batch: leave the size of the batch open; else it is that of the example inputs.
        overwrite: whether a file that is there is replaced.
        progress: show a bar on stderr while runs are compared; None: on a terminal, where that takes over two seconds.

    Raises:
        NotVariationalError: the model has no variational layer.
        UsageError: arguments that do not fit, a model that torch does not export, or a package that is missing.
        ExportMismatchError: the file computes something else than the model.
    """
    mode, passes = _mode(mean, noise, samples, draws)
    write = write_onnx if _ending(path) == ".onnx" else write_pt2
    _refuse_unfit(model, mode, task, observation_noise)
    with undisturbed(model, None), output_file(path, overwrite=overwrite) as file:
        asked = _asked(model, mode, task, output, dim, observation_noise)
        call = at_least_two(tensor_call(model, example_inputs, dynamic_batch=dynamic_batch))
        network = _network(model, call, asked, mode, passes, seed)
        metadata = _metadata(model, network, mode, seed)
        with told(path):
            outputs = _written(write, network, file, metadata)
        _check(network, outputs, mode, progress)
    return metadata


def _mode(mean: bool, noise: bool, samples: int | None, draws: int | None) -> tuple[Mode, int]:
    asked = {"mean": mean, "noise": noise, "samples": samples is not None, "draws": draws is not None}
    modes: list[Any] = [name for name, given in asked.items() if given]
    if len(modes) != 1:
        given = " and ".join(modes) or "none of them"
        raise UsageError(f"say what the file computes by one of mean, noise, samples=K and draws=K; given: {given}")
    passes = samples if samples is not None else draws if draws is not None else 1
    if modes[0] in ("samples", "draws") and passes < 2:
        raise UsageError(f"{modes[0]}={passes}: a spread needs 2 at least")
    return modes[0], passes


def _ending(path: str | PathLike[str]) -> str:
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise UsageError(f"{path}: the ending says what is written: .onnx for ONNX, .pt2 for torch.export")
    if ending == ".onnx":
        require_onnx()
    return ending


def _refuse_unfit(model: nn.Module, mode: Mode, task: Task | None, noise: Noise) -> None:
    layers_of(model)
    refuse_lazy(model, "there is nothing to export")
    if mode in ("mean", "noise") and (task is not None or noise is not None):
        raise UsageError(f"task= and observation_noise= go with samples=K and draws=K; {mode} gives plain outputs")


def _asked(
    model: nn.Module, mode: Mode, task: Task | None, output: str | int | None, dim: int, noise: Noise
) -> Asked:
    """What is read off the output; where no task is given, as the model was calibrated."""
    if mode in ("mean", "noise"):
        return Asked(None, output, dim, None, None)
    fitted = stored_calibration(model)
    if fitted is not None and task is None and output is None:
        task, output, dim = fitted.task, fitted.output, fitted.dim
    fitted = fitted if fitted is not None and fitted.fits(task, output, dim, noise) else None
    return Asked(task, output, dim, settled_noise(task, noise, fitted), fitted)


def _network(
    model: nn.Module, call: TensorCall, asked: Asked, mode: Mode, passes: int, seed: int | None
) -> Network:
    if mode in ("mean", "noise"):
        return Network(Pass(revert(model) if mode == "mean" else model, call, asked, summed_up=False)).eval()
    if mode == "samples":
        one = Pass(model, call, asked, summed_up=True)
    else:
        with seeded(model, seed):
            one = HeldPass(model, call, asked, drawn_numbers(model, passes))
    return Network(one, Summary(asked, one.output_names()), passes)


def _metadata(model: nn.Module, network: Network, mode: Mode, seed: int | None) -> dict[str, Any]:
    fitted: Calibration | None = network.one.asked.fitted
    call, methods = network.one.call, [layer.method for layer in layers_of(model)]
    return {
        "mode": mode,
        "passes": network.passes,
        "seed": seed,
        "policy": (kept_plan(model) or {}).get("policy"),
        "methods": {method: methods.count(method) for method in sorted(set(methods))},
        "task": network.one.asked.task,
        "temperature": None if fitted is None else fitted.temperature,
        "inputs": list(call.names),
        "outputs": list(network.names),
        "dynamic_batch": call.is_dynamic,
        "versions": present_versions(),
        "weights_sha256": _digest(model),
    }


def _digest(model: nn.Module) -> str:
    """Of all tensors of the converted model, with their names, dtypes and shapes."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _written(write: Callable[..., Outputs], network: Network, file: BinaryIO, metadata: dict[str, Any]) -> Outputs:
    try:
        return write(network, file, metadata)
    except (UsageError, OSError):
        raise
    except Exception as error:  # of the runtime, whose errors have no class in common
        raise ExportMismatchError(f"the file's own runtime does not open it: {first_line(error)}") from error


def _check(network: Network, outputs: Outputs, mode: Mode, progress: bool | None) -> None:
    """The file against the model, in batches of the example's size and, where that is open, of one and of one more."""
    call = network.one.call
    sizes = [tensor.shape[dim] for tensor, dim in zip(call.tensors, call.dims, strict=True) if dim is not None]
    batches = [call.tensors, *(call.resized(size) for size in ((1, sizes[0] + 1) if sizes else ()))]
    for tensors in batches:
        try:
            found = outputs(tensors)
        except Exception as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise ExportMismatchError(f"the file fails on inputs {shapes}: {first_line(error)}") from error
        expected = network.outputs(tensors)
        if mode in ("mean", "draws"):
            check_equal(network.names, found, expected)
    if mode in ("noise", "samples"):
        last = batches[-1]
        runs = MANY if mode == "noise" else FEW  # each of a sample's runs is many passes
        check_law(network.names, lambda: outputs(last), lambda: network.outputs(last), runs=runs, progress=progress)
