"""Where the variational variants of registered classes live, so that pickles of them find their class."""

from typing import Any


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"{name!r} belongs to a layer class that is not registered in this process: call bayesify.register first"
    )
