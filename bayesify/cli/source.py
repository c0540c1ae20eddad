"""A model from wherever the user says it is: a file, or the code that builds it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import FileRefusedError, UsageError
from ..files.load_model import load_model
from ..files.model_factory import build_model, is_spec, parse_args
from ..files.untrusted.content import FOLDER
from ..files.weight_warnings import warn_of_not_finite


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        model: a file, or `package.module:callable`.
        allow: of a file, classes that may be built.
        args: of a factory, its arguments as `name=value`.
        weights, key, ignore_keys: of a factory, what to load into the model that it builds.
    """

    model: str
    allow: Sequence[str] = ()
    args: Sequence[str] = ()
    weights: str | None = None
    key: str | None = None
    ignore_keys: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("MODEL is empty: no such file; name one, or a factory package.module:callable")

    @property
    def is_factory(self) -> bool:
        """Whether the model is named by its code: a file of that name comes first."""
        return is_spec(self.model) and not os.path.lexists(self.model)

    @property
    def files(self) -> list[str]:
        """The files that are read."""
        return [path for path in (None if self.is_factory else self.model, self.weights) if path]

    def open(self, *, meta: bool = False, tell: Callable[[str], object] | None = None) -> nn.Module:
        """The model, its weights on the meta device if `meta`.

        `tell` is called with what is done to weights on the way, such as a wrapper's prefix that is stripped.

        Raises:
            UsageError: options that do not go together, or a file that is not there.
            FileRefusedError: a folder where a file should be.
            FileRefusedError, FactoryError: what is there cannot be opened or built.
        """
        self.check()
        if not self.is_factory:
            return load_model(self.model, allow=self.allow, key=self.key, meta=meta)
        model = build_model(
            self.model,
            parse_args(self.args),
            weights=self.weights,
            key=self.key,
            ignore_keys=self.ignore_keys,
            meta=meta,
            tell=tell,
        )
        warn_of_not_finite(model, self.weights or self.model)
        return model

    def recorded(self) -> dict[str, Any]:
        """What a converted file keeps of it: the factory and its arguments, for a network that only code can build."""
        return {"factory": self.model, "args": parse_args(self.args)} if self.is_factory else {}

    def check(self) -> None:
        """Refuse at once what could not be opened anyway.

        Raises:
            UsageError: options that do not go together, or a file that is not there.
        """
        given = {"--arg": self.args, "--weights": self.weights, "--ignore-keys": self.ignore_keys}
        first = next((option for option, value in given.items() if value), None)
        if first and not self.is_factory:
            raise UsageError(f"{first} goes with a factory, package.module:callable, and {self.model} is none")
        if self.allow and self.is_factory:
            raise UsageError(f"--allow goes with a file, and {self.model} is a factory, which runs as it is")
        if self.is_factory and (self.key or self.ignore_keys) and not self.weights:
            raise UsageError(f"{'--key' if self.key else '--ignore-keys'} goes with --weights, which is not given")
        gone = next((path for path in self.files if not os.path.lexists(path)), None)
        if gone is not None:
            raise UsageError(f"{gone}: no such file")
        folder = next((path for path in self.files if os.path.isdir(path)), None)
        if folder is not None:
            raise FileRefusedError(f"{folder}: {FOLDER}")
