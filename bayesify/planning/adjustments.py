"""What else is changed because a layer converts: fused paths that are switched off, products that are rerouted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from ..analysis.bytecode import parameter_walks
from ..decision import Decision
from ..programs.part import kind_of
from .draft import Draft
from .surroundings import fused_parents

_FUSED = "its fused inference path reads weights past the noise: switched off"
_NESTED = "its nested-tensor path is switched off: outputs under the padding mask are computed, no longer zeros"


def adjusted(model: nn.Module, names: Mapping[int, tuple[str, ...]], drafts: Sequence[Draft]) -> list[Decision]:
    """The decisions of the drafts, and those of modules that are adjusted; a module has one decision.

    Args:
        model: the model.
        names: the dotted names of its modules, by their ids.
        drafts: the drafts, decided.
    """
    decisions = {draft.decision.name: draft.decision for draft in drafts}

    def present(module: nn.Module) -> Decision:
        name, *aliases = names[id(module)]
        return decisions.get(name) or Decision(name, tuple(aliases), "adjusted", kind_of(module).__name__)

    for module, reason in _switched_off(model, drafts):
        decision = _adjusted(present(module), reason)
        decisions[decision.name] = decision
    converting = [draft for draft in drafts if decisions[draft.decision.name].verb == "converts"]
    for module, reads in _readers(converting):
        why = f"its own products with the weights of {', '.join(map(repr, reads))} are rerouted to the noise"
        decision = present(module)
        unseen = decision.uncompiled or drafts[0].site.forwards.uses(module).unseen_by_dynamo
        converts = decision.verb == "converts"
        changed = replace(decision, notes=(*decision.notes, why)) if converts else _adjusted(decision, why)
        decisions[decision.name] = replace(changed, reads=reads, uncompiled=unseen)
    for module, why in _walked(model, converting):
        decision = present(module)
        changed = decision if decision.verb == "converts" else _adjusted(decision, why)
        decisions[decision.name] = replace(changed, hides=True)
    return list(decisions.values())


def _walked(model: nn.Module, converting: Sequence[Draft]) -> Iterator[tuple[nn.Module, str]]:
    """(module, reason) of those whose Parameters a forward goes over: there it finds the ones that it had before."""
    converts = {id(draft.site.module) for draft in converting}
    held = converts | {id(parent) for draft in converting for _, parent in draft.site.parents}
    walked: dict[int, tuple[nn.Module, str]] = {}
    for module in (module for module in model.modules() if id(module) in held and not _of_torch(module)):
        walks = converting[0].site.forwards.of_class(parameter_walks, type(module))
        below = [each for chain in walks for each in _below(module, chain)]
        for each in (each for each in below if id(each) in held - converts):
            its = "its" if each is module else f"{type(module).__name__}'s"
            walked.setdefault(id(each), (each, f"{its} forward goes over its Parameters: scales are left out there"))
    yield from walked.values()


def _below(module: nn.Module, path: tuple[str, ...] | None) -> Iterator[nn.Module]:
    """The module, whose forward hides scales, and the one at the path: all below it where that is not known."""
    yield module
    child: nn.Module | None = module
    for name in path or ():
        child = child and child._modules.get(name)
    yield from module.modules() if path is None or child is None else (child,)


def _of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _adjusted(decision: Decision, reason: str) -> Decision:
    """The decision to adjust; the reason that it had becomes a note."""
    before = (decision.reason,) if decision.reason else ()
    return replace(decision, verb="adjusted", rule=None, reason=reason, notes=(*decision.notes, *before))


def _switched_off(model: nn.Module, drafts: Sequence[Draft]) -> Iterator[tuple[nn.Module, str]]:
    """(module, reason) of what would run past converted layers."""
    parents = fused_parents(model, [draft.site.module for draft in drafts if draft.decision.method])
    yield from ((layer, _FUSED) for _, layer in parents.layers)
    yield from ((encoder, _NESTED) for _, encoder in parents.encoders)


def _readers(converting: Sequence[Draft]) -> list[tuple[nn.Module, tuple[str, ...]]]:
    """Modules that multiply by the weights of converting ones below them, and the paths of those from there."""
    readers: dict[int, tuple[nn.Module, list[str]]] = {}
    for draft in converting:
        for _, reader in draft.site.rerouting:
            path = next(path for path, module in reader.named_modules() if module is draft.site.module)
            readers.setdefault(id(reader), (reader, []))[1].append(path)
    return [(reader, tuple(paths)) for reader, paths in readers.values()]
