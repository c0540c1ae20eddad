"""`bayesify predict`: a converted model's predictions, and how sure it is, from the shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import click

from .terminal import busy, say


@click.command()
@click.argument("converted")
@click.option("--inputs", metavar="FILE", required=True, help="A batch: .npz, .pt, .safetensors or .csv.")
@click.option("-o", "--output", metavar="FILE", help="Where to write all of it: .npz or .csv.")
@click.option("--task", type=click.Choice(["classification", "binary", "regression"]), help="What the outputs are.  "
              "[default: plain numbers]")  # fmt: skip
@click.option("--part", metavar="NAME", help="Which part of the model's output to predict: logits, or 0.")
@click.option("--dim", default=-1, show_default=True, help="The dimension of the classes.")
@click.option("--noise", metavar="STD|NAME", help="Regression's observation noise: its std, or the output's part that "
              "has its log-variance, or `halves`.")  # fmt: skip
@click.option("--samples", default=32, show_default=True, help="Draws of the posterior.")
@click.option("--chunk", type=int, metavar="N", help="The most examples of one forward pass.")
@click.option("--seed", type=int, help="The same seed, the same draws.")
@click.option("--allow", metavar="DOTTED", multiple=True, help="A class that the file may hold: pkg.mod.Net.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON, and nothing else.")
def predict(
    converted: str, inputs: str, output: str | None, allow: tuple[str, ...], force: bool, as_json: bool, **options: Any
) -> None:
    """Predict with the model that `convert` wrote: mean, and uncertainty, total = aleatoric + epistemic.

    Classification in nats, everything else in the output's unit squared.

    \b
    Examples:
      bayesify predict resnet.flipout.pt --inputs images.npz --task classification -o out.npz
      bayesify predict mlp.flipout.pt --inputs table.csv --task regression --noise 0.3 -o out.csv
      bayesify predict bert.lrt.pt --inputs batch.safetensors --part logits --task classification --json
    """
    import contextlib

    from ..files.output_file import told
    from .batch_files import check_ending, summary, write_prediction
    from .output_path import checked_output

    if output:
        check_ending(output)
    with checked_output(output, [converted, inputs], force=force) if output else contextlib.nullcontext() as file:
        with busy(f"Predicting with {converted}"):
            prediction = _predicted(converted, inputs, allow, **options)
        if output and file:
            with told(output):
                write_prediction(prediction, output, file)
    _show(summary(prediction, options["samples"], output), as_json)


def _predicted(
    converted: str, inputs: str, allow: tuple[str, ...], task: Literal["classification", "binary", "regression"] | None,
    part: str | None, noise: str | None, **options: Any,
) -> Any:  # fmt: skip
    import torch

    from ..files.load_model import load_model
    from ..uncertainty.predict import predict
    from .batch_files import place_of, read_batch, runs_on
    from .input_options import number_or_text

    model = load_model(converted, allow=allow)
    dtype = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), torch.float32)
    std, where = number_or_text(noise), place_of(part)
    given = read_batch(inputs, dtype)
    named = isinstance(given[0], Mapping)  # as a loader's batch, which may have labels
    with runs_on(inputs):
        return predict(model, *([iter([given])] if named else given), task=task, output=where, noise=std, **options)


def _show(summary: Any, as_json: bool) -> None:
    import json

    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    say(f"{summary['task'] or 'output'}, {summary['samples']} samples; means over all that was predicted:")
    for name, mean in summary["means"].items():
        say(f"  {name:<12} {mean:.6g}")
    if summary["output"]:
        say(f"Wrote {summary['output']}")
