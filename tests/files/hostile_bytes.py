"""Hostile files below the level of objects: bombs, impossible tensors, ambiguous zips, unheard-of pickles."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict

from tests.files.made_files import as_old, as_zip, net, saved
from tests.files.pickle_text import RELU, TENSOR, Files, P, holding, module, name


def bombs() -> Files:
    """Small files that ask for much memory or time."""
    yield "bytearray of 8 GB by number", holding(name("builtins.bytearray").call(8 << 30)).file()
    yield "bytes of 8 GB by number", holding(name("builtins.bytes").call(8 << 30)).file()
    yield "bytes of 8 GB by length", as_zip(b"\x80\x04\x8e" + struct.pack("<Q", 8 << 30) + b"x.")
    yield "bytearray of 8 GB by length", as_zip(b"\x80\x05\x96" + struct.pack("<Q", 8 << 30) + b"x.")
    yield "a number of 2 GB", as_zip(b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x.")
    yield "a list in a list, a million deep", as_zip(b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".")
    yield "a tuple in a tuple, a million deep", as_zip(b"\x80\x02)" + b"\x85" * 1_000_000 + b".")
    yield "marks, a million", as_zip(b"\x80\x02" + b"(" * 1_000_000 + b".")
    for opens, adds in ((b"]", b"a"), (b"}", None)):
        text = opens + b"q\x00"
        for level in range(60):
            last = b"h" + bytes([level])
            text += opens + b"(" + (last + last + b"e" if adds else b"K\x01" + last + b"K\x02" + last + b"u")
            text += b"q" + bytes([level + 1])
        yield f"shared {'lists' if adds else 'dicts'}, 2^60 when walked", holding(P(text)).file()
    text, level = module().text + b"q\x00", 0
    for level in range(26):
        text = text + module(_modules={"a": P(b"h" + bytes([level])), "b": P(b"h" + bytes([level]))}).text
        text += b"q" + bytes([level + 1])
    yield "shared modules of 2^26 names", as_zip(b"\x80\x02" + text + b".")
    keys = b"".join(P.of(number * ((1 << 61) - 1)).text + b"N" for number in range(1, 50_000))
    yield "keys of one hash", as_zip(b"\x80\x02" + holding(P(b"}(" + keys + b"u")).text + b".")
    yield "a number of a million digits", as_zip(b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.")
    yield "a fraction without end", holding(name("fractions.Fraction").call("1e99999999")).file()


def storage(count: int, kind: str = "FloatStorage", key: str = "0") -> P:
    return P(P.of(("storage", name(f"torch.{kind}"), key, "cpu", count)).text + b"Q")


def weight(count: int, offset: int, size: tuple, stride: tuple, kind: str = "FloatStorage", **state) -> P:
    hooks = name("collections.OrderedDict").call()
    args = (storage(count, kind), offset, size, stride, state.pop("grad", False), hooks, *state.values())
    return name("torch._utils._rebuild_tensor_v2").call(*args)


SHARED_DICTS = b"".join(  # each holds the one before twice
    b"}(X\1\0\0\0ah%cX\1\0\0\0bh%cuq%c" % (level, level, level + 1) for level in range(60)
)
TENSORS = {
    "beyond its end": weight(3, 1, (3,), (1,)),
    "beyond its end by a stride": weight(3, 0, (2, 2), (2, 2)),
    "before its start": weight(3, -1, (2,), (1,)),
    "of negative size": weight(3, 0, (-2,), (1,)),
    "of negative stride": weight(3, 2, (2,), (-1,)),
    "of sizes that overflow": weight(3, 0, (1 << 62, 1 << 62), (0, 0)),
    "of a size beyond 64 bits": weight(3, 0, (1 << 70,), (0,)),
    "of 2^30 equal numbers": weight(3, 0, (1 << 30,), (0,)),
    "of 2^40 equal numbers": weight(3, 0, (1 << 40,), (0,)),
    "of more strides than sizes": weight(3, 0, (3,), (1, 1)),
    "of 1000 dimensions": weight(3, 0, (1,) * 1000, (0,) * 1000),
    "of a size that is a text": weight(3, 0, ("3",), (1,)),
    "of a storage that is longer": weight(4, 0, (3,), (1,)),
    "of a storage of another type": weight(3, 0, (3,), (1,), "DoubleStorage"),
    "of a storage of no type": weight(3, 0, (3,), (1,), "EvilStorage"),
    "of whole numbers with a gradient": weight(3, 0, (3,), (1,), "IntStorage", grad=True),
    "with marks": weight(3, 0, (3,), (1,), marks={"conj": True}),
    "with foreign marks": weight(3, 0, (3,), (1,), marks={"evil": True}),
    "with hooks": name("torch._utils._rebuild_tensor_v2").call(storage(3), 0, (3,), (1,), False, {0: RELU}),
    "without a storage": name("torch._utils._rebuild_tensor_v2").call(None, 0, (3,), (1,), False, {}),
    "of a wrapper's class": name("torch._utils._rebuild_wrapper_subclass").call(RELU, 1, 2, 3, 4, 5, 6, 7),
    "that is nested": name("torch._utils._rebuild_nested_tensor").call(storage(3), (3,), (1,), (0,)),
    "that is sparse, beyond its size": name("torch._utils._rebuild_sparse_tensor").call(
        name("torch.serialization._get_layout").call("torch.sparse_coo"),
        (TENSOR, TENSOR, name("torch.Size").call((1,))),
    ),
    "of a quantized kind": name("torch._utils._rebuild_qtensor").call(storage(3), 0, (3,), (1,), (), False, {}),
}  # fmt: skip


def tensors() -> Files:
    """Tensors that cannot be."""
    for what, made in TENSORS.items():
        for place, where in {"model": holding(made), "weights": P.of({"w": made})}.items():
            stream = b"\x80\x02" + where.text + b"."
            yield f"a tensor {what}, {place}", as_zip(stream, {"data/0": struct.pack("<3f", 1, 2, 3)})
            tail = pickle.dumps(["0"], 2) + struct.pack("<q3f", 3, 1, 2, 3)
            yield f"a tensor {what}, {place}, old", as_old(stream, tail)


def zips() -> Files:
    """Zip files that two readers would read differently."""
    good = saved(net())
    with zipfile.ZipFile(io.BytesIO(good)) as file:
        parts = {entry: file.read(entry) for entry in file.namelist()}

    def written(entries, **kwargs) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", **kwargs) as file:
            for entry, data in entries:
                file.writestr(entry, data)
        return buffer.getvalue()

    items = list(parts.items())
    evil = P(b"cos\nsystem\n").call("touch ran").file()
    yield "something before it", b"x" * 10 + good
    yield "something behind it", good + b"x"
    yield "another zip behind it", good + evil
    yield "another zip before it", evil + good
    end = good.rindex(b"PK\x05\x06")
    yield "a comment", good[: end + 20] + struct.pack("<H", 5) + b"hello"
    yield "a comment that is an end", good[: end + 20] + struct.pack("<H", 22) + good[end:]
    yield "two directories", good[:end] + good[end : end + 22] + good[end:]
    yield "compressed", written(items, compression=zipfile.ZIP_DEFLATED)
    for what, entry in {
        "twice": "archive/data.pkl", "by case": "archive/DATA.PKL", "with a NUL": "archive/data.pkl\0x",
        "above": "../x", "from the root": "/etc/x", "with a backslash": "archive\\x", "without a part": "archive//x",
        "outside": "other/data.pkl", "here": "archive/./data.pkl",
    }.items():  # fmt: skip
        info = zipfile.ZipInfo("archive/data.pkl")
        info.filename = info.orig_filename = entry
        yield f"an entry {what}", written([*items, (info, evil)])
    for offset, what in ((14, "sum"), (18, "packed size"), (22, "size"), (8, "method"), (6, "flags"), (30, "name")):
        changed = bytearray(written(items))
        changed[offset] ^= 1
        yield f"a local header of another {what}", bytes(changed)
    central = written(items).index(b"PK\x01\x02")
    for offset in (8, 10, 16, 20, 24, 28, 30, 32, 34, 42, 46):
        changed = bytearray(written(items))
        changed[central + offset] ^= 1
        yield f"a directory with another byte {offset}", bytes(changed)
    locator = good.rindex(b"PK\x06\x07")
    record = good.rindex(b"PK\x06\x06")
    for place in (locator + 8, *(record + offset for offset in (4, 24, 32, 40, 48)), end + 8, end + 16):
        changed = bytearray(good)
        changed[place] ^= 1
        yield f"an end with another byte {place - record}", bytes(changed)


def streams() -> Files:
    """Pickles that no pickler writes, and every single operation alone."""
    for code in range(256):
        yield f"operation {code}", as_zip(b"\x80\x02" + bytes([code]) + b"." * 20)
        yield f"operation {code} on a dict", as_zip(b"\x80\x02}" + bytes([code]) + b"\0" * 8 + b".")
    yield "two pickles", as_zip(pickle.dumps(OrderedDict(), 2) * 2)
    yield "an old file whose keys are others", as_old(pickle.dumps({"a": 1}, 2), pickle.dumps(["7"], 2))
    for what, parts in {"itself": b"}q\0X\x01\0\0\0ah\0s", "shared": b"}q\0" + SHARED_DICTS}.items():
        head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001)]
        yield f"an old file whose platform holds {what}", b"".join(head) + b"\x80\x02" + parts + b"." + head[0] * 2
    yield "an old file that goes on", as_old(pickle.dumps({"a": 1}, 2)) + b"x"
    yield "an old file whose first pickle calls", P(b"cos\nsystem\n").call("touch ran").text + b"."
    for number in range(5):
        parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"a": 1}, [])
        pickles = [pickle.dumps(part, 2) for part in parts]
        pickles[number] = b"\x80\x02" + P(b"cos\nsystem\n").call("touch ran").text + b"."
        yield f"an old file whose pickle {number} calls", b"".join(pickles)
