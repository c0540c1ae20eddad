"""Which rule of the policy owns which site, and the sites that stay as they are although a rule selects them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ..errors import NothingToConvertError
from ..nn.layer_kinds import weight_names
from ..nn.parametrized_weights import sources
from ..nn.settings import Settings
from ..policy.policy import Policy
from ..policy.rule_matching import Claim, claim
from ..policy.selectors import Candidate
from ..programs.part import kind_of
from .caveats import FROZEN
from .draft import Draft

_READ = "nn.MultiheadAttention reads its weight without calling it, and is kept"


def owned(drafts: Sequence[Draft], policy: Policy, model: nn.Module) -> list[Draft]:
    """The drafts with their claims.

    Raises:
        PolicyError: the policy does not fit the model.
        NothingToConvertError: no layer is left to convert.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    claims = claim(policy, [_candidate(draft) for draft in drafts], names)
    drafts = [_unless_frozen(replace(draft, claim=own), policy) for draft, own in zip(drafts, claims, strict=True)]
    converting = {id(draft.site.module) for draft in drafts if draft.claimed.method}
    drafts = [_unless_attention_is_kept(draft, converting) for draft in drafts]
    if not any(draft.claimed.method for draft in drafts):
        frozen = any(draft.claimed.reason == FROZEN for draft in drafts)
        why = f"is {FROZEN}: `frozen: convert` converts it all the same" if frozen else f"is an out_proj: {_READ}"
        raise NothingToConvertError(f"all that the policy selects in {type(model).__name__} {why}")
    return drafts


def _candidate(draft: Draft) -> Candidate:
    site = draft.site
    kind = kind_of(site.attention or site.module)
    asked = site.is_table and site.name != ""
    return Candidate(draft.names, kind, draft.convertible, draft.blocked, asked=asked)


def _unless_frozen(draft: Draft, policy: Policy) -> Draft:
    """Narrow the claim to the weights that are trained, unless the policy converts frozen ones too."""
    claimed, site = draft.claimed, draft.site
    if claimed.method is None:
        return draft
    names = list(dict(site.weights)) or weight_names(site.module)[:1]
    if policy.frozen != "convert":
        names = [name for name in names if any(source.requires_grad for source in sources(site.module, name))]
    if not names:
        return _kept(draft, FROZEN)
    weights = tuple((name, fan_in) for name, fan_in in site.weights if name in names)
    if not weights:
        return draft
    return replace(draft, claim=replace(claimed, settings=replace(claimed.settings or Settings(), weights=weights)))


def _unless_attention_is_kept(draft: Draft, converting: set[int]) -> Draft:
    """An attention's `out_proj` is called only where the attention itself converts."""
    attention = draft.site.attention
    if draft.claimed.method is None or attention is None or id(attention) in converting:
        return draft
    return _kept(draft, _READ)


def _kept(draft: Draft, reason: str) -> Draft:
    return replace(draft, claim=Claim(None, None, draft.claimed.rule, reason))
