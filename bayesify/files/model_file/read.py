"""A model, or its weights alone, out of a file of ours."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...errors import FileRefusedError
from ..untrusted.build_model import build_model_from, decide
from ..untrusted.content import SHORT, Content
from ..untrusted.model_builder import ModelBuilder
from ..untrusted.node_limits import refuse_unfolding
from ..untrusted.nodes import names_in
from ..untrusted.storages import Storages
from .conversion import EXTRAS, convert_again
from .description import read_description
from .node_json import from_table


class OwnFile:
    """An opened file of ours."""

    def __init__(self, content: Content, *, meta: bool) -> None:
        self.content = content
        self.header, self.description = read_description(content)
        sizes = {name: entry.size for name, entry in self.header.entries.items()}
        if set(sizes) != set(self.description.checksums):
            raise FileRefusedError(f"has other tensors than it says; {SHORT}")
        self.storages = Storages(sizes, self._read_into, meta=meta)

    def structure(self, allow: Sequence[str]) -> nn.Module:
        """The model, built from the description of its structure.

        Raises:
            FileRefusedError: it names what may not be built.
        """
        model = build_model_from(self._node(self.description.structure), self.storages, allow)
        return self._with_extras(model)

    def around(self, network: nn.Module) -> nn.Module:
        """The model, made from a plain network that somebody else built: in place.

        Raises:
            FileRefusedError: the network is another one.
        """
        return self._with_extras(convert_again(network, self._values(self.description.conversion), self.tensors()))

    def tensors(self) -> dict[str, Tensor]:
        """The Parameters and buffers by name."""
        tensors = self._values(self.description.tensors)
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise FileRefusedError(f"has other things than tensors among its tensors; {SHORT}")
        return tensors

    def _values(self, value: Any) -> Any:
        root = self._node(value)
        return ModelBuilder(self.storages, decide(names_in(root), ())).value(root)

    def _node(self, value: Any) -> Any:
        root = from_table(self.description.nodes, value)
        refuse_unfolding(root)
        return root

    def _with_extras(self, model: nn.Module) -> nn.Module:
        if self.description.extras:
            vars(model)[EXTRAS] = dict(self.description.extras)
        return model

    def _read_into(self, key: str, buffer: memoryview) -> None:
        self.content.read_into(self.header.entries[key].start, buffer)
        if zlib.crc32(buffer) != self.description.checksums[key]:
            raise FileRefusedError(f"its tensor {key[:80]!r} differs from its checksum; {SHORT}")


