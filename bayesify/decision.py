"""What happens to one module, and why: planning decides it, the report shows it, surgery carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .nn.settings import Method, Settings

Verb = Literal["converts", "keeps", "blocked", "adjusted"]

# How notes begin that describe a layer and ask for no care.
_DESCRIBING = "called ", "examples along dimension", "its input is the same for all examples"


@dataclass(frozen=True)
class Decision:
    """What happens to one module, and why.

    Attributes:
        name: the module's dotted name, the first in the model's order; "" is the model itself.
        aliases: its other names.
        verb: converts; keeps (the policy says so, or the module has no weight matrix); blocked (it cannot convert);
            adjusted (it changes in another way, so that layers inside can convert).
        type, becomes: class names; `becomes` is None unless the module converts.
        rule: the name of the rule that owns the module.
        reason: why it is kept, blocked or adjusted.
        parameters_before, parameters_after: elements of this module's own Parameters; one that is tied counts in the
            first module that has it.
        method, settings: what `convert` carries out.
        notes: what to know of the conversion, such as where it is an approximation.
        reads: dotted names, relative to this module, of the modules whose weights its own forward multiplies by.
        uncompiled: whether torch.compile must leave its forward to eager mode.
        hides: whether scales are left out where a forward goes over its Parameters.
        beside: whether code around it takes its weight without noise, as its notes say.
    """

    name: str
    aliases: tuple[str, ...]
    verb: Verb
    type: str
    rule: str | None = None
    reason: str | None = None
    becomes: str | None = None
    parameters_before: int = 0
    parameters_after: int = 0
    method: Method | None = None
    settings: Settings | None = None
    notes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    uncompiled: bool = False
    hides: bool = False
    beside: bool = False

    @property
    def descriptions(self) -> tuple[str, ...]:
        """The notes that only describe: how often the layer is called, with what, and where the examples are."""
        return tuple(note for note in self.notes if note.startswith(_DESCRIBING))

    @property
    def warnings(self) -> tuple[str, ...]:
        """The other notes: where the conversion is an approximation, or leaves something out."""
        return tuple(note for note in self.notes if not note.startswith(_DESCRIBING))

    def to_dict(self) -> dict[str, Any]:
        """Plain data under the keys that `bayesify convert --json` prints."""
        return {
            "name": self.name, "aliases": list(self.aliases), "verb": self.verb, "type": self.type,
            "becomes": self.becomes, "rule": self.rule, "reason": self.reason,
            "parameters_before": self.parameters_before, "parameters_after": self.parameters_after,
            "posterior": self.settings and self.settings.posterior.to_dict(),
            "prior": self.settings and self.settings.prior.to_dict(),
            "notes": list(self.notes),
        }  # fmt: skip
