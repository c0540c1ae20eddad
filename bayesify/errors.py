"""The exceptions by which bayesify refuses. A message says what was wrong, where, and what to do.

Every one is a `BayesifyError`, and most are a builtin exception too, so that code which catches `ValueError` goes on
working. Names and keys that a message quotes may come from a file, so a message prints with every character escaped
that does not print.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from .escaping import printable


class BayesifyError(Exception):
    """The base class: `except bayesify.BayesifyError` catches whatever bayesify refuses.

    `exit_code` is the exit code of the command line.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class PolicyError(BayesifyError, ValueError):
    """A policy that cannot be read, or that does not fit the model; all its `problems`, not the first only.

    Args:
        problems: one sentence per problem, each with its rule and line where it has one.
        source: the policy's file, preset or method name, if known.
    """

    exit_code = 2

    def __init__(self, problems: Sequence[str], source: str | None = None) -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__(self.problems, source)

    def __str__(self) -> str:
        where = f"{printable(self.source)}: " if self.source else ""
        problems = [printable(problem) for problem in self.problems]
        if len(problems) == 1:
            return where + problems[0]
        return f"{where}{len(problems)} problems\n" + "\n".join(f"  - {problem}" for problem in problems)


class UsageError(BayesifyError, ValueError):
    """An argument that cannot be used as it is: a wrong value, a file that is not there, an output that exists."""

    exit_code = 2


class NothingToConvertError(BayesifyError, ValueError):
    """The model has no layer that could become variational, or the policy selects none."""

    exit_code = 3


class AlreadyVariationalError(BayesifyError, ValueError):
    """The model was converted before."""

    exit_code = 3


class NotVariationalError(BayesifyError, ValueError):
    """The model has no variational layer, and the call needs one."""

    exit_code = 3


class WrappedModelError(BayesifyError, TypeError):
    """The model stands inside a wrapper (DataParallel, DDP, FSDP, torch.compile) that must come after conversion."""


class NotCopyableError(BayesifyError, TypeError):
    """torch cannot deep-copy the model, so that only `inplace=True` can convert it."""


class NameClashError(BayesifyError, ValueError):
    """A name that bayesify needs is taken by the user's own attribute."""


class UninitializedLayerError(BayesifyError, RuntimeError):
    """A lazy layer that has not seen data, or a layer on the meta device, was asked for a number."""


class ShapeError(UsageError, RuntimeError, AssertionError):
    """A layer was called with what does not fit it, or its weight no longer fits its posterior.

    torch's own layers raise a ValueError, a RuntimeError or an AssertionError then: this is each of them.
    """


class BypassError(BayesifyError, RuntimeError):
    """A forward does with a variational weight what noise would not pass through, and no trace of it has shown."""


class StalePosteriorError(BayesifyError, RuntimeError):
    """A mean was replaced after conversion, so that its scale does not fit it, or a layer with a posterior is gone."""


class NoPosteriorError(BayesifyError, AttributeError):
    """A layer has no posterior over what was named."""


class UnregisteredLayerError(BayesifyError, AttributeError):
    """A pickle names the variational class of a layer class that is not imported or registered in this process."""


class ExportMismatchError(BayesifyError, RuntimeError):
    """An exported file, run in its own runtime, does not compute what the model computes; it was not written."""


class FileRefusedError(BayesifyError, ValueError):
    """A file that is broken, not what was asked for, or that names what must not be built."""

    exit_code = 4


class FactoryError(BayesifyError, ValueError):
    """A model factory that is not there or that fails."""

    exit_code = 4


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """`" Did you mean 'targets'?"` for the nearest valid word, or an empty string where none is near."""
    words = list(valid)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not near:
        lowered = {candidate.lower(): candidate for candidate in words}
        near = [lowered[match] for match in difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)]
    return f" Did you mean {near[0]!r}?" if near else ""
