"""A model, or its weights alone, out of a file of ours."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...errors import FileRefusedError
from ..untrusted.build_model import build_model_from, decide
from ..untrusted.content import SHORT, Content
from ..untrusted.model_builder import ModelBuilder
from ..untrusted.node_limits import refuse_unfolding
from ..untrusted.nodes import names_in
from ..untrusted.storages import Fill, Storages
from .conversion import EXTRAS, convert_again, keep_plan, refuse_wrong_conversion
from .description import Description, read_description
from .node_json import from_table


class OwnFile:
    """What we wrote of a model: its description, and where its storages are read.

    Args:
        description: the description.
        sizes: how many bytes each storage has.
        fill: puts a storage's bytes into memory; they are held to their checksum.
        meta: read nothing; the model's tensors are on the meta device.
    """

    def __init__(self, description: Description, sizes: Mapping[str, int], fill: Fill, *, meta: bool) -> None:
        if set(sizes) != set(description.checksums):
            raise FileRefusedError(f"has other tensors than it says; {SHORT}")
        self.description, self._fill = description, fill
        self.storages = Storages(sizes, self._read_into, meta=meta)

    @classmethod
    def in_content(cls, content: Content, *, meta: bool) -> OwnFile:
        """The model in one open file."""
        header, description = read_description(content)
        sizes = {name: entry.size for name, entry in header.entries.items()}
        fill: Fill = lambda key, buffer: content.read_into(header.entries[key].start, buffer)  # noqa: E731
        return cls(description, sizes, fill, meta=meta)

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
        conversion, tensors = self._values(self.description.conversion), self.tensors()
        refuse_wrong_conversion(conversion, network)
        return self._with_extras(convert_again(network, conversion, tensors))

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
        if self.description.plan is not None:
            keep_plan(model, self.description.plan)
        return model

    def _read_into(self, key: str, buffer: memoryview) -> None:
        self._fill(key, buffer)
        if zlib.crc32(buffer) != self.description.checksums[key]:
            raise FileRefusedError(f"its tensor {key[:80]!r} differs from its checksum; {SHORT}")
