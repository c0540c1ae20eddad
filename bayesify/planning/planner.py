"""Makes the plan: a decision for each module that bears a weight, before anything changes. Touches nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from torch import nn

from ..analysis.census import census
from ..analysis.probe.example_inputs import ExampleInputs
from ..analysis.probe.findings import Finding, findings
from ..analysis.site import Forwards, Site
from ..decision import Decision
from ..errors import NothingToConvertError
from ..nn.batch_arguments import BatchArgument
from ..nn.layer_kinds import layer_kind
from ..nn.registry import converted_class
from ..nn.settings import Settings
from ..policy.policy import Policy, PolicyLike
from ..programs.part import kind_of
from ..programs.program import is_exported, prepared
from .adjustments import adjusted
from .blockers import bears_weight, blocker, has_axes, kept_because
from .caches import handed_state
from .caveats import ANEW, notes, read_beside
from .draft import Draft
from .owners import owned
from .parameter_counts import counted, totals
from .plan import Plan
from .refusals import refuse_model
from .surroundings import batch_dim, unregistered

_NO_AXES = "independent weights: `basis: inputs` is for Linear layers of an additive std that alone read their weight"
_OUTSIDE = "not registered in the model, so neither trained nor saved with it: an nn.ModuleList or ModuleDict would"


def plan(model: nn.Module, policy: PolicyLike = "flipout", *, example_inputs: ExampleInputs | None = None) -> Plan:
    """Decide for every module of `model` what `convert` would do, and why. Touches nothing.

    Args:
        model: any nn.Module or exported program, on any device, `meta` included.
        policy: a Policy, a dict, the path of a YAML file, or the name of a preset or method.
        example_inputs: what the model is called with, to run it (in eval mode, leaving no trace) and see how each layer
            is called and where it has the examples of the batch. A tensor, a tuple of arguments, a dict of keywords, or
            a list of two of those with batches of two sizes, which tells which dimension is the batch (else the first).

    Raises:
        PolicyError: the policy is wrong in itself or does not fit the model; all its problems at once.
        NothingToConvertError: no layer is left to convert.
        WrappedModelError, AlreadyVariationalError, UsageError: the model as a whole cannot be converted.
    """
    if not is_exported(model):
        refuse_model(model)
    model, insertions = prepared(model)
    policy = Policy.parse(policy)
    names = _names(model)
    drafts = [Draft(site, names[id(site.module)], blocker(site)) for site in _sites(model, names)]
    drafts = owned(drafts, policy, model)
    depth = sum(draft.claimed.method is not None for draft in drafts)
    settled = cache(lambda settings: settings.for_depth(depth))  # many layers have the same
    drafts = [replace(draft, decided=_decided(draft, settled)) for draft in drafts]
    told, arguments = _findings(model, drafts, example_inputs)
    drafts = _with_note_on_state(model, _noted(counted(_unless_read_past(drafts, told)), told))
    order = {own[0]: at for at, own in enumerate(names.values())}
    decisions = sorted(adjusted(model, names, drafts), key=lambda decision: order[decision.name])
    decisions += _outside(model)
    return Plan(kind_of(model).__name__, policy, tuple(decisions), totals(model, decisions), arguments, insertions)


def _names(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """Every dotted name of every module, by id, in the model's order."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return {key: tuple(own) for key, own in names.items()}


def _sites(model: nn.Module, names: Mapping[int, tuple[str, ...]]) -> Iterator[Site]:
    """The modules that bear a weight, in the model's order."""
    modules = dict(model.named_modules(remove_duplicate=False))
    traced = census(model)
    forwards = Forwards(frozenset(id(modules[name]) for name in traced.reached_into) if traced else frozenset())
    for name, module in model.named_modules():
        if bears_weight(module):
            ancestors = {parent: modules[parent] for alias in names[id(module)] for parent in _parents(alias)}
            yield Site(module, name, tuple(ancestors.items()), traced, forwards)


def _parents(name: str) -> list[str]:
    """The names of all modules around this one: "", "layer1", "layer1.0" of "layer1.0.conv1"."""
    parts = name.split(".") if name else []
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def _decided(draft: Draft, settled: Callable[[Settings], Settings]) -> Decision:
    """What happens to the site.

    Args:
        draft: the site's, claimed.
        settled: the settings for a network of this depth.
    """
    site, claimed, kind = draft.site, draft.claimed, kind_of(draft.site.module)
    decision = partial(Decision, site.name, draft.names[1:], type=kind.__name__)
    if draft.blocked is not None:
        return decision(verb="blocked", reason=draft.blocked)
    if claimed.method is None or claimed.settings is None:
        reason = claimed.reason if draft.convertible else kept_because(site.module)
        return decision(verb="keeps", rule=claimed.rule, reason=reason)
    settings = settled(claimed.settings)
    drawn = tuple(name for name in site.drawn if site.known or name in dict(settings.weights))
    settings = replace(settings, batch_dim=batch_dim(site), drawn=drawn)
    if site.weights or (site.readers and not site.called):
        settings = replace(settings, bias="deterministic")
    becomes = converted_class(site.module, claimed.method, bool(site.weights)).__name__
    if settings.posterior.basis == "inputs" and not has_axes(site, settings):
        settings = replace(settings, posterior=replace(settings.posterior, basis="weights"))
        decision = partial(decision, notes=(_NO_AXES,))
    return decision(
        verb="converts", rule=claimed.rule, becomes=becomes, method=claimed.method, settings=settings,
        uncompiled=bool(site.weights) and site.forwards.uses(site.module).unseen_by_dynamo,
    )  # fmt: skip


def _findings(
    model: nn.Module, drafts: Sequence[Draft], given: ExampleInputs | None
) -> tuple[dict[str, Finding], tuple[BatchArgument, ...]]:
    """What the example inputs tell of the layers that convert, by name, and of the model's arguments."""
    if given is None:
        return {}, ()
    decisions = [draft.decision for draft in drafts]
    layers = {decision.name: decision.settings for decision in decisions if decision.settings is not None}
    return findings(model, layers, given)


def _unless_read_past(drafts: Sequence[Draft], findings: Mapping[str, Finding]) -> list[Draft]:
    """The drafts, those blocked whose weights code was seen to multiply by in a way that no trace had shown.

    Raises:
        NothingToConvertError: no layer is left to convert.
    """
    left = [_unless_seen(draft, findings.get(draft.decision.name)) for draft in drafts]
    if not any(draft.decision.method for draft in left):
        reasons = "; ".join(f"{draft.decision.name!r}: {draft.decision.reason}" for draft in left)
        raise NothingToConvertError(f"no layer is left to convert: {reasons}")
    return left


def _unless_seen(draft: Draft, finding: Finding | None) -> Draft:
    if finding is None or finding.outside is None:
        return draft
    if draft.site.weights or draft.site.rerouting or any(True for _ in read_beside(draft.site)):
        return draft
    reason = f"code at {finding.outside} multiplies by its weight without calling it, in a forward that does not trace"
    own = draft.decision
    return replace(draft, decided=Decision(own.name, own.aliases, "blocked", own.type, reason=reason))


def _noted(drafts: Sequence[Draft], findings: Mapping[str, Finding]) -> list[Draft]:
    """The drafts with notes, and with the examples where the example inputs found them."""
    sequences = any(layer_kind(draft.site.module).on_sequences for draft in drafts)
    return [_with_notes(draft, findings.get(draft.decision.name), sequences) for draft in drafts]


def _with_notes(draft: Draft, finding: Finding | None, sequences: bool) -> Draft:
    method, settings, aliases = draft.decision.method, draft.decision.settings, draft.decision.aliases
    if method is None or settings is None:
        return draft
    settings = settings if finding is None else finding.settled(settings)
    more = notes(draft.site, method, settings, aliases=bool(aliases), sequences=sequences, finding=finding)
    beside = any(True for _ in read_beside(draft.site))
    return draft.with_decision(settings=settings, notes=(*draft.decision.notes, *more), beside=beside)


def _with_note_on_state(model: nn.Module, drafts: list[Draft]) -> list[Draft]:
    """The drafts, the first that converts with a note on state that a caller hands from one call to the next."""
    state, converting = handed_state(model), (draft for draft in drafts if draft.decision.method)
    first = next(converting, None)
    if state is None or first is None:
        return drafts
    note = f"{type(model).__name__} is handed {state} from call to call, {ANEW}"
    noted = first.with_decision(notes=(*first.decision.notes, note))
    return [noted if draft is first else draft for draft in drafts]


def _outside(model: nn.Module) -> list[Decision]:
    return [
        Decision(name, (), "blocked", type(module).__name__, reason=_OUTSIDE) for name, module in unregistered(model)
    ]
