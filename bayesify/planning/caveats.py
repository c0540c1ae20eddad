"""Notes on a layer that converts: approximations, frozen weights, calls, where its examples are. One sentence each."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..analysis.bytecode import read_again, read_along, takes_derivatives, takes_state_dict
from ..analysis.other_methods import multiplying_methods
from ..analysis.probe.findings import Finding
from ..analysis.site import Site
from ..nn.layer_kinds import layer_kind
from ..nn.settings import Method, Settings
from ..programs.part import Part
from .surroundings import folds_windows, sequence_first

_COMPUTED = "its forward computes with it beside calling the layer"
ANEW = "each of which draws anew: bayesify.draw(model) holds one draw over all of them"
FROZEN = "frozen (requires_grad=False)"


def notes(
    site: Site, method: Method, settings: Settings, *, aliases: bool, sequences: bool, finding: Finding | None = None
) -> Iterator[str]:
    """The notes on one layer.

    Args:
        site: the layer.
        method, settings: how it converts.
        aliases: whether it has more than one name.
        sequences: whether the model works on sequences, as far as its layers tell.
        finding: what example inputs told about it, if there were any.
    """
    yield from _without_posterior(site, settings)
    yield from (*read_beside(site), *_asks_for_state(site), *_in_other_methods(site))
    if settings.drawn:
        names = ", ".join(settings.drawn)
        computes = any(not site.module.get_parameter(name).is_complex() for name in settings.drawn)
        why = "its forward computes with it before it multiplies" if computes else "its numbers are complex"
        yield f"one draw of {names} serves the whole batch: {why}"
    calls = site.census.calls.get(site.name, 0) if site.census else 0
    yield from _calls(site, calls) if finding is None else finding.notes()
    calls = _products(site, calls if finding is None else len(finding.shapes))
    yield from (*_anew(site, method, calls), *_from_call_to_call(site))
    if site.is_table and getattr(site.module, "sparse", False):
        yield "its gradient from the output is sparse, that from the KL is dense"
    if method == "lrt":
        yield from _lrt(site, calls > 1 or aliases, sequences)
    elif settings.signs == "position":
        yield "approximate: signs per position ignore that positions share one weight"
    elif site.weights and site.forwards.uses(site.module).grouped:
        yield "approximate: each row that an expert sees has signs of its own, since it sees tokens and not examples"
    elif finding is not None and finding.problem is not None:
        yield f"approximate: signs along dimension {settings.batch_dim} follow no example: {finding.problem}"
    elif finding is not None and finding.batch_layout is not None:
        yield from _batch_layout(settings)
    elif settings.batch_dim:
        yield f"examples along dimension {settings.batch_dim}"
    else:
        yield from _unseen_layout(site)


def _products(site: Site, calls: int) -> int:
    """How often its weight is multiplied by: in its calls, and by code beside them."""
    return max(calls, 1) + len(site.rerouting) if site.known and site.called else calls


def read_beside(site: Site) -> Iterator[str]:
    """Code around the layer that takes its weight without noise, beside calling it."""
    rerouted = [id(parent) for _, parent in site.rerouting]
    for _, parent in site.readers if site.called else ():
        uses = site.forwards.uses(parent)
        read = [id(matrix) for matrix in site.matrices.values()]
        computed = _COMPUTED if id(parent) not in rerouted and uses.drawn.keys() & {*read} else None
        problem = next(filter(None, (uses.problems.get(matrix) for matrix in read)), computed)
        if problem is not None:
            yield f"{type(parent).__name__} takes its weight beside, without noise: {problem}"


def _asks_for_state(site: Site) -> Iterator[str]:
    for _, parent in (*site.parents, (site.name, site.module)):
        cls = type(parent)
        if not cls.__module__.startswith("torch.nn.") and site.forwards.of_class(takes_state_dict, cls):
            yield f"{cls.__name__}'s forward asks for a state_dict, in which the scales are now"


def _in_other_methods(site: Site) -> Iterator[str]:
    """Methods of modules around the layer, or of its own, that multiply by its weight where no forward does."""
    own = {id(matrix) for matrix in site.matrices.values()}
    for _, module in (*site.parents, (site.name, site.module)):
        if type(module).__module__.startswith("torch.nn."):
            continue
        methods = site.forwards.of_class(multiplying_methods, type(module)).items()
        names = [f"{type(module).__name__}.{name}()" for name, chains in methods if own & read_along(module, chains)]
        if names:
            many = "multiply" if names[1:] else "multiplies"
            yield f"{', '.join(names)} {many} by it without noise, which only forward() has"


def _anew(site: Site, method: Method, calls: int) -> Iterator[str]:
    """What several calls of a layer do with its draw."""
    if isinstance(site.module, nn.RNNCellBase):
        yield "a cell draws anew at each call: the steps of a loop over it share no draw"
    elif method == "flipout" and calls > 1:
        yield "each of its calls draws anew, for one example too: bayesify.draw(model) holds one draw over all of them"


def _from_call_to_call(site: Site) -> Iterator[str]:
    """State that a forward around the layer keeps for its next call."""
    for _, parent in site.parents:
        cls = type(parent)
        again = () if cls.__module__.startswith("torch.nn.") else site.forwards.of_class(read_again, cls)
        remembers = site.forwards.uses(parent).remembers if again else ()
        kept = [place for place in remembers if place.removeprefix("self.") in again]
        if kept:
            yield f"{cls.__name__} keeps {', '.join(kept)} from call to call, {ANEW}"


def _without_posterior(site: Site, settings: Settings) -> Iterator[str]:
    """The matrices of a layer that converts which get no posterior."""
    reasons = site.problems if site.weights else {}
    if isinstance(site.module, Part):
        reasons = site.module.exported_problems
    frozen = {name: FROZEN for name, _ in site.weights if name not in dict(settings.weights)}
    yield from (f"{name} keeps no posterior: {why}" for name, why in (reasons | frozen).items())


def _lrt(site: Site, shared: bool, sequences: bool) -> Iterator[str]:
    """Where LRT is an approximation: where several positions or calls share a weight."""
    approximation = layer_kind(site.module).lrt
    if approximation and (site.known or not site.looks_up):
        yield f"approximate: {approximation}"
    elif sequences:
        yield "approximate where its input is a sequence: LRT draws per position"
    if shared:
        yield "approximate: LRT ignores that its calls share one weight"
    for _, parent in site.parents:
        cls = type(parent)
        if not cls.__module__.startswith("torch.nn.") and site.forwards.of_class(takes_derivatives, cls):
            yield f"approximate: {cls.__name__}'s forward takes derivatives, of which LRT's noise has another law"


def _calls(site: Site, calls: int) -> Iterator[str]:
    if site.census is not None and site.census.never_called(site.name) and not site.readers:
        yield f"never called in the traced forward ({'train' if site.module.training else 'eval'} mode)"
    if calls > 1:
        yield f"called {calls} times"


def _batch_layout(settings: Settings) -> Iterator[str]:
    """Where the examples are, unless dimension 0 is simply the batch."""
    if settings.batch_dim < 0:
        yield "its input is the same for all examples: one draw serves the whole batch"
    elif settings.rows > 1:
        turns = {0: "one example after the other", 1: "in turns"}.get(settings.run, f"in turns of {settings.run}")
        yield f"examples along dimension {settings.batch_dim}, {settings.rows} rows each, {turns}"
    elif settings.batch_dim:
        yield f"examples along dimension {settings.batch_dim}"


def _unseen_layout(site: Site) -> Iterator[str]:
    """Why Flipout's signs, drawn along dimension 0, may not follow the model's examples."""
    beside = sequence_first(site)
    if beside is not None:
        yield (
            f"approximate if its input is (sequence, batch, ...), as {beside!r} beside it takes it: "
            "the signs follow dimension 0"
        )
    if folds_windows(site):
        yield "approximate if windows are folded into its batch: each window has signs of its own"
