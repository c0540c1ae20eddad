"""Opening a model: from the data in its file, or from the code that the caller names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import FileRefusedError, UsageError, did_you_mean
from ..escaping import shell_word
from .fit_weights import fit
from .model_factory import build_network
from .model_file.description import Factory, is_ours
from .model_file.read import OwnFile
from .model_folder.opening import open_folder
from .read_weights import Weights, weights_in, weights_of
from .untrusted.build_model import build_model_from
from .untrusted.content import NO_ALLOW, Content, opened
from .untrusted.exported_archive import program_in
from .untrusted.file_kind import kind_of
from .untrusted.nodes import Call, Dict
from .untrusted.safetensors_file import read_header
from .untrusted.torch_archive import Archive, open_archive
from .weight_warnings import warn_of_no_checksums, warn_of_not_finite


def load_model(
    path: str | PathLike[str], *, into: nn.Module | None = None, factory: str | Callable[..., nn.Module] | None = None,
    args: Mapping[str, Any] | None = None, allow: Sequence[str] | str = (), key: str | None = None,
    map_location: str | torch.device | None = None, meta: bool = False,
) -> nn.Module:  # fmt: skip
    """Open a model, without running anything that the file says. Warns of NaN in it, and where it has no checksums.

    Args:
        path: a file of `bayesify.save`, of `torch.save(model, path)` in either format, or of `torch.export.save`; or a
            folder of transformers, peft, timm or diffusers, of a class that the library has itself.
        into: a plain network of the caller's own, which becomes the saved model, in place: layers and weights by name,
            strictly. For what cannot be built from data: classes of notebooks and scripts. Of adapters, their base.
        factory, args: as `into`, for a network that `package.module:callable`, or the callable itself, returns for
            these keyword arguments; without `args`, for those that the file was saved with.
        allow: further classes that may be built: `mypkg.models.Net`, or `mypkg.models.*` for its nn.Module subclasses;
            or the factory that the file names, `mypkg.models:build`. Their modules are imported, also from here.
        key: where in the file the model is, as a dotted path: `model` for `torch.save({"model": net, ...}, path)`.
        map_location: the device to put it on; the CPU if not given.
        meta: read no weights; the model's tensors are on the meta device.

    Raises:
        FileRefusedError: the file is broken, holds no model, names what may not be built, or is of another network.
        FactoryError: the factory is not there or fails.
        UsageError: there is no such file, or an argument is not what it should be.
    """
    allow = _checked((allow,) if isinstance(allow, str) else allow)
    _refuse_both(into, factory)
    how: Any = {"into": into, "factory": factory, "args": args, "meta": meta}
    if os.path.isdir(path):
        model = open_folder(Path(path), **how)
    else:
        with opened(path) as content:
            model = _model(content, path, allow, key, **how)
            warn_of_no_checksums(content, path, meta=meta)
    warn_of_not_finite(model, path)
    return model if map_location is None or meta else model.to(map_location)


def _refuse_both(into: nn.Module | None, factory: Any) -> None:
    if into is not None and factory is not None:
        raise UsageError("into= and factory= both say what the weights are put into: give one of them")


def _model(
    content: Content, path: Any, allow: Sequence[str], key: str | None, into: nn.Module | None, factory: Any,
    args: Mapping[str, Any] | None, meta: bool,
) -> nn.Module:  # fmt: skip
    kind = kind_of(content)
    if kind.kind == "safetensors" and is_ours(read_header(content)):
        return _ours(OwnFile.in_content(content, meta=meta), path, into, factory, args, allow)
    if into is not None or factory is not None:
        network = into if into is not None else build_network(factory, args or {})
        fit(network, weights_in(content, key=key, meta=meta), source="the file")
        return network
    if kind.kind == "torch.export":
        return program_in(content, meta=meta)
    if kind.kind == "safetensors":
        raise _no_model(lambda: weights_in(content, meta=True), path)
    if kind.refusal:
        raise FileRefusedError(kind.refusal)
    archive = open_archive(content, kind.kind, meta=meta)
    root = archive.pickle.root if key is None else _under(archive.pickle.root, key)
    if not isinstance(root, Call) or str(root.maker) in _NOT_OBJECTS:
        raise _no_model(lambda: weights_of(archive), path)
    try:
        return build_model_from(root, archive.storages, allow)
    except FileRefusedError as error:
        raise FileRefusedError(f"{error}{_other_way(archive, path) if NO_ALLOW in str(error) else ''}") from None


def _ours(
    file: OwnFile, path: Any, into: nn.Module | None, factory: Any, args: Mapping[str, Any] | None, allow: Sequence[str]
) -> nn.Module:
    """A file of `bayesify.save`: around the caller's network, from its structure, or by a factory that is allowed."""
    kept: Factory | None = file.description.factory
    if into is not None:
        return file.around(into)
    if factory is None and kept is not None and kept.spec in allow:
        factory = kept.spec
    if factory is not None:
        given = args if args is not None else kept.args if kept is not None else {}
        return file.around(build_network(factory, given))
    if file.description.structure is not None:
        return file.structure([name for name in allow if ":" not in name])
    if kept is None:
        raise FileRefusedError(f"holds no structure: build the network and bayesify.load({str(path)!r}, into=network)")
    raise FileRefusedError(
        f"is built by {kept.spec}. If you trust that code, add --allow {shell_word(kept.spec)}, or in Python "
        f"bayesify.load({str(path)!r}, factory={kept.spec!r})"
    )


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


def _checked(allow: Sequence[str]) -> Sequence[str]:
    for pattern in allow:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*([.:][A-Za-z_]\w*|\.\*)", pattern):
            raise UsageError(
                f"--allow {pattern!r}: write mypkg.models.Net, or mypkg.models.* for a module's nn.Modules"
            )
    return allow


def _no_model(read: Callable[[], Weights], path: str | PathLike[str]) -> FileRefusedError:
    """The refusal for a file that holds weights and no architecture, with the call that would work."""
    try:
        weights = read()
    except FileRefusedError as error:
        return error
    place = f" under key {weights.key!r}" if weights.key else ""
    key = f" --key {shell_word(weights.key)}" if weights.key else ""
    return FileRefusedError(
        f"holds {len(weights.state_dict)} tensors{place} but no architecture; name the model's code: "
        f"bayesify convert package.module:Net --weights {shell_word(path)}{key}"
    )


def _other_way(archive: Archive, path: str | PathLike[str]) -> str:
    """How a model is opened whose weights can be read, though not what stands beside them."""
    try:
        weights_of(archive)
    except FileRefusedError:
        return ""
    return (
        f". Its weights can be read: build the network by its code and bayesify.load({str(path)!r}, into=network), or "
        f"bayesify convert package.module:Net --weights {shell_word(path)}"
    )


_NOT_OBJECTS = frozenset({"builtins.set", "collections.OrderedDict", "collections.defaultdict"})
