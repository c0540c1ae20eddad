"""A model from wherever the user says it is: a file, a folder, or the code that builds it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UsageError
from ..files.load_model import load_model
from ..files.model_factory import build_model, is_spec, parse_args
from ..files.model_folder.configuration import configured
from ..files.model_folder.opening import open_folder
from ..files.weight_warnings import warn_of_not_finite


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        model: a file, a folder of transformers, peft, timm or diffusers, or `package.module:callable`.
        allow: of a file, classes that may be built.
        base: of a folder with adapters, that of their base network.
        args: of a factory, its arguments as `name=value`.
        weights, key, ignore_keys: of a factory, what to load into the model that it builds.
    """

    model: str
    allow: Sequence[str] = ()
    args: Sequence[str] = ()
    weights: str | None = None
    key: str | None = None
    ignore_keys: Sequence[str] = ()
    base: str | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("MODEL is empty: no such file; name one, or a factory package.module:callable")

    @property
    def is_factory(self) -> bool:
        """Whether the model is named by its code: a file of that name comes first."""
        return is_spec(self.model) and not os.path.lexists(self.model)

    @property
    def is_folder(self) -> bool:
        """Whether the model is a folder."""
        return os.path.isdir(self.model)

    @property
    def files(self) -> list[str]:
        """The files and folders that are read."""
        return [path for path in (None if self.is_factory else self.model, self.weights, self.base) if path]

    def open(self, *, meta: bool = False, tell: Callable[[str], object] | None = None) -> nn.Module:
        """The model, its weights on the meta device if `meta`.

        `tell` is called with what is done to weights on the way, such as a wrapper's prefix that is stripped.

        Raises:
            UsageError: options that do not go together, or a file that is not there.
            FileRefusedError, FactoryError: what is there cannot be opened or built.
        """
        self.check()
        if not self.is_factory and not self.is_folder:
            return load_model(self.model, allow=self.allow, key=self.key, meta=meta)
        model = self._of_folder(meta, tell) if self.is_folder else self._of_factory(meta, tell)
        warn_of_not_finite(model, self.weights or self.model)
        return model

    def _of_folder(self, meta: bool, tell: Callable[[str], object] | None) -> nn.Module:
        base = None if self.base is None else open_folder(Path(self.base), meta=meta)
        return open_folder(Path(self.model), into=base, meta=meta, tell=tell or (lambda note: None))

    def _of_factory(self, meta: bool, tell: Callable[[str], object] | None) -> nn.Module:
        return build_model(
            self.model,
            parse_args(self.args),
            weights=self.weights,
            key=self.key,
            ignore_keys=self.ignore_keys,
            meta=meta,
            tell=tell,
        )

    def recorded(self) -> dict[str, Any]:
        """What is kept of it: the factory and its arguments, for a network that only code can build; the folder."""
        if self.is_factory:
            return {"factory": self.model, "args": parse_args(self.args)}
        return {"like": self.model} if self.is_folder else {}

    def check(self) -> None:
        """Refuse at once what could not be opened anyway.

        Raises:
            UsageError: options that do not go together, or a file that is not there.
            FileRefusedError: a folder that holds no model.
        """
        given = {"--arg": self.args, "--weights": self.weights, "--ignore-keys": self.ignore_keys}
        first = next((option for option, value in given.items() if value), None)
        if first and not self.is_factory:
            raise UsageError(f"{first} goes with a factory, package.module:callable, and {self.model} is none")
        if self.is_folder and (self.allow or self.key):
            option = "--allow" if self.allow else "--key"
            raise UsageError(f"{option} goes with a file, and {self.model} is a folder, which says it all")
        if self.base and not self.is_folder:
            raise UsageError(f"--base goes with a folder of adapters, and {self.model} is none")
        if self.allow and self.is_factory:
            raise UsageError(f"--allow goes with a file, and {self.model} is a factory, which runs as it is")
        if self.is_factory and (self.key or self.ignore_keys) and not self.weights:
            raise UsageError(f"{'--key' if self.key else '--ignore-keys'} goes with --weights, which is not given")
        gone = next((path for path in self.files if not os.path.lexists(path)), None)
        if gone is not None:
            raise UsageError(f"{gone}: no such file")
        if self.is_folder:
            configured(Path(self.model))
