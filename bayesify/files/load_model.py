"""Opening a pickled nn.Module: read it into inert data, decide about every name in it, and only then build."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike
from typing import Any

from torch import nn

from ..errors import FileRefusedError, UsageError, did_you_mean
from .read_weights import weights_in
from .untrusted.content import SHORT, Content, opened
from .untrusted.exported_archive import program_in
from .untrusted.file_kind import kind_of
from .untrusted.global_names import Name, dotted
from .untrusted.model_builder import ModelBuilder, refuse_endless
from .untrusted.node_limits import refuse_unfolding
from .untrusted.nodes import Call, Dict, names_in
from .untrusted.torch_archive import Archive, open_archive
from .untrusted.trust import LIBRARIES, Refused, Trusted, judge, origin_of


def load_model(
    path: str | PathLike[str], *, allow: Sequence[str] | str = (), key: str | None = None, meta: bool = False
) -> nn.Module:
    """Open a pickled nn.Module, or an archive of torch.export, without running anything from the file.

    Args:
        path: a file of `torch.save(model, path)`, in torch's present format or its old one, or of `torch.export.save`.
        allow: further classes that may be built: `mypkg.models.Net`, or `mypkg.models.*` for its nn.Module subclasses.
            Their modules are imported, also from the current directory.
        key: where in the file the model is, as a dotted path: `model` for `torch.save({"model": net, ...}, path)`.
        meta: read no weights; the model's tensors are on the meta device.

    Raises:
        FileRefusedError: the file is broken, holds no model, or names what may not be built.
        UsageError: there is no such file, or `allow` holds something that is not a dotted name.
    """
    allow = (allow,) if isinstance(allow, str) else allow
    _check_allow(allow)
    with opened(path) as content:
        found = kind_of(content)
        if found.kind == "torch.export":
            return program_in(content, meta=meta)
        if found.kind == "safetensors":
            raise _no_model(content, path)
        if found.refusal:
            raise FileRefusedError(found.refusal)
        archive = open_archive(content, found.kind, meta=meta)
        refuse_unfolding(archive.pickle.root)
        root = archive.pickle.root if key is None else _under(archive.pickle.root, key)
        if not isinstance(root, Call) or str(root.maker) in _NOT_OBJECTS:
            raise _no_model(content, path)
        return _built(archive, root, allow)


def _built(archive: Archive, root: Call, allow: Sequence[str]) -> nn.Module:
    builder = ModelBuilder(archive.storages, _decide(names_in(root), allow))
    try:
        model = builder.value(root)
        if not isinstance(model, nn.Module):
            raise FileRefusedError(f"holds a {type(model).__name__}, not an nn.Module; save the model itself")
        refuse_endless(model)
        return model
    except FileRefusedError as error:
        where = ".".join(builder.path)
        raise FileRefusedError(f"layer {where!r} {error}" if where else str(error)) from None
    except RecursionError:
        raise FileRefusedError(f"holds objects inside of objects, deeper than any model; {SHORT}") from None


def _under(root: Any, key: str) -> Any:
    """The node under a dotted key."""
    node = root
    for part in key.split("."):
        pairs = node.pairs if isinstance(node, Dict | Call) else []
        keys = [name for name, _ in pairs if isinstance(name, str)]
        if part not in keys:
            raise UsageError(f"--key {key!r}: the file has nothing there.{did_you_mean(part, keys)}")
        node = next(value for name, value in pairs if name == part)
    return node


def _check_allow(allow: Sequence[str]) -> None:
    for pattern in allow:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\.([A-Za-z_]\w*|\*)", pattern):
            raise UsageError(
                f"--allow {pattern!r}: write mypkg.models.Net, or mypkg.models.* for a module's nn.Modules"
            )


def _decide(names: Sequence[Name], allow: Sequence[str]) -> dict[Name, Trusted]:
    verdicts = {name: judge(name, allow) for name in names}
    refused = {origin_of(name): verdict for name, verdict in verdicts.items() if isinstance(verdict, Refused)}
    if refused:
        raise FileRefusedError(_explain(refused))
    return {name: verdict for name, verdict in verdicts.items() if isinstance(verdict, Trusted)}


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


def _no_model(content: Content, path: str | PathLike[str]) -> FileRefusedError:
    """The refusal for a file that holds weights and no architecture, with the call that would work."""
    try:
        weights = weights_in(content, meta=True)
    except FileRefusedError as error:
        return error
    place = f" under key {weights.key!r}" if weights.key else ""
    key = f" --key {weights.key}" if weights.key else ""
    return FileRefusedError(
        f"holds {len(weights.state_dict)} tensors{place} but no architecture; name the model's code: "
        f"bayesify convert package.module:Net --weights {path}{key}"
    )


_NOT_OBJECTS = frozenset({"builtins.set", "collections.OrderedDict", "collections.defaultdict"})
