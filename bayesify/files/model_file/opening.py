"""Whether a file of ours would open again, found out before it is written."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO, Literal

import torch
from torch import nn

from ...errors import BayesifyError
from ...nn.base import Variational
from ...nn.rerouting import Rerouting
from ..model_factory import build_network
from ..untrusted.build_model import build_model_from
from ..untrusted.content import SHORT, Content
from ..untrusted.nodes import names_in
from ..untrusted.torch_archive import open_archive
from ..untrusted.trust import origin_of
from .differences import first_difference
from .node_json import from_table
from .read import OwnFile
from .write import ModelFile

Way = Literal["structure", "factory", "into"]


def lost_when_opened(model: nn.Module, content: ModelFile, way: Way) -> str | None:
    """Why the file does not give back the model, or None if it does.

    Args:
        model: the model.
        content: its file.
        way: how it is opened: from its structure, where all classes that it names are allowed, or by its factory. A
            network that a caller builds later cannot be tried now.
    """
    size = len(content.header) + sum(storage.nbytes() for storage in content.storages.values())
    try:
        # no tensor is read: the header alone is enough
        file = OwnFile.in_content(Content(io.BytesIO(content.header), 0, size), meta=True)
        if way == "into":
            file.tensors()
            return None
        opened = file.structure(_all_names(file)) if way == "structure" else file.around(_network(file))
    except BayesifyError as error:
        return _refused(error)
    different = first_difference(model, opened, rebuilt=way == "factory")
    return None if different is None else f"the file would lose {different}"


def lost_in_pickle(model: nn.Module, file: BinaryIO) -> str | None:
    """As `lost_when_opened`, for a file of torch.save that was written already."""
    try:
        archive = open_archive(Content(file, 0, file.seek(0, os.SEEK_END)), "torch zip", meta=True)
        names = [str(origin_of(name)) for name in names_in(archive.pickle.root)]
        again = build_model_from(archive.pickle.root, archive.storages, names)
    except BayesifyError as error:
        return _refused(error)
    different = first_difference(model, again)
    return None if different is None else f"the file would lose {different}"


def comes_back(value: Any) -> bool:
    """Whether an attribute of this value would be saved, and opened again as it is."""
    holder, buffer = nn.Module(), io.BytesIO()
    vars(holder)["held"] = value
    try:
        torch.save(holder, buffer)
        return lost_in_pickle(holder, buffer) is None
    except Exception:
        return False


def _refused(error: BayesifyError) -> str:
    """Why the file is refused, without what to do about a file that exists already."""
    reason = str(error).partition("; refused")[0].removesuffix(f"; {SHORT}")
    return f"the file would not open again: {reason}"


def is_converted(model: nn.Module) -> bool:
    """Whether conversion made anything of the model."""
    return any(isinstance(module, Variational | Rerouting) for module in model.modules())


def _all_names(file: OwnFile) -> list[str]:
    root = from_table(file.description.nodes, file.description.structure)
    return [str(origin_of(name)) for name in names_in(root)]


def _network(file: OwnFile) -> nn.Module:
    factory = file.description.factory
    assert factory is not None
    with torch.random.fork_rng(devices=[]):
        return build_network(factory.spec, factory.args)
