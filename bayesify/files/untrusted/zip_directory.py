"""The directory of a zip file, parsed so strictly that no two readers could see different members in it."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise

from ...errors import FileRefusedError
from .content import SHORT, Content

_END = struct.Struct("<4sHHHHIIH")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_DESCRIPTORS = (12, 16, 20, 24)  # the sizes that the note behind a member's bytes may have
_FULL, _FULL_16 = 0xFFFFFFFF, 0xFFFF
_SIZES_BEHIND, _ENCRYPTED = 1 << 3, 1 << 0
_STORED, _DEFLATED = 0, 8
_CHUNK = 1 << 20
_FOREIGN = "as torch.save never writes; save it again with torch.save"
_STRANGE = "is a zip file that different programs would read differently"


@dataclass(frozen=True)
class Member:
    """One member: where its bytes are in the file, how many they are packed and unpacked, how, and their checksum."""

    name: str
    start: int
    packed: int
    size: int
    crc: int
    method: int

    @property
    def stored(self) -> bool:
        """Whether its bytes stand in the file as they are."""
        return self.method == _STORED


class ZipDirectory:
    """The members of a zip file by name, in the directory's order."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.members = _members(content)
        # torch writes no checksums at all after torch.serialization.set_crc32_options(False)
        self.checked = any(member.crc for member in self.members.values())

    def read(self, name: str) -> bytes:
        """A member's bytes, held to their checksum.

        Raises:
            FileRefusedError: they differ, or are compressed.
        """
        member = self.stored(name)
        data = self.content.read(member.start, member.size)
        self._hold(member, zlib.crc32(data))
        return data

    def unpacked(self, name: str) -> bytes:
        """As `read`, for a member that may be compressed. Its size is what the directory says, for callers to bound.

        Raises:
            FileRefusedError: the bytes differ from their checksum or their size, or are packed in an unusual way.
        """
        member = self.members[name]
        if member.method == _STORED:
            return self.read(name)
        if member.method != _DEFLATED:
            raise FileRefusedError(f"its {name[:80]!r} is compressed in a way that is not read")
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = unpacker.decompress(self.content.read(member.start, member.packed), member.size + 1)
        except zlib.error:
            raise FileRefusedError(f"its {name[:80]!r} is damaged; {SHORT}") from None
        if not unpacker.eof or unpacker.unused_data or len(data) != member.size:
            raise FileRefusedError(f"its {name[:80]!r} is not of its size; {SHORT}")
        self._hold(member, zlib.crc32(data))
        return data

    def read_into(self, name: str, buffer: memoryview) -> None:
        """As `read`, into memory of the member's size.

        Raises:
            FileRefusedError: the bytes differ from their checksum, or are compressed.
        """
        member = self.stored(name)
        assert len(buffer) == member.size
        self.content.read_into(member.start, buffer)
        self._hold(member, zlib.crc32(buffer))

    def verify(self, name: str) -> None:
        """Hold a member that nobody reads to its checksum.

        Raises:
            FileRefusedError: it differs.
        """
        member, crc = self.members[name], 0
        if not member.stored:
            return
        for at in range(0, member.size, _CHUNK):
            crc = zlib.crc32(self.content.read(member.start + at, min(_CHUNK, member.size - at)), crc)
        self._hold(member, crc)

    def stored(self, name: str) -> Member:
        """A member whose bytes stand in the file as they are.

        Raises:
            FileRefusedError: it is compressed, or not there.
        """
        member = self.members.get(name)
        if member is None:
            raise FileRefusedError(f"has no {name[:80]!r}; {SHORT}")
        if not member.stored:
            raise FileRefusedError(f"holds compressed entries, {_FOREIGN}")
        return member

    def _hold(self, member: Member, crc: int) -> None:
        if self.checked and crc != member.crc:
            raise FileRefusedError(f"its {member.name[:80]!r} differs from its checksum; {SHORT}")


def _members(content: Content) -> dict[str, Member]:
    start, size, count = _directory(content)
    directory = content.read(start, size)
    places: list[tuple[int, int, Member]] = []
    at = 0
    for _ in range(count):
        header = _unpacked(_CENTRAL, directory, at, b"PK\x01\x02")
        at += _CENTRAL.size
        lengths = header[10:13]
        raw, extra, _ = (directory[at + sum(lengths[:i]) : at + sum(lengths[: i + 1])] for i in range(3))
        at += sum(lengths)
        if at > size:
            raise FileRefusedError(SHORT)
        places.append(_member(content, header, raw, extra))
    if at != size:
        raise FileRefusedError(f"{_STRANGE}: its directory has a gap")
    _check_layout(places, start)
    _check_names([member.name for _, _, member in places])
    return {member.name: member for _, _, member in places}


def _directory(content: Content) -> tuple[int, int, int]:
    """Where the directory starts, its size, and how many members it lists."""
    at = content.size - _END.size
    if at < 0:
        raise FileRefusedError(SHORT)
    _, *numbers, comment = _unpacked(_END, content.read(at, _END.size), 0, b"PK\x05\x06")
    if comment:
        raise FileRefusedError(f"{_STRANGE}: it ends in a comment")
    end = at
    if at >= _LOCATOR.size and content.read(at - _LOCATOR.size, 4) == b"PK\x06\x07":
        numbers, end = _directory_64(content, at - _LOCATOR.size, numbers)
    disk, first_disk, here, count, size, start = numbers
    if disk or first_disk or here != count or start + size != end:
        raise FileRefusedError(f"{_STRANGE}: its directory is not where it says")
    return start, size, count


def _directory_64(content: Content, at: int, given: list[int]) -> tuple[list[int], int]:
    """What the large form of the end says, which must agree with the small form, and where it begins."""
    _, _, place, _ = _unpacked(_LOCATOR, content.read(at, _LOCATOR.size), 0, b"PK\x06\x07")
    if place != at - _END_64.size:
        raise FileRefusedError(f"{_STRANGE}: its directory is not where it says")
    record = _unpacked(_END_64, content.read(place, _END_64.size), 0, b"PK\x06\x06")
    large = record[4:]
    full = (_FULL_16, _FULL_16, _FULL_16, _FULL_16, _FULL, _FULL)
    if record[1] != _END_64.size - 12 or any(s not in (g, f) for g, s, f in zip(large, given, full, strict=True)):
        raise FileRefusedError(f"{_STRANGE}: its two ends disagree")
    return list(large), place


def _member(content: Content, header: tuple[int, ...], raw: bytes, extra: bytes) -> tuple[int, int, Member]:
    """The member of a directory's entry, with where its local header starts and where its bytes end."""
    flags, method, crc = header[3], header[4], header[7]
    packed, size, disk, place = _large(extra, header[8], header[9], header[13], header[16])
    local = _unpacked(_LOCAL, content.read(place, _LOCAL.size), 0, b"PK\x03\x04")
    name_size, extra_size = local[9:]
    names = content.read(place + _LOCAL.size, name_size)
    behind = bool(flags & _SIZES_BEHIND)
    same = names == raw and (local[2], local[3]) == (flags, method)
    if same and not behind:
        local_extra = content.read(place + _LOCAL.size + name_size, extra_size)
        same = local[6] == crc and _large(local_extra, local[7], local[8], 0, 0) == (packed, size, 0, 0)
    if not same or disk or flags & _ENCRYPTED or (method == _STORED and packed != size):
        raise FileRefusedError(f"{_STRANGE}: an entry says two things about itself")
    start = place + _LOCAL.size + name_size + extra_size
    member = Member(_name(raw), start, packed, size, crc, method)
    return place, start + packed, member


def _large(extra: bytes, packed: int, size: int, disk: int, place: int) -> tuple[int, int, int, int]:
    """The sizes and the place of a member, with those that need 64 bits read from where a zip file keeps them."""
    kinds = [(size, _FULL, 8), (packed, _FULL, 8), (place, _FULL, 8), (disk, _FULL_16, 4)]
    fields, at = {}, 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind in fields or at + 4 + length > len(extra):
            raise FileRefusedError(f"{_STRANGE}: an entry says two things about itself")
        fields[kind] = extra[at + 4 : at + 4 + length]
        at += 4 + length
    wanted = [width for value, full, width in kinds if value == full]
    if len(fields.get(1, b"")) != sum(wanted) or at != len(extra):
        raise FileRefusedError(f"{_STRANGE}: an entry says two things about itself")
    read, values = 0, []
    for value, full, width in kinds:
        if value == full:
            value, read = int.from_bytes(fields[1][read : read + width], "little"), read + width
        values.append(value)
    return values[1], values[0], values[3], values[2]


def _name(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise FileRefusedError(f"{_STRANGE}: a name in it is not a text") from None
    parts = name.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or any(ord(letter) < 32 for letter in name):
        raise FileRefusedError(f"{_STRANGE}: it has an entry {name[:80]!r}")
    return name


def _check_layout(places: list[tuple[int, int, Member]], directory: int) -> None:
    """Members follow each other from the file's first byte to its directory, with nothing hidden between."""
    spans = sorted((place, end) for place, end, _ in places)
    ends = [0, *(end for _, end in spans)]
    starts = [*(place for place, _ in spans), directory]
    for number, (end, start) in enumerate(zip(ends, starts, strict=True)):
        if start != end and (number == 0 or start - end not in _DESCRIPTORS):
            raise FileRefusedError(f"{_STRANGE}: its entries overlap, or have something between them")


def _check_names(names: list[str]) -> None:
    folded = sorted(name.casefold().removesuffix("/") for name in names)
    if any(one == other for one, other in pairwise(folded)):
        raise FileRefusedError(f"holds entries twice, {_FOREIGN}")


def _unpacked(form: struct.Struct, data: bytes, at: int, magic: bytes) -> tuple[int, ...]:
    if len(data) - at < form.size or data[at : at + 4] != magic:
        raise FileRefusedError(SHORT)
    return form.unpack_from(data, at)
