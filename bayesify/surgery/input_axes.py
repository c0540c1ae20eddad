"""The principal axes of the inputs of layers, for posteriors that are diagonal along those (see `nn/basis.py`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..analysis.probe.example_inputs import ExampleInputs, readings
from ..analysis.probe.run import run, without_traces
from ..distributions.prior import Normal
from ..errors import UsageError
from ..nn.parametrized_weights import identity
from ..nn.settings import Settings
from ..planning.plan import Plan


@torch.no_grad()
def input_axes(model: nn.Module, made: Plan, given: ExampleInputs | None) -> dict[str, Tensor]:
    """The eigenvectors of Σ φφᵀ over the rows φ that reach a layer, by name: (inputs, inputs), its columns the axes.

    Of the layers whose posterior has `basis: inputs`. Layers that share a weight have the axes of all their inputs.

    Raises:
        UsageError: there are no example inputs, or they do not reach such a layer; or its prior is not as wide along
            one axis as along another.
    """
    settings = {row.name: row.settings for row in made.converting() if row.settings is not None}
    asked = {name: own for name, own in settings.items() if own.posterior.basis == "inputs"}
    for name, own in asked.items():
        _refuse_uneven(name, own)
    if not asked:
        return {}
    if given is None:
        raise UsageError(
            "posterior: {basis: inputs} takes the principal axes of each layer's inputs: give convert example_inputs=, "
            "a few hundred examples of the data (on the command line --input-file)"
        )
    modules = dict(model.named_modules())
    if made.insertions:
        raise UsageError("posterior: {basis: inputs} is not for the products of an exported program")
    grams: dict[tuple[int, ...], Tensor] = {}
    for example in readings(given)[0]:
        with without_traces(model):
            calls, _ = run(model, {name: modules[name] for name in asked}, example)
        for name in asked:
            for seen in calls.of.get(name, ()):
                rows, key = seen.x.flatten(0, -2).double(), identity(modules[name], "weight")
                grams[key] = grams.get(key, torch.zeros_like(rows[:1])) + rows.T @ rows
    unreached = [name for name in asked if identity(modules[name], "weight") not in grams]
    if unreached:
        raise UsageError(f"the example inputs do not reach layer {unreached[0]!r}: its inputs have no axes")
    axes = {key: torch.linalg.eigh(gram).eigenvectors for key, gram in grams.items()}
    return {name: axes[identity(modules[name], "weight")].to(modules[name].weight) for name in asked}


def _refuse_uneven(name: str, settings: Settings) -> None:
    prior = settings.prior
    if not isinstance(prior, Normal) or prior.std.kind not in ("constant", "fan_in"):
        raise UsageError(
            f"posterior: {{basis: inputs}} of layer {name!r} needs a normal prior of one std for all its weights, "
            f"prior: {{std: 1.0}} or {{std: {{fan_in: 5.0}}}}, and it has {prior}"
        )
