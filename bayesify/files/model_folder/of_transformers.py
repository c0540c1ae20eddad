"""A network of transformers: its class and its configuration from config.json, its weights read by us."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from ...errors import FileRefusedError, did_you_mean
from ...escaping import first_line, shell_word
from ..fit_weights import Tell
from ..json_file import read_json
from ..read_weights import plain_weights
from .configuration import Configured, cleaned
from .libraries import Extent, library


def network(given: Configured, *, meta: bool, tell: Tell) -> nn.Module:
    """The network, as `from_pretrained` gives it: in eval mode. Its class is one of transformers' own.

    Raises:
        FileRefusedError: the class is not transformers', or the weights are not its own.
    """
    transformers, extent = library("transformers", given.folder), Extent.of(given.folder)
    extent.refuse_numbers(given.config)
    with quiet(transformers):
        try:
            cls, config = _class(transformers, given, tell)
            empty = extent.sketch(lambda: cls(config)).eval()
            if not meta:
                extent.refuse_larger(empty)
        except FileRefusedError:
            raise
        except Exception as error:
            raise FileRefusedError(f"{given.folder}: config.json describes no model: {first_line(error)}") from error
        model = empty if meta else _filled(cls, config, given, tell)
        _generation(transformers, model, given)
    return model


def _class(transformers: Any, given: Configured, tell: Tell) -> tuple[Any, Any]:
    """The class of the network, and its configuration."""
    names = given.config.get("architectures") or []
    known = given.config.get("model_type")
    if not names:
        config = transformers.CONFIG_MAPPING[known].from_dict(given.config)
        base = transformers.AutoModel._model_mapping[type(config)]
        tell(f"{given.folder}: config.json names no architecture: took {base.__name__}")
        return base, config
    cls: Any = getattr(transformers, names[0], None) if isinstance(names[0], str) and names[0].isidentifier() else None
    if not _is_network(cls, transformers):
        raise FileRefusedError(f"{given.folder}: {_foreign(transformers, names[0], given)}")
    if known is not None and cls.config_class.model_type != known:
        raise FileRefusedError(
            f"{given.folder}: config.json has the architecture {names[0]}, a {cls.config_class.model_type!r}, and the "
            f"model_type {str(known)[:80]!r}: correct one of them"
        )
    return cls, cls.config_class.from_dict(given.config)


def _is_network(cls: Any, transformers: Any) -> bool:
    is_one = inspect.isclass(cls) and issubclass(cls, transformers.PreTrainedModel)
    return is_one and getattr(cls, "config_class", None) is not None


def _foreign(transformers: Any, name: Any, given: Configured) -> str:
    own = [known for known in dir(transformers) if "For" in known or known.endswith("Model")]
    return (
        f"its class {str(name)[:80]!r} is not one of transformers {transformers.__version__}, and code that a folder "
        f"brings along is never run.{did_you_mean(str(name), own)} Where you have that class installed, name it: "
        f"bayesify convert package.module:Net --weights {shell_word(given.folder)}"
    )


def _filled(cls: Any, config: Any, given: Configured, tell: Tell) -> nn.Module:
    weights = plain_weights(given.folder)
    for note in weights.notes[1:]:
        tell(f"{given.folder}: {note}")
    try:
        model, found = cls.from_pretrained(
            None, config=config, state_dict=dict(weights.state_dict), output_loading_info=True, local_files_only=True
        )
    except Exception as error:
        raise FileRefusedError(f"{given.folder}: its weights don't fit {cls.__name__}: {first_line(error)}") from error
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing:
        has = f"; it has {', '.join(unexpected[:3])} instead" if unexpected else ""
        raise FileRefusedError(
            f"{given.folder}: lacks {len(missing)} tensors of {cls.__name__}: {', '.join(missing[:5])}{has}"
        )
    if unexpected:
        shown = f"{', '.join(unexpected[:3])}{', ...' if len(unexpected) > 3 else ''}"
        tell(f"{given.folder}: left out {len(unexpected)} tensors that {cls.__name__} has not: {shown}")
    model.config.name_or_path = str(given.folder)
    return model  # type: ignore[no-any-return]


def _generation(transformers: Any, model: Any, given: Configured) -> None:
    path = given.folder / "generation_config.json"
    if path.is_file() and model.can_generate():
        model.generation_config = transformers.GenerationConfig.from_dict(cleaned(read_json(path), given.folder))


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without the library's progress bars and its own report of weights, which says less than ours."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
