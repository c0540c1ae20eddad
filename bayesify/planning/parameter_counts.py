"""How many Parameters each site has, before and after: each counts where it stands first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..decision import Decision
from ..errors import PolicyError
from ..nn.layer_kinds import bias_names, weight_names
from ..nn.parametrized_weights import identity, value
from .draft import Draft

_VERBS = ("converts", "keeps", "blocked", "adjusted")


def counted(drafts: Iterable[Draft]) -> list[Draft]:
    """The drafts with their counts, and with notes on tied Parameters.

    Raises:
        PolicyError: two rules give one Parameter, which two layers share, different posteriors or priors.
    """
    stands: dict[int, str] = {}
    posteriors: dict[tuple[int, ...], Decision] = {}
    return [_counted(draft, stands, posteriors) for draft in drafts]


def totals(model: nn.Module, decisions: Iterable[Decision]) -> dict[str, int]:
    """How many modules each verb has, and the model's Parameters before and after."""
    decisions = list(decisions)
    verbs = Counter[str](decision.verb for decision in decisions)
    before = sum(_size(parameter) for parameter in model.parameters())
    added = sum(decision.parameters_after - decision.parameters_before for decision in decisions)
    return {verb: verbs[verb] for verb in _VERBS} | {
        "parameters_before": before, "parameters_after": before + added,
    }  # fmt: skip


def _counted(draft: Draft, stands: dict[int, str], posteriors: dict[tuple[int, ...], Decision]) -> Draft:
    """Count one site.

    Args:
        draft: the site's.
        stands: where each Parameter of the sites before stands first, by its id; completed.
        posteriors: the decision that each mean's posterior was made for, by the mean's identity; completed.
    """
    decision, module = draft.decision, draft.site.module
    own = dict(module.named_parameters(recurse=False))
    fresh = {name: parameter for name, parameter in own.items() if id(parameter) not in stands}
    tied = tuple(f"{name} is tied to {stands[id(own[name])]}" for name in own if name not in fresh)
    stands |= {id(parameter): f"{decision.name}.{name}".lstrip(".") for name, parameter in fresh.items()}
    new = 0
    for name in _means(decision, module):
        first = posteriors.setdefault(identity(module, name), decision)
        _refuse_two_posteriors(first, decision, name)
        new += _size(value(module, name)) if first is decision else 0
    before = sum(map(_size, fresh.values()))
    notes = (*decision.notes, *tied)
    return draft.with_decision(parameters_before=before, parameters_after=before + new, notes=notes)


def _means(decision: Decision, module: nn.Module) -> list[str]:
    """The names of the Parameters that become posterior means."""
    if decision.settings is None:
        return []
    biases = bias_names(module) if decision.settings.bias == "variational" else []
    return weight_names(module, decision.settings) + biases


def _refuse_two_posteriors(first: Decision, second: Decision, name: str) -> None:
    assert first.settings is not None
    assert second.settings is not None
    if (first.settings.posterior, first.settings.prior) != (second.settings.posterior, second.settings.prior):
        raise PolicyError(
            [
                f"{first.name!r} ({first.rule}) and {second.name!r} ({second.rule}) share one {name}, which can have "
                "only one posterior and prior: give both layers to one rule"
            ]
        )


def _size(tensor: Tensor | None) -> int:
    return 0 if tensor is None or is_lazy(tensor) else tensor.numel()
