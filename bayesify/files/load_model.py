"""Opening a pickled nn.Module: list what it names, decide about each name, and only then load, `weights_only`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import FileRefusedError, UsageError
from .read_weights import read_weights
from .untrusted.exported_archive import open_program
from .untrusted.file_kind import sniff
from .untrusted.global_names import Name, dotted, words
from .untrusted.pickle_listing import Listing
from .untrusted.torch_archive import NOTE, open_archive
from .untrusted.trust import LIBRARIES, Refused, Trusted, judge, origin_of

_PARTIAL = Name("functools", "partial")
_FROM_TYPE = Name("torch._tensor", "_rebuild_from_type_v2")  # calls its first argument
_NOT_OBJECTS = words("builtins.dict builtins.list builtins.set collections.OrderedDict collections.defaultdict")
_SAFE_TO_CONSTRUCT = ("torch.nn.", "torch._C.", "torchvision.ops.", "timm.layers.")


def load_model(path: str | PathLike[str], *, allow: Sequence[str] = (), meta: bool = False) -> nn.Module:
    """Open a pickled nn.Module, or an archive of torch.export, without running anything from the file.

    Args:
        path: a file of `torch.save(model, path)`, in torch's present format or its old one, or of `torch.export.save`.
        allow: further classes that may be built: `mypkg.models.Net`, or `mypkg.models.*` for its nn.Module subclasses.
            Their modules are imported, also from the current directory.
        meta: read no weights; the model's tensors are on the meta device.

    Raises:
        FileRefusedError: the file is broken, holds no model, or names what may not be built.
        UsageError: there is no such file, or `allow` holds something that is no dotted name.
    """
    path = Path(path)
    _check_allow(allow)
    kind = sniff(path).kind
    if kind == "safetensors":
        raise _no_model(path)
    if kind == "torch.export":
        return open_program(path, meta=meta)
    archive = open_archive(path)
    top = archive.listing.top
    if top is None or str(top) in _NOT_OBJECTS:
        raise _no_model(path)
    trusted = _decide(path, archive.listing, allow)
    archive.check_readable()
    built = [(trust.target, str(name)) for name, trust in trusted.items() if trust.target is not None]
    model = archive.load(built, meta=meta)
    if not isinstance(model, nn.Module):
        raise FileRefusedError(f"{path}: holds a {type(model).__name__}, not an nn.Module; save the model itself")
    return model


def _check_allow(allow: Sequence[str]) -> None:
    for pattern in allow:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\.([A-Za-z_]\w*|\*)", pattern):
            raise UsageError(
                f"--allow {pattern!r}: write mypkg.models.Net, or mypkg.models.* for a module's nn.Modules"
            )


def _decide(path: Path, found: Listing, allow: Sequence[str]) -> dict[Name, Trusted]:
    verdicts = {name: judge(name, allow) for name in found.names}
    if found.sources:
        note = Name(*NOTE.rsplit(".", 1))
        verdicts[note] = judge(note, ())
    refused = {origin_of(name): verdict for name, verdict in verdicts.items() if isinstance(verdict, Refused)}
    if refused:
        raise FileRefusedError(f"{path}: {_explain(refused)}")
    trusted = {name: verdict for name, verdict in verdicts.items() if isinstance(verdict, Trusted)}
    misuse = next(_misuses(found, trusted), None)
    if misuse:
        raise FileRefusedError(f"{path}: {misuse}, which saved models never do; refused, and no --allow lifts this")
    return trusted


def _explain(refused: dict[Name, Refused]) -> str:
    never = [name for name, verdict in refused.items() if verdict.never and not verdict.why]
    if never:
        return (
            f"names {dotted(never[:10])}, which no model needs and which could run code when opened; refused, and no "
            "--allow lifts this. Ask its author for a state_dict or a safetensors file"
        )
    for verdict in refused.values():
        if verdict.why:
            return verdict.why
    flags = " ".join(f"--allow {name}" for name in refused)
    wide = " ".join(sorted({f"--allow '{name.module}.*'" for name in refused}))
    shorter = f" (or, for all nn.Modules there, {wide})" if len(refused) > 1 else ""
    count = "a class that is" if len(refused) == 1 else f"{len(refused)} classes that are"
    return (
        f"stores {count} not part of {', '.join(LIBRARIES)}: {dotted(list(refused))}. "
        f"If you trust {'it' if len(refused) == 1 else 'them'}, add {flags}{shorter}"
    )


def _misuses(found: Listing, trusted: dict[Name, Trusted]) -> Iterator[str]:
    """Calls of what may only be stored or built, and partial calls of what is not safe to construct."""
    for maker, args in found.calls:
        if not isinstance(maker, Name) or trusted[maker].role not in ("call", "enum"):
            yield f"calls {maker if isinstance(maker, Name) else 'what a call returned'}"
        elif maker == _FROM_TYPE and not (args and str(args[0]).startswith("torch._utils._rebuild_")):
            yield f"calls {args[0] if args else 'nothing'} by way of {maker}"
        elif maker == _PARTIAL and not _may_be_partial(args):
            yield "prepares a call (functools.partial) of something else than a layer or an activation of torch"
    for made in found.made:
        if made.maker == _PARTIAL and made.state is not None and not _may_be_partial(made.state):
            yield "prepares a call (functools.partial) of something else than a layer or an activation of torch"
        elif not isinstance(made.maker, Name) or trusted[made.maker].role == "value":
            yield f"builds an object of {made.maker if isinstance(made.maker, Name) else 'a computed class'}"


def _may_be_partial(parts: Any) -> bool:
    function = parts[0] if isinstance(parts, tuple) and parts else None
    return isinstance(function, Name) and str(function).startswith(_SAFE_TO_CONSTRUCT)


def _no_model(path: Path) -> FileRefusedError:
    """The refusal for a file that holds weights and no architecture, with the call that would work."""
    try:
        weights = read_weights(path, meta=True)
    except FileRefusedError as error:
        return error
    place = f" under key {weights.key!r}" if weights.key else ""
    key = f" --key {weights.key}" if weights.key else ""
    return FileRefusedError(
        f"{path}: holds {len(weights.state_dict)} tensors{place} but no architecture; name the model's code: "
        f"bayesify convert package.module:Net --weights {path}{key}"
    )
