"""The policy, a frozen pydantic model: which layers of a model become variational, and how.

The comments in `configs/*.yaml` teach the grammar. Editors check a policy by `Policy.json_schema()`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator

from ..errors import PolicyError, UsageError
from ..escaping import printable
from . import values as values
from .json_schema import with_combinations, without_nulls
from .problems import Origin, Problem, combination_problems, schema_problems
from .problems import Path as KeyPath
from .sections import BUILTIN_POSTERIOR, BUILTIN_PRIORS, PosteriorSettings, PriorSettings, Rule, Section
from .values import MethodName
from .yaml_file import DEEPEST, as_yaml, presets, read_text, read_yaml

if TYPE_CHECKING:
    from ..nn.settings import Settings


class Policy(Section):
    """Which layers of a model become variational, and how.

    The top-level settings are the defaults. Rules are read from top to bottom, and the first that matches a layer owns
    it. A layer that no rule owns is kept. Without rules every layer converts. `Policy()` says the same as
    `method: flipout`.

    >>> Policy.from_dict({"rules": [{"name": "head", "targets": ["fc"], "method": "lrt"}]}).rules[0].method
    'lrt'
    """

    version: Annotated[int, values.VERSION] = Field(default=1, description="The grammar's version.")
    method: Annotated[MethodName, values.METHOD] = Field(
        default="flipout",
        description="The estimator where a rule names none; keep: convert only by rules that name one.",
    )
    posterior: PosteriorSettings = Field(default=BUILTIN_POSTERIOR, description="The posterior of each weight.")
    prior: PriorSettings = Field(default=BUILTIN_PRIORS["normal"], description="What KL is measured against.")
    bias: Annotated[Literal["deterministic", "variational"], values.BIAS] = Field(
        default="deterministic", description="Whether biases get a posterior too."
    )
    signs: Annotated[Literal["example", "position"], values.SIGNS] = Field(
        default="example",
        description="Flipout's signs: drawn per example of the batch, or per position (pixel, token).",
    )
    frozen: Annotated[Literal["keep", "convert"], values.FROZEN] = Field(
        default="keep", description="What to do with layers whose weight has requires_grad=False."
    )
    unmatched: Annotated[Literal["error", "allow"], values.UNMATCHED] = Field(
        default="error", description="allow: a selector may match nothing, in a policy that serves many models."
    )
    ignore: tuple[Annotated[str, values.SELECTOR], ...] = Field(
        default=(), description="Selectors of layers that stay as they are, whatever the rules say."
    )
    rules: tuple[Rule, ...] = Field(
        default=(),
        description="Read from top to bottom; the first that matches a layer owns it. No rules: every layer.",
    )

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @field_validator("posterior")
    @classmethod
    def _whole_posterior(cls, posterior: PosteriorSettings) -> PosteriorSettings:
        return posterior.over(BUILTIN_POSTERIOR)

    @field_validator("prior")
    @classmethod
    def _whole_prior(cls, prior: PriorSettings) -> PriorSettings:
        return prior.over(BUILTIN_PRIORS[prior.family or "normal"])

    @classmethod
    def parse(cls, policy: PolicyLike) -> Policy:
        """A policy from whatever `convert` takes for one.

        Args:
            policy: a Policy, a mapping, the name of a preset or of a method, or the path of a YAML file.

        Raises:
            PolicyError: everything that is wrong with the policy.
            UsageError: there is no such file, preset or method.
        """
        if isinstance(policy, Policy):
            policy._origin.refuse(combination_problems(policy.model_dump(mode="json", exclude_none=True)))
            return policy
        if isinstance(policy, Mapping):
            return cls.from_dict(policy)
        if not isinstance(policy, str | os.PathLike):
            raise UsageError(f"a policy is a Policy, a mapping, a name or a path, not {type(policy).__name__}")
        if isinstance(policy, str) and policy in presets():
            return _read(read_text(presets()[policy]), policy)
        if isinstance(policy, str) and policy in ("flipout", "lrt"):
            return cls.from_dict({"method": policy}, source=policy)
        return cls.from_yaml(policy)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Policy:
        """Read a YAML file. `PolicyError` holds everything that is wrong with it, each with its rule and line."""
        return _read(read_text(path), os.fspath(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str | None = None) -> Policy:
        """Read a mapping of the same shape as the YAML. `PolicyError` holds everything that is wrong with it."""
        return _checked(_plain(data), Origin(source), [])

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of a policy, with which an editor completes and checks one."""
        schema = with_combinations(without_nulls(cls.model_json_schema()))
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "bayesify policy"}

    @property
    def source(self) -> str | None:
        """The policy's file, preset or method name, if it came from one."""
        return self._origin.source

    @property
    def origin(self) -> Origin:
        """Where the policy came from, with the line of each key and the name of each rule, for messages."""
        return self._origin

    def with_method(self, method: str) -> Policy:
        """The policy with another top-level method; rules that name a method keep theirs."""
        return self.model_copy(update={"method": Policy.from_dict({"method": method}).method})

    def settings_for(self, rule: Rule | None) -> tuple[MethodName, Settings]:
        """The method and settings of a rule's layers: the rule's own, and the policy's where the rule has none."""
        from ..nn.settings import Settings

        rule = rule or Rule(targets=("**",))
        settings = Settings(
            posterior=rule.posterior.over(self.posterior).built(),
            prior=rule.prior.over(self.prior).built(),
            bias=rule.bias or self.bias,
            signs=rule.signs or self.signs,
        )
        return rule.method or self.method, settings

    def to_dict(self) -> dict[str, Any]:
        """Plain data that says the same, with every default filled in, also in the rules."""
        return self.model_copy(update={"rules": tuple(map(self._filled, self.rules))}).model_dump(
            mode="json", exclude_none=True
        )

    def to_yaml(self) -> str:
        """A policy file that says the same, with every default filled in."""
        return as_yaml(self.to_dict())

    def _repr_html_(self) -> str:
        return f"<pre>{escape(printable(self.to_yaml(), keep=_LINES))}</pre>"

    def _filled(self, rule: Rule) -> Rule:
        inherited = {name: getattr(rule, name) or getattr(self, name) for name in ("method", "bias", "signs")}
        merged = {"posterior": rule.posterior.over(self.posterior), "prior": rule.prior.over(self.prior)}
        return rule.model_copy(update={**inherited, **merged})


_LINES = "\n"

PolicyLike = Policy | Mapping[str, Any] | str | os.PathLike[str]  # what `plan` and `convert` take for one


def _read(text: str, source: str) -> Policy:
    data, origin, problems = read_yaml(text, source)
    return _checked(data, origin, problems)


def _checked(data: Any, origin: Origin, problems: list[Problem]) -> Policy:
    """The policy that plain data describes, or every problem of it at once."""
    problems = [*problems, *combination_problems(data)]
    origin = replace(origin, rules=_rule_names(data))
    try:
        policy = Policy.model_validate(data)
    except ValidationError as error:
        told = {problem.path for problem in problems}
        problems += [problem for problem in schema_problems(error, _model_at) if problem.path not in told]
        origin.refuse(problems)
        raise
    origin.refuse(problems)
    policy._origin = origin
    return policy


def _model_at(path: KeyPath) -> type[BaseModel]:
    """The model that reads the mapping at a path."""
    if not path:
        return Policy
    sections: dict[str | int, type[BaseModel]] = {"posterior": PosteriorSettings, "prior": PriorSettings}
    return sections.get(path[-1], Rule)


def _plain(data: Any, depth: int = 0) -> Any:
    """Mappings and sequences of any class, such as omegaconf's or ruamel's, as dicts and lists."""
    if depth > DEEPEST:
        raise PolicyError(["the policy is nested too deeply"])
    if isinstance(data, Section):
        return _plain(data.model_dump(mode="json", exclude_none=True), depth)
    if isinstance(data, Mapping):
        return {str(key): _plain(value, depth + 1) for key, value in data.items()}
    if isinstance(data, list | tuple | set | frozenset):
        return [_plain(value, depth + 1) for value in data]
    return data


def _rule_names(data: Any) -> dict[int, str]:
    rules = data.get("rules") if isinstance(data, dict) else None
    named = enumerate(rules) if isinstance(rules, list) else ()
    names = ((index, rule.get("name")) for index, rule in named if isinstance(rule, dict))
    return {index: name for index, name in names if isinstance(name, str) and name}
