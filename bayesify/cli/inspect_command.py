"""`bayesify inspect`: what a converted model's posteriors say, and what needs attention, from the shell."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import click

from ..errors import UsageError
from .terminal import busy, say

if TYPE_CHECKING:
    from ..uncertainty.inspect import Inspection


@click.command()
@click.argument("converted")
@click.option("--data", metavar="FILE", help="Held-out data with targets: .npz, .pt or .safetensors of (inputs..., "
              "target), or a mapping with `labels` or `target`; .csv with the target last.")  # fmt: skip
@click.option("--task", type=click.Choice(["classification", "binary", "regression"]), help="What the outputs are.  "
              "[default: as it is calibrated]")  # fmt: skip
@click.option("--ood", metavar="FILE", help="Inputs that the model should be unsure of, without targets.")
@click.option("--part", metavar="NAME", help="Which part of the model's output: logits, or 0.")
@click.option("--dim", default=-1, show_default=True, help="The dimension of the classes.")
@click.option("--noise", metavar="NAME", help="Regression: the output's part that has its log-variance, or `halves`.")
@click.option("--samples", default=32, show_default=True, type=click.IntRange(2), help="Draws of the posterior.")
@click.option("--seed", default=0, show_default=True, help="The same seed, the same draws.")
@click.option("--allow", metavar="DOTTED", multiple=True, help="A class that the file may hold: pkg.mod.Net.")
@click.option("--full", is_flag=True, help="A line for every posterior: no folding.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON, and nothing else.")
@click.option("--html", metavar="FILE", help="Write all of it as one page, with figures.")
@click.option("--force", is_flag=True, help="Replace the page if it exists.")
def inspect(
    converted: str, allow: tuple[str, ...], full: bool, as_json: bool, html: str | None, force: bool, **options: Any
) -> None:
    """Look at the posteriors of the model that `convert` wrote, and at how it predicts.

    \b
    Examples:
      bayesify inspect resnet.flipout.pt
      bayesify inspect resnet.flipout.pt --data test.npz --task classification --html report.html
      bayesify inspect resnet.flipout.pt --json | jq .findings
    """
    import contextlib

    from ..files.output_file import told
    from .output_path import checked_output

    sources = [path for path in (converted, options["data"], options["ood"]) if path]
    with (
        checked_output(html, sources, force=force) if html else contextlib.nullcontext() as file,
        busy(f"Inspecting {converted}"),
    ):
        found = _inspected(converted, allow, **options)
        if html and file:
            text = _page(found).encode()
            with told(html):
                file.write(text)
    _show(found, as_json, full)
    if html:
        say(f"\nWrote {html}", err=as_json)


def _inspected(
    converted: str, allow: tuple[str, ...], data: str | None, ood: str | None,
    task: Literal["classification", "binary", "regression"] | None, part: str | None, noise: str | None, **options: Any,
) -> Inspection:  # fmt: skip
    from dataclasses import replace

    import torch

    from ..files.load_model import load_model
    from ..uncertainty.inspect import inspect
    from .batch_files import place_of, read_batch, read_labelled, runs_on
    from .origin import origin_of

    if ood and not data:
        raise UsageError("--ood is compared with held-out data: give them by --data")
    model = load_model(converted, allow=allow)
    dtype = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), torch.float32)
    batches = None if data is None else read_labelled(data, dtype, task)
    other = None if ood is None else [_one(read_batch(ood, dtype))]
    where = place_of(part)
    with runs_on(*filter(None, (data, ood))):
        found = inspect(model, batches, task=task, ood=other, output=where, noise=noise, progress=False, **options)
    return replace(found, origin=origin_of(converted, _command()))


def _one(inputs: tuple[Any, ...]) -> Any:
    return inputs[0] if len(inputs) == 1 else inputs


def _command() -> str:
    """The command that runs, as one types it; options that were not given are left out."""
    from click.core import ParameterSource

    from ..escaping import shell_word

    context = click.get_current_context()
    words = ["bayesify", "inspect", str(context.params["converted"])]
    for option in context.command.params:
        name, value = str(option.name), context.params.get(str(option.name))
        if isinstance(option, click.Option) and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            for one in value if isinstance(value, tuple) else [value]:
                words += [option.opts[0]] if option.is_flag else [option.opts[0], str(one)]
    return " ".join(map(shell_word, words))


def _page(found: Inspection) -> str:
    from ..figures.page import page

    return page(found)


def _show(found: Inspection, as_json: bool, full: bool) -> None:
    import json

    from rich.console import Console

    from ..report.posteriors import show

    if as_json:
        click.echo(json.dumps(_finite(found.to_dict()), indent=2))
    else:
        show(found, Console(), full=full)


def _finite(value: Any) -> Any:
    """The same without NaN and infinite numbers, which JSON does not have: null stands for them."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
