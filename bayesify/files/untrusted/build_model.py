"""A model from inert nodes: every name in them is decided about first, then it is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ...errors import FileRefusedError
from .content import NO_ALLOW, SHORT
from .global_names import Name, dotted
from .model_builder import ModelBuilder, refuse_endless
from .node_limits import refuse_unfolding
from .nodes import names_in
from .storages import Storages
from .trust import LIBRARIES, Refused, Trusted, judge, origin_of


def build_model_from(root: Any, storages: Storages, allow: Sequence[str]) -> nn.Module:
    """The nn.Module that the nodes describe.

    Raises:
        FileRefusedError: they name what may not be built, describe what cannot be, or are not those of a module.
    """
    refuse_unfolding(root)
    builder = ModelBuilder(storages, decide(names_in(root), allow))
    try:
        model = builder.value(root)
        if not isinstance(model, nn.Module):
            raise FileRefusedError(f"holds a {type(model).__name__}, not an nn.Module; save the model itself")
        refuse_endless(model)
        return model
    except FileRefusedError as error:
        where = ".".join(builder.path)
        raise FileRefusedError(f"layer {where!r} {error}" if where else str(error)) from None
    except RecursionError:
        raise FileRefusedError(f"holds objects inside of objects, deeper than any model; {SHORT}") from None


def decide(names: Sequence[Name], allow: Sequence[str]) -> dict[Name, Trusted]:
    """The names, each with the role in which it is trusted.

    Raises:
        FileRefusedError: some are not; with the flags that would allow them, where there are such.
    """
    verdicts = {name: judge(name, allow) for name in names}
    refused = {origin_of(name): verdict for name, verdict in verdicts.items() if isinstance(verdict, Refused)}
    if refused:
        raise FileRefusedError(_explain(refused))
    return {name: verdict for name, verdict in verdicts.items() if isinstance(verdict, Trusted)}


def _explain(refused: dict[Name, Refused]) -> str:
    never = [name for name, verdict in refused.items() if verdict.never and not verdict.why]
    if never:
        return (
            f"names {dotted(never[:10])}, which no model needs and which could run code when opened; "
            f"{NO_ALLOW}. Ask its author for a state_dict or a safetensors file"
        )
    for verdict in refused.values():
        if verdict.why:
            return verdict.why
    flags = " ".join(f"--allow {name}" for name in refused)
    wide = " ".join(sorted({f"--allow '{name.module}.*'" for name in refused}))
    shorter = f" (or, for all nn.Modules there, {wide})" if len(refused) > 1 else ""
    count = "a class that is" if len(refused) == 1 else f"{len(refused)} classes that are"
    return (
        f"stores {count} not part of {', '.join(LIBRARIES)}: {dotted(list(refused))}. "
        f"If you trust {'it' if len(refused) == 1 else 'them'}, add {flags}{shorter}"
    )
