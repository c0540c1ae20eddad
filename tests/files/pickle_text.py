"""Pickles written operation by operation, and the files around them."""

import pickle
from collections.abc import Iterator

from tests.files.made_files import as_zip

Files = Iterator[tuple[str, bytes]]


class P:
    """A pickle, written operation by operation."""

    def __init__(self, text: bytes):
        self.text = text

    @staticmethod
    def of(value) -> "P":
        if isinstance(value, P):
            return value
        if isinstance(value, tuple):
            return P(b"(" + b"".join(P.of(item).text for item in value) + b"t")
        if isinstance(value, list):
            return P(b"](" + b"".join(P.of(item).text for item in value) + b"e")
        if isinstance(value, dict):
            return P(b"}(" + b"".join(P.of(part).text for pair in value.items() for part in pair) + b"u")
        return P(pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"") if not isinstance(value, bytes) else
                 b"C" + bytes([len(value)]) + value)  # fmt: skip

    def call(self, *args) -> "P":
        return P(self.text + P.of(args).text + b"R")

    def new(self, *args) -> "P":
        return P(self.text + P.of(args).text + b"\x81")

    def build(self, state) -> "P":
        return P(self.text + P.of(state).text + b"b")

    def filled(self, pairs: dict) -> "P":
        return P(self.text + b"(" + b"".join(P.of(part).text for pair in pairs.items() for part in pair) + b"u")

    def file(self) -> bytes:
        return as_zip(b"\x80\x02" + self.text + b".")


def name(dotted: str) -> P:
    module, _, qualname = dotted.rpartition(".")
    return P(f"c{module}\n{qualname}\n".encode())


RELU = name("torch.nn.functional.relu")

EMPTY = {"_parameters": {}, "_buffers": {}, "_modules": {}, "training": True}


def module(cls: str = "torch.nn.modules.linear.Identity", **state) -> P:
    return name(cls).new().build({**EMPTY, **state})


def holding(value) -> P:
    return module(extra=P.of(value))


TENSOR = P(b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n").call(name("torch.float32"), (2,), (1,), False)
