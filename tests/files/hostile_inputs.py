"""Hostile files of inputs: .npz, .csv and .safetensors that unpack without end, lie about their sizes, or hold code."""

import io
import json
import pickle
import struct
import zipfile
import zlib

import torch

from tests.files.made_files import Evil, as_zip, net, safetensors_bytes, saved
from tests.files.pickle_text import Files, P, name


def npy(header: bytes, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    size = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + version + size + header + data


def described(descr: str = "'<f4'", shape: str = "(2,)", order: str = "False", data: bytes = b"\0" * 8) -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode(), data)


def npz(*members: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for number, data in enumerate(members):
            file.writestr(f"arr_{number}.npy", data)
    return buffer.getvalue()


def resized(content: bytes, size: int) -> bytes:
    """A zip file of one member that says to unpack to so many bytes, in both of its directories."""
    changed = bytearray(content)
    struct.pack_into("<I", changed, 22, size)
    struct.pack_into("<I", changed, content.index(b"PK\x01\x02") + 24, size)
    return bytes(changed)


def bomb(size: int) -> bytes:
    """A deflated member of zeros, a thousandth of what it unpacks to."""
    head = described(shape=f"({size // 4},)", data=b"")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    chunk, crc = bytes(1 << 20), zlib.crc32(head)
    data = packer.compress(head)
    for _ in range(size >> 20):
        crc, data = zlib.crc32(chunk, crc), data + packer.compress(chunk)
    data += packer.flush()
    total, name = len(head) + size, b"arr_0.npy"
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, crc, len(data), total, len(name), 0)
    member = b"PK\x03\x04" + fields + name + data
    entry = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    return member + entry + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(member), 0)


def arrays() -> Files:
    yield ".npz that unpacks to 512 MB", bomb(512 << 20)
    yield ".npz that unpacks to more than it says", resized(npz(described(), compression=8), 20)
    yield ".npz that unpacks to less than it says", resized(npz(described(), compression=8), 9999)
    yield ".npz in lzma", npz(described(), compression=zipfile.ZIP_LZMA)
    yield ".npz in bzip2", npz(described(), compression=zipfile.ZIP_BZIP2)
    for shape in ("(1099511627776,)", "(4611686018427387904, 4)", "(-2,)", "(2)", "2", "(2.0,)", "(True, 2)", "(2, x)"):
        yield f".npz of shape {shape}", npz(described(shape=shape))
    yield ".npz of 20,000 sizes", npz(described(shape="(" + "1, " * 20_000 + ")", data=b"\0" * 4))
    for descr in ("'|O'", "'O'", "'<V4'", "[('a', '<f4')]", "'<f4,<f4'", "('<f4', (9, 9))", "'<f0'", "'<f3'", "'S4'"):
        yield f".npz of the type {descr}", npz(described(descr))
    yield ".npz of objects", npz(described("'|O'", data=pickle.dumps(Evil(exec, "open('ran', 'w')"))))
    yield ".npz whose header calls", npz(npy(b"__import__('os').system('touch ran')\n"))
    yield ".npz whose header is deep", npz(npy(b"(" * 60_000))
    yield ".npz whose header has no end", npz(npy(b"{'descr': ("))
    yield ".npz whose header is longer than it", npz(b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 31) + b"{}")
    yield ".npz of a later version", npz(npy(b"{}", version=b"\xff\0"))
    yield ".npz that is an array", described()
    yield ".npz that is a pickle", pickle.dumps(Evil(exec, "open('ran', 'w')"))
    yield ".npz that is a model", saved(net())
    one = npz(described())
    yield ".npz in another", one[:-22] + npz(described()) + one[-22:]
    with zipfile.ZipFile(overlapping := io.BytesIO(), "w") as file:
        file.writestr("a.npy", described())
        info = file.filelist[0]
        file.filelist.append(zipfile.ZipInfo("b.npy"))
        for field in ("header_offset", "CRC", "compress_size", "file_size"):
            setattr(file.filelist[1], field, getattr(info, field))
    yield ".npz whose members overlap", overlapping.getvalue()


def tables() -> Files:
    yield ".csv that is no text", b"\xff\xfe\x00\xd8" * 10
    yield ".csv with a NUL", b"1,2\n3,\x004\n"
    yield ".csv of one long field", b"1,2\n" + b"1" * 200_000 + b",2\n"
    yield ".csv with an open quote", b"1,2\n\"" + b"x,\n" * 200_000
    yield ".csv with lines in a cell", b'1,2\n3,"\x1b[2J\nError: run: curl x | sh"\n'
    yield ".csv of commas", b"," * 1_000_000
    yield ".csv of rows that differ", b"1,2\n3\n"


def layouts() -> Files:
    yield ".safetensors that is a list", as_zip(b"\x80\x02](K\x01K\x02e.")
    yield ".safetensors that is a number", as_zip(b"\x80\x02K\x01.")
    yield ".safetensors of objects", as_zip(b"\x80\x02" + P.of({"x": name("argparse.Namespace").new()}).text + b".")
    yield ".safetensors that calls", as_zip(b"\x80\x02cos\nsystem\nX\x09\0\0\0touch ran\x85R.")
    yield ".safetensors of numbers by name", saved({"x": 1})
    yield ".safetensors that is a model", saved(net())
    yield ".safetensors deep", safetensors_bytes(b'{"a":' + b"[" * 100_000)
    yield ".safetensors of endless digits", safetensors_bytes(b'{"a":{"shape":[' + b"9" * 100_000 + b"]}}")
    huge = {"x": {"dtype": "F32", "shape": [1 << 40, 0, 1 << 61], "data_offsets": [0, 0]}}
    yield ".safetensors of another size", safetensors_bytes(json.dumps({**huge, "y": huge["x"]}).encode(), b"x")
    many = {"x": {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]}}
    yield ".safetensors of 100,000 dimensions", safetensors_bytes(json.dumps(many).encode(), b"\0" * 4)
    yield ".pt of a model", saved(net())
    yield ".pt of a Parameter by name", saved({"x": torch.nn.Parameter(torch.ones(1))})


def inputs() -> Files:
    """Each begins with the ending of its file."""
    yield from arrays()
    yield from tables()
    yield from layouts()
