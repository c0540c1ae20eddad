"""How one layer is variational, apart from its estimator: what the policy says, and what planning saw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..distributions.posterior import Posterior
from ..distributions.prior import Normal, Prior
from ..distributions.scale import Scale

Method = Literal["flipout", "lrt"]


@dataclass(frozen=True)
class Settings:
    """One variational layer's settings. The defaults are those of a stand-alone layer, built fresh.

    Attributes:
        posterior: how the std is parameterized and where it starts.
        prior: what KL is measured against.
        bias: `variational` puts a posterior on the bias too.
        signs: Flipout's signs, drawn per `example` of the batch or per `position` (pixel, token).
        batch_dim: the input's dimension that holds the model's examples (1 in a sequence-first network); -1 where none
            does, so that one draw serves the whole batch.
        rows: how many rows of that dimension belong to one example: more than 1 where other dimensions are folded into
            it (windows, tokens); 0 where there were no example inputs to tell.
        run: how many rows of one example follow each other: 0 for all of them, 1 where the examples take turns.
        weights: (name, fan-in) of the Parameters that get a posterior, for a class without a variational form.
        drawn: the names of the Parameters that the forward computes another weight from: one draw for each call.
    """

    posterior: Posterior = Posterior()
    prior: Prior = Normal(0.0, Scale("constant", 1.0))
    bias: Literal["deterministic", "variational"] = "deterministic"
    signs: Literal["example", "position"] = "example"
    batch_dim: int = 0
    rows: int = 0
    run: int = 0
    weights: tuple[tuple[str, int], ...] = ()
    drawn: tuple[str, ...] = ()

    def for_depth(self, layers: int) -> Settings:
        """The same settings with `auto` and `init_std` settled, for a network of `layers` converted layers."""
        posterior = self.posterior.for_depth(layers)
        assert posterior.init_std is not None
        prior = self.prior.settled(posterior.init_std, layers) if isinstance(self.prior, Normal) else self.prior
        return replace(self, posterior=posterior, prior=prior)
