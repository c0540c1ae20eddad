"""The plan: one record for every module that bears a weight, made before anything changes. Touches nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..analysis.census import Census, census
from ..analysis.probe.example_inputs import ExampleInputs
from ..analysis.probe.findings import Reach, examples_dim, reach
from ..analysis.site import Forwards, Site
from ..decision import Decision
from ..errors import NothingToConvertError, PolicyError
from ..nn.layer_kinds import bias_names, layer_kind, weight_names
from ..nn.parametrized_weights import identity, sources, value
from ..nn.registry import converted_class
from ..nn.settings import Settings
from ..policy.policy import Policy, PolicyLike
from ..policy.rule_matching import Claim, claim
from ..policy.selectors import Candidate
from ..programs.part import kind_of
from ..programs.program import is_exported, prepared
from .blockers import bears_weight, blocker, kept_because
from .caveats import FROZEN, notes
from .plan import Plan
from .refusals import refuse_model
from .surroundings import batch_dim, fused_parents, unregistered


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
    traced = census(model)
    sites = _sites(model, names, traced)
    reasons = [blocker(site) for site in sites]
    claims = _claims(model, policy, sites, names, reasons)
    depth = sum(each.method is not None for each in claims)
    rows = [
        _row(site, names[id(site.module)], reason, each, depth)
        for site, reason, each in zip(sites, reasons, claims, strict=True)
    ]
    settings = {row.name: row.settings for row in rows if row.settings is not None}
    reaches = {} if example_inputs is None else reach(model, settings, example_inputs)
    rows = list(_with_notes(_counted(rows, sites), sites, reaches))
    rows = _rerouting(names, _adjusted(model, names, rows, sites), sites)
    order = {found[0]: at for at, found in enumerate(names.values())}
    rows.sort(key=lambda row: order[row.name])
    rows += [_outside(*each) for each in unregistered(model)]
    batch_dim = 0 if example_inputs is None else examples_dim(example_inputs)
    return Plan(kind_of(model).__name__, policy, tuple(rows), _totals(model, rows), batch_dim, insertions)


def _names(model: nn.Module) -> dict[int, list[str]]:
    """Every dotted name of every module, by id, in the model's order."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names


def _sites(model: nn.Module, names: dict[int, list[str]], traced: Census | None) -> list[Site]:
    modules = dict(model.named_modules(remove_duplicate=False))
    sites, forwards = [], Forwards()
    for name, module in model.named_modules():
        if bears_weight(module):
            ancestors = {parent: modules[parent] for alias in names[id(module)] for parent in _parents(alias)}
            sites.append(Site(module, name, tuple(ancestors.items()), traced, forwards))
    return sites


def _parents(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def _claims(
    model: nn.Module, policy: Policy, sites: list[Site], names: dict[int, list[str]], reasons: list[str | None]
) -> list[Claim]:
    candidates = [
        Candidate(
            tuple(names[id(site.module)]), kind_of(site.attention or site.module), _convertible(site, reason), reason,
            asked=site.is_table and site.name != "",
        )
        for site, reason in zip(sites, reasons, strict=True)
    ]
    claims = claim(policy, candidates, [name for found in names.values() for name in found])
    claims = [_unless_frozen(each, site, policy) for each, site in zip(claims, sites, strict=True)]
    claims = _with_attention(claims, sites)
    if not any(each.method for each in claims):
        frozen = any(each.reason == FROZEN for each in claims)
        why = f"is {FROZEN}: `frozen: convert` converts it all the same" if frozen else f"is an out_proj: {_READ}"
        raise NothingToConvertError(f"all that the policy selects in {type(model).__name__} {why}")
    return claims


def _convertible(site: Site, reason: str | None) -> bool:
    return reason is None and (site.known or bool(site.weights))


def _unless_frozen(claimed: Claim, site: Site, policy: Policy) -> Claim:
    if claimed.method is None:
        return claimed
    settings = replace(claimed.settings or Settings(), weights=site.weights)
    names = list(dict(site.weights)) or weight_names(site.module, settings)[:1]
    if policy.frozen != "convert":
        names = [name for name in names if any(each.requires_grad for each in sources(site.module, name))]
    if not names:
        return replace(claimed, method=None, settings=None, reason=FROZEN)
    weights = tuple(each for each in site.weights if each[0] in names)
    return replace(claimed, settings=replace(settings, weights=weights))


def _with_attention(claims: list[Claim], sites: list[Site]) -> list[Claim]:
    """An attention's `out_proj` is called only where the attention itself converts."""
    converting = {id(site.module) for site, each in zip(sites, claims, strict=True) if each.method}
    return [
        replace(each, method=None, settings=None, reason=_READ)
        if each.method and site.attention is not None and id(site.attention) not in converting
        else each
        for each, site in zip(claims, sites, strict=True)
    ]


def _outside(name: str, module: nn.Module) -> Decision:
    reason = "not registered in the model, so neither trained nor saved with it: an nn.ModuleList or ModuleDict would"
    return Decision(name, (), "blocked", type(module).__name__, reason=reason)


def _row(site: Site, names: list[str], reason: str | None, claimed: Claim, depth: int) -> Decision:
    module = site.module
    row = Decision(site.name, tuple(names[1:]), "keeps", kind_of(module).__name__, rule=claimed.rule)
    if reason is not None:
        return replace(row, verb="blocked", rule=None, reason=reason)
    if claimed.method is None or claimed.settings is None:
        kept = claimed.reason if _convertible(site, reason) else kept_because(module)
        return replace(row, reason=kept)
    becomes = converted_class(module, claimed.method, bool(site.weights))
    settings = claimed.settings.for_depth(depth)
    drawn = tuple(name for name in site.drawn if site.known or name in dict(settings.weights))
    settings = replace(settings, batch_dim=batch_dim(site), drawn=drawn)
    if site.weights or (site.readers and not site.called):
        settings = replace(settings, bias="deterministic")
    unseen = bool(site.weights) and site.forwards.uses(module).unseen_by_dynamo
    method = claimed.method
    return replace(
        row, verb="converts", becomes=becomes.__name__, method=method, settings=settings, uncompiled=unseen
    )


def _counted(rows: list[Decision], sites: list[Site]) -> list[Decision]:
    """Count each Parameter at its first row, and hold tied ones to one posterior."""
    seen: dict[int, str] = {}
    posteriors: dict[tuple[int, ...], Decision] = {}
    counted = []
    for row, site in zip(rows, sites, strict=True):
        own = dict(site.module.named_parameters(recurse=False))
        fresh = {name: each for name, each in own.items() if id(each) not in seen}
        tied = tuple(f"{name} is tied to {seen[id(each)]}" for name, each in own.items() if id(each) in seen)
        seen |= {id(each): f"{row.name}.{name}".lstrip(".") for name, each in fresh.items()}
        new = 0
        for name in _means(row, site.module):
            first = posteriors.setdefault(identity(site.module, name), row)
            _refuse_two_posteriors(first, row, name)
            new += _size(value(site.module, name)) if first is row else 0
        before = sum(_size(each) for each in fresh.values())
        counted.append(replace(row, parameters_before=before, parameters_after=before + new, notes=tied))
    return counted


def _means(row: Decision, module: nn.Module) -> list[str]:
    if row.settings is None:
        return []
    return weight_names(module, row.settings) + (bias_names(module) if row.settings.bias == "variational" else [])


def _size(tensor: Tensor | None) -> int:
    return 0 if tensor is None or is_lazy(tensor) else tensor.numel()


def _refuse_two_posteriors(first: Decision, row: Decision, name: str) -> None:
    assert first.settings is not None
    assert row.settings is not None
    if (first.settings.posterior, first.settings.prior) != (row.settings.posterior, row.settings.prior):
        raise PolicyError(
            [
                f"{first.name!r} ({first.rule}) and {row.name!r} ({row.rule}) share one {name}, which can have "
                "only one posterior and prior: give both layers to one rule"
            ]
        )


def _with_notes(rows: list[Decision], sites: list[Site], reaches: dict[str, Reach]) -> Iterator[Decision]:
    sequences = any(layer_kind(site.module).on_sequences for site in sites)
    for row, site in zip(rows, sites, strict=True):
        more: Iterable[str] = ()
        if row.method is not None and row.settings is not None:
            method, aliases, found = row.method, bool(row.aliases), reaches.get(row.name)
            row = row if found is None else replace(row, settings=found.settled(row.settings))
            assert row.settings is not None
            more = notes(site, method, row.settings, aliases=aliases, sequences=sequences, reach=found)
        yield replace(row, notes=(*row.notes, *more))


def _adjusted(model: nn.Module, names: dict[int, list[str]], rows: list[Decision], sites: list[Site]) -> list[Decision]:
    """The rows, and those of what is switched beside; a module that has a row of its own already keeps one."""
    parents = fused_parents(model, [site.module for site, row in zip(sites, rows, strict=True) if row.method])
    found = {row.name: row for row in rows}
    reasons = [(module, _FUSED) for _, module in parents.layers] + [(module, _NESTED) for _, module in parents.encoders]
    for module, reason in reasons:
        name, *aliases = names[id(module)]
        row = found.get(name, Decision(name, tuple(aliases), "adjusted", type(module).__name__))
        more = (row.reason,) if row.reason else ()
        found[name] = replace(row, verb="adjusted", rule=None, reason=reason, notes=(*row.notes, *more))
    return list(found.values())


def _rerouting(names: dict[int, list[str]], rows: list[Decision], sites: list[Site]) -> list[Decision]:
    """The rows, and those of modules that multiply by the weights of converting ones below them."""
    found = {row.name: row for row in rows}
    readers: dict[int, tuple[nn.Module, list[str]]] = {}
    for site in sites:
        for _, module in site.rerouting if found[site.name].verb == "converts" else ():
            path = next(path for path, each in module.named_modules() if each is site.module)
            readers.setdefault(id(module), (module, []))[1].append(path)
    for module, reads in readers.values():
        name, *aliases = names[id(module)]
        row = found.get(name, Decision(name, tuple(aliases), "adjusted", kind_of(module).__name__))
        why = f"its own products with the weights of {', '.join(map(repr, reads))} are rerouted to the noise"
        unseen = row.uncompiled or sites[0].forwards.uses(module).unseen_by_dynamo
        more, row = why, replace(row, reads=tuple(reads), uncompiled=unseen)
        if row.verb != "converts":
            more, row = row.reason or "", replace(row, verb="adjusted", rule=None, reason=why)
        found[name] = replace(row, notes=(*row.notes, *filter(None, (more,))))
    return list(found.values())


_READ = "nn.MultiheadAttention reads its weight without calling it, and is kept"
_FUSED = "its fused inference path reads weights past the noise: switched off"
_NESTED = "its nested-tensor path is switched off: outputs under the padding mask are computed, no longer zeros"


def _totals(model: nn.Module, rows: list[Decision]) -> dict[str, int]:
    verbs = Counter(row.verb for row in rows)
    before = sum(_size(each) for each in model.parameters())
    added = sum(row.parameters_after - row.parameters_before for row in rows)
    return {
        **{verb: verbs[verb] for verb in ("converts", "keeps", "blocked", "adjusted")},
        "parameters_before": before,
        "parameters_after": before + added,
    }  # fmt: skip
