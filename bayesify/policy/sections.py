"""The sections of a policy: a posterior's settings, a prior's, a rule's. What is not given is None, and inherited."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..distributions.scale import Scale
from . import values as values
from .values import Family, MethodName

if TYPE_CHECKING:
    from ..distributions.posterior import Posterior
    from ..distributions.prior import Prior


class Section(BaseModel):
    """A frozen model that refuses keys it doesn't know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def given(self) -> dict[str, Any]:
        """The settings that are given, by name."""
        return {name: value for name, value in self if value is not None}


class PosteriorSettings(Section):
    """How a weight's posterior is parameterized and where its std starts. A rule may give one and inherit the other."""

    parameterization: Annotated[Literal["additive", "multiplicative"] | None, values.PARAMETERIZATION] = Field(
        default=None,
        description="additive: std = softplus(rho). multiplicative: std = |mean|*sqrt(alpha). Default: additive.",
    )
    init_std: Annotated[Scale | Literal["auto"] | None, values.INITIAL_STD] = Field(
        default=None, description="Where the std starts. auto: a share of |w| that falls with depth. Default: auto."
    )

    basis: Annotated[Literal["weights", "inputs"] | None, values.BASIS] = Field(
        default=None,
        description="What is independent. inputs: a Linear layer's weights along the principal axes of the example "
        "inputs that reach it, which must be given. Default: weights.",
    )
    noise_dtype: Annotated[Literal["weights", "bfloat16"] | None, values.NOISE_DTYPE] = Field(
        default=None,
        description="What the product with the noise may be computed in. bfloat16: the noise's std is at most 0.3 % "
        "off; mean, KL and parameters stay in the weights' dtype. Default: weights.",
    )

    def over(self, base: PosteriorSettings) -> PosteriorSettings:
        """These settings, with those that are not given taken from `base`."""
        return base.model_copy(update=self.given())

    def built(self) -> Posterior:
        """The posterior that they describe."""
        from ..distributions.posterior import Posterior

        std = self.init_std if isinstance(self.init_std, Scale) else None
        return Posterior(
            self.parameterization or "additive", std, self.basis or "weights", self.noise_dtype or "weights"
        )


class PriorSettings(Section):
    """What KL is measured against. A rule may give some keys and inherit the others, unless it changes the family."""

    family: Annotated[Family | None, values.FAMILY] = Field(
        default=None,
        description="normal (keys: mean, std), scale_mixture (keys: pi, std1, std2; Blundell et al. 2015) or "
        "log_uniform (no keys; for a multiplicative posterior; Molchanov et al. 2017). Default: normal.",
    )
    mean: Annotated[float | Literal["zero", "pretrained", "auto"] | None, values.MEAN] = Field(
        default=None,
        description="normal: its centre. pretrained: the weights as they are. auto: with no std given, N(0, 25/fan_in) "
        "where at most 6 layers convert, and pretrained where more do or a std is given. Default: auto.",
    )
    std: Annotated[Scale | None, values.PRIOR_STD] = Field(
        default=None, description="normal: the prior's std. Default: {init_std: 3.0}."
    )
    pi: Annotated[float | None, values.SHARE] = Field(
        default=None, description="scale_mixture: the share of the first component. Default: 0.5."
    )
    std1: Annotated[float | None, values.POSITIVE] = Field(
        default=None, description="scale_mixture: the std of the first component. Default: 1."
    )
    std2: Annotated[float | None, values.POSITIVE] = Field(
        default=None, description="scale_mixture: the std of the second component. Default: exp(-6)."
    )

    def over(self, base: PriorSettings) -> PriorSettings:
        """These settings, with those that are not given taken from `base`, or built in where the family is another."""
        if self.family not in (None, base.family):
            base = BUILTIN_PRIORS[self.family]
        return base.model_copy(update=self.given())

    def built(self) -> Prior:
        """The prior that they describe."""
        from ..distributions.prior import LogUniform, Normal, ScaleMixture

        if self.family == "log_uniform":
            return LogUniform()
        if self.family == "scale_mixture":
            return ScaleMixture(**{key: value for key, value in self.given().items() if key != "family"})
        if self.mean in (None, "auto") and self.std is None:
            return Normal("auto")
        mean = 0.0 if self.mean == "zero" else "pretrained" if self.mean in (None, "auto") else self.mean
        return Normal(mean, self.std or Normal().std)


BUILTIN_POSTERIOR = PosteriorSettings(
    parameterization="additive", init_std="auto", basis="weights", noise_dtype="weights"
)
BUILTIN_PRIORS: dict[Family | None, PriorSettings] = {
    "normal": PriorSettings(family="normal", mean="auto"),
    "scale_mixture": PriorSettings(family="scale_mixture", pi=0.5, std1=1.0, std2=math.exp(-6)),
    "log_uniform": PriorSettings(family="log_uniform"),
}


class Rule(Section):
    """A rule owns the layers that its targets select, unless an earlier one does. It inherits what it leaves out."""

    name: Annotated[str | None, values.TEXT] = Field(default=None, description="What the report calls the rule.")
    targets: tuple[Annotated[str, values.SELECTOR], ...] = Field(
        description="Selectors of layers: 'fc', 'layer[34].**.conv?', Conv2d, 're:...', 'type:pkg.Class', first, last.",
        json_schema_extra={"minItems": 1},
    )
    ignore: tuple[Annotated[str, values.SELECTOR], ...] = Field(
        default=(), description="Selectors of layers that this rule leaves to later rules."
    )
    method: Annotated[MethodName | None, values.METHOD] = Field(
        default=None, description="The estimator; keep: don't convert."
    )
    posterior: PosteriorSettings = Field(
        default=PosteriorSettings(), description="Merged over the defaults, key by key."
    )
    prior: PriorSettings = Field(default=PriorSettings(), description="Merged over the defaults, key by key.")
    bias: Annotated[Literal["deterministic", "variational"] | None, values.BIAS] = Field(
        default=None, description="Whether biases get a posterior too."
    )
    signs: Annotated[Literal["example", "position"] | None, values.SIGNS] = Field(
        default=None, description="Flipout's signs: drawn per example of the batch, or per position."
    )

    @field_validator("targets")
    @classmethod
    def _some(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if not targets:
            raise values.refused("an empty list selects nothing; name a layer, or leave the rule out.")
        return targets
