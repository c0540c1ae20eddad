"""`bayesify export`: a converted model as a file for another runtime."""

from __future__ import annotations

from typing import Any

import click

from ..errors import UsageError
from .terminal import busy, say


@click.command()
@click.argument("converted")
@click.option("-o", "--output", metavar="FILE", required=True, help="Where to write: .onnx or .pt2.")
@click.option("--mean", is_flag=True, help="The network at the posterior means.")
@click.option("--noise", is_flag=True, help="One pass with noise, anew at each run.")
@click.option("--samples", type=int, metavar="K", help="K passes with noise in one graph, and their summary.")
@click.option("--draws", type=int, metavar="K", help="K held draws of the weights, constants of the file.")
@click.option("--input", "inputs", metavar="SHAPE", multiple=True, help="What the model is called with: "
              "1x3x224x224; ids=int:2x16 by keyword; 16xNx80, with N for the batch where it is not first. Once per "
              "argument.")  # fmt: skip
@click.option("--input-file", metavar="FILE", help="The same from a file: torch.save(inputs, FILE).")
@click.option("--task", type=click.Choice(["classification", "regression"]), help="What --samples and --draws sum up.  "
              "[default: as calibrated]")  # fmt: skip
@click.option("--part", metavar="NAME", help="Which part of the model's output: logits, or 0.")
@click.option("--dim", default=-1, show_default=True, help="The dimension of the classes.")
@click.option("--observation-noise", metavar="STD|NAME", help="Regression's, as --noise of `bayesify predict`.")
@click.option("--seed", type=int, help="Of --draws: the same seed, the same draws.")
@click.option("--fixed-batch", is_flag=True, help="For batches of the input's size only.")
@click.option("--allow", metavar="DOTTED", multiple=True, help="A class that the file may hold: pkg.mod.Net.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the file's metadata as JSON, and nothing else.")
def export(
    converted: str, output: str, inputs: tuple[str, ...], input_file: str | None, part: str | None,
    observation_noise: str | None, fixed_batch: bool, allow: tuple[str, ...], force: bool, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Write a model that `convert` wrote for onnxruntime (.onnx) or torch.export.load (.pt2), and run it there.

    Nothing is written unless the file computes what the model computes: the same numbers, or the same law of the noise.

    \b
    Examples:
      bayesify export resnet.flipout.pt -o resnet.onnx --samples 16 --task classification --input 1x3x224x224
      bayesify export resnet.flipout.pt -o mean.onnx --mean --input 1x3x224x224
      bayesify export bert.lrt.pt -o bert.pt2 --draws 8 --input input_ids=int:2x16 --part logits
    """
    from ..files.load_model import load_model
    from .batch_files import place_of
    from .input_options import given_inputs, number_or_text
    from .output_path import check_output

    example = given_inputs(inputs, input_file)
    if example is None:
        raise UsageError("say what the model is called with, as in --input 1x3x224x224, or --input-file FILE")
    check_output(output, [converted, *([input_file] if input_file else [])], force=force)
    with busy(f"Exporting {converted}"):
        from ..exporting.export import export as write

        model, place = load_model(converted, allow=allow), place_of(part)
        metadata = write(
            model, output, example, output=place, observation_noise=number_or_text(observation_noise),
            dynamic_batch=not fixed_batch, overwrite=force, progress=False, **options,
        )  # fmt: skip
    _show(metadata, output, as_json)


def _show(metadata: dict[str, Any], output: str, as_json: bool) -> None:
    import json

    if as_json:
        click.echo(json.dumps(metadata, indent=2))
        return
    passes = f" of {metadata['passes']}" if metadata["mode"] in ("samples", "draws") else ""
    say(f"{metadata['mode']}{passes}: {', '.join(metadata['inputs'])} → {', '.join(metadata['outputs'])}")
    same = "the same outputs" if metadata["mode"] in ("mean", "draws") else "means and stds agree"
    runtime = "onnxruntime" if output.lower().endswith(".onnx") else "torch.export"
    say(f"Ran in {runtime} beside the model: {same}")
    say(f"Wrote {output}")
