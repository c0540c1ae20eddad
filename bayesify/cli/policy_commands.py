"""`bayesify policy check|schema|show`: what can be said of a policy without a model, and so without torch."""

from __future__ import annotations

import click

from .terminal import say


@click.group()
def policy() -> None:
    """Check, print and learn about policies."""


@policy.command()
@click.argument("file")
def check(file: str) -> None:
    """Check a policy FILE by itself; `bayesify report MODEL --policy FILE` checks it against a model."""
    from ..policy.policy import Policy

    rules = len(Policy.parse(file).rules)
    say(f"{file}: a valid policy, {rules or 'no'} {'rule' if rules == 1 else 'rules'}")


@policy.command()
def schema() -> None:
    """Print the JSON Schema of policies, with which an editor completes and checks them.

    \b
    Example:
      bayesify policy schema > policy.schema.json
    """
    import json

    from ..policy.policy import Policy

    click.echo(json.dumps(Policy.json_schema(), indent=2))


@policy.command()
@click.argument("name", metavar="[NAME|FILE]", required=False)
@click.option("--as-written", is_flag=True, help="The file itself: its comments, and no defaults.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with every default.")
def show(name: str | None, as_written: bool, as_json: bool) -> None:
    """Print a preset or a policy file with every default filled in; without a NAME, list the presets.

    \b
    Examples:
      bayesify policy show
      bayesify policy show moped > mine.yaml
    """
    import json

    from ..policy.policy import Policy
    from ..policy.yaml_file import as_yaml, presets, read_text

    if name is None:
        click.echo("\n".join(presets()))
        return
    whole = Policy.parse(name).to_dict()
    if as_written:
        say(read_text(presets().get(name, name)).rstrip())
    else:
        say(json.dumps(whole, indent=2) if as_json else as_yaml(whole).rstrip())
