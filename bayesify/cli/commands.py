"""The command line: parse the options, call the library, print what came out.

Imports stand inside the commands, so that a help text does not wait for torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from .. import __version__
from ..errors import UsageError
from ..escaping import printable
from .export_command import export as export_command
from .inspect_command import inspect as inspect_command
from .policy_commands import policy as policy_commands
from .predict_command import predict as predict_command
from .terminal import Commands, busy, say

if TYPE_CHECKING:
    from torch.nn import Module

    from ..analysis.probe.example_inputs import ExampleInputs
    from ..planning.plan import Plan
    from ..policy.policy import Policy
    from .source import Source

Weights = Literal["mean", "sample"]
Command = TypeVar("Command", bound=Callable[..., Any])


def _model_options(command: Command) -> Command:
    """The options of the commands that plan: they name a model and a policy."""
    options = [
        click.argument("model"),
        click.option("--method", type=click.Choice(["flipout", "lrt"]), help="The estimator.  [default: flipout]"),
        click.option("--policy", metavar="FILE|NAME", help="A YAML policy, or a preset: `bayesify policy show`."),
        click.option("--allow", metavar="DOTTED", multiple=True, help="A class that the file may hold: pkg.mod.Net."),
        click.option("--arg", "args", metavar="K=V", multiple=True, help="An argument of the factory."),
        click.option("--weights", metavar="FILE", help="Weights for the factory's model: a file, an index, a folder."),
        click.option("--key", help="Where the weights are in that file."),
        click.option("--ignore-keys", metavar="PATTERN", multiple=True, help="Weights that may differ: a glob."),
        click.option("--base", metavar="FOLDER", help="The base network of a folder of adapters."),
        click.option("--input", "inputs", metavar="SHAPE", multiple=True, help="Run MODEL on random numbers, to see "
                     "how each layer is called: 1x3x224x224; ids=int:2x16 by keyword; 16xNx80, with N for the "
                     "batch where it is not first. Once per argument."),
        click.option("--input-file", metavar="FILE", help="Run MODEL on inputs of a file: torch.save(inputs, FILE)."),
        click.option("--full", is_flag=True, help="A line for every layer: no folding."),
        click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, and nothing else."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group("bayesify", cls=Commands, context_settings=_SETTINGS)
@click.version_option(__version__)
def main() -> None:
    """Turn a trained PyTorch model into a variational Bayesian one.

    \b
    Examples:
      bayesify convert resnet.pt                         writes resnet.flipout.pt
      bayesify report resnet.pt --method lrt             shows what would happen
      bayesify convert torchvision.models:resnet18 --weights resnet18.pth
      bayesify inspect resnet.flipout.pt                 what its posteriors say
      bayesify revert resnet.flipout.pt -o plain.pt

    Exit codes: 0 done, 2 wrong policy or usage, 3 nothing to convert or converted already, 4 the file or the factory is
    refused, 1 anything else.
    """


@main.command()
@_model_options
@click.option("-o", "--output", metavar="FILE", help="Where to write.  [default: MODEL.METHOD.pt]")
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
@click.option("--force", is_flag=True, help="Replace the output if it exists. MODEL itself is never replaced.")
@click.option("--kl-name", default="kl", metavar="NAME", help="A name for model.kl, if the model has a `kl` itself.")
def convert(output: str | None, dry_run: bool, force: bool, kl_name: str, **options: Any) -> None:
    """Make MODEL variational and write it to a file.

    MODEL is a file of torch.save(model, FILE); a folder of transformers, peft, timm or diffusers, which gives a folder;
    or a factory: package.module:callable, which may stand in a module of the current directory.

    \b
    Examples:
      bayesify convert resnet.pt --method lrt -o bayesian.pt
      bayesify convert resnet.pt --policy moped --dry-run
      bayesify convert mynet.pt --allow mypkg.models.Net
      bayesify convert ./bert-dir                        writes ./bert-dir.flipout
      bayesify convert torchvision.models:resnet18 --arg num_classes=10 --weights sd.safetensors
    """
    source, policy, inputs = _source(**options), _policy(**options), _inputs(**options)
    if dry_run:
        _show(_plan(source, policy, inputs, kl_name), **options)
        say("\nDry run: nothing was written.", err=options["as_json"])
        return
    from ..files.save import save
    from ..planning.planner import plan
    from ..surgery.convert import carry_out
    from .output_path import check_output, default_output, label

    source.check()
    target = output or default_output(source.model, label(policy), factory=source.is_factory)
    beside = [options[name] for name in ("policy", "input_file") if options[name]]
    check_output(target, [*source.files, *beside], force=force, folder=source.is_folder)
    with busy(f"Converting {source.model}"):
        model = _opened(source)
        made = plan(model, policy, example_inputs=inputs)
        converted = carry_out(made, model, example_inputs=inputs, inplace=True, kl_name=kl_name)
        save(converted, target, overwrite=force, sources=source.files, **source.recorded())
    _show(made, **options)
    say(f"\nWrote {printable(target)}", err=options["as_json"])


@main.command()
@_model_options
def report(**options: Any) -> None:
    """Show what `convert` would do with MODEL, and why. Writes nothing, and reads no weights except for --input.

    \b
    Examples:
      bayesify report resnet.pt
      bayesify report torchvision.models:resnet18 --policy last-layer --full
      bayesify report resnet.pt --json | jq .totals
      bayesify report resnet.pt --input 1x3x224x224
    """
    _show(_plan(_source(**options), _policy(**options), _inputs(**options)), **options)


def _source(
    model: str, allow: tuple[str, ...], args: tuple[str, ...], weights: str | None, key: str | None,
    ignore_keys: tuple[str, ...], base: str | None, **_: Any,
) -> Source:  # fmt: skip
    from .source import Source

    return Source(model, allow, args, weights, key, ignore_keys, base)


def _policy(method: str | None, policy: str | None, **_: Any) -> Policy:
    from ..policy.policy import Policy

    parsed = Policy.parse(policy or method or "flipout")
    return parsed.with_method(method) if policy and method else parsed


def _inputs(inputs: tuple[str, ...], input_file: str | None, **_: Any) -> ExampleInputs | None:
    from .input_options import given_inputs

    return given_inputs(inputs, input_file)


def _plan(source: Source, policy: Policy, inputs: ExampleInputs | None, kl_name: str | None = None) -> Plan:
    """The plan; with `kl_name`, a conversion by that name would not be refused."""
    from ..planning.planner import plan
    from ..surgery.convert import refuse_clash

    with busy(f"Planning for {source.model}"):
        model = _opened(source, meta=inputs is None)
        made = plan(model, policy, example_inputs=inputs)
        if kl_name is not None:
            refuse_clash(model, kl_name)
        return made


def _opened(source: Source, meta: bool = False) -> Module:
    return source.open(meta=meta, tell=lambda note: say(printable(note), err=True))


def _show(plan: Plan, as_json: bool, full: bool, **_: Any) -> None:
    import json

    from rich.console import Console

    from ..report.tables import show

    if as_json:
        click.echo(json.dumps(plan.to_dict(), indent=2))
    else:
        show(plan.title, plan.rows, plan.totals, Console(), full=full)


@main.command()
@click.argument("converted")
@click.option("-o", "--output", metavar="FILE", required=True, help="Where to write.")
@click.option("--weights", type=click.Choice(["mean", "sample"]), default="mean", show_default=True,
              help="Its posterior's means, or one draw of it.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Of the draw: the same seed gives the same weights.")
@click.option("--allow", metavar="DOTTED", multiple=True, help="A class that the file may hold: pkg.mod.Net.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
def revert(
    converted: str, output: str, weights: Weights, seed: int | None, allow: tuple[str, ...], force: bool
) -> None:
    """Turn a file, or a folder, that `convert` wrote back into a plain model.

    \b
    Examples:
      bayesify revert resnet.flipout.pt -o resnet.mean.pt
      bayesify revert resnet.flipout.pt -o draw.pt --weights sample --seed 7
    """
    if seed is not None and weights != "sample":
        raise UsageError("--seed goes with --weights sample: the means need no draw")
    import os

    import torch

    from ..files.load_model import load_model
    from ..files.save import save
    from ..surgery import revert as surgery
    from .output_path import check_output

    folder = converted if os.path.isdir(converted) else None
    check_output(output, [converted], force=force, folder=folder is not None)
    with busy(f"Reverting {converted}"):
        model = load_model(converted, allow=allow)
        if seed is not None:
            torch.manual_seed(seed)
        plain = surgery.revert(model, weights, inplace=True)
        save(plain, output, like=folder, overwrite=force, sources=[converted])
    say(f"Wrote {printable(output)}")


main.add_command(export_command)
main.add_command(inspect_command)
main.add_command(policy_commands)
main.add_command(predict_command)
