"""The bytes of a pickle, one after the other."""

from __future__ import annotations

from .content import Content

_CHUNK = 1 << 16
_LONGEST_LINE = 1 << 16


class MalformedPickleError(Exception):
    """The bytes are not a pickle, or one that no pickler writes."""


class ByteStream:
    """Bytes in order, read from the content in chunks."""

    def __init__(self, content: Content, at: int) -> None:
        self.content = content
        self.buffer = b""
        self.start = at  # where the buffer starts in the content
        self.at = 0  # in the buffer

    @property
    def position(self) -> int:
        """Where in the content the next byte is."""
        return self.start + self.at

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size < 0:
            raise MalformedPickleError("a text of negative length")
        if self.at + size > len(self.buffer):
            self._refill(size)
        read = self.buffer[self.at : self.at + size]
        self.at += size
        return read

    def line(self) -> bytes:
        """The bytes to the next end of a line, which is left out."""
        end = self.buffer.find(b"\n", self.at)
        if end < 0:
            left = self.content.size - self.position
            self._refill(min(left, _LONGEST_LINE))
            end = self.buffer.index(b"\n")
        line = self.buffer[self.at : end]
        self.at = end + 1
        return line

    def _refill(self, size: int) -> None:
        place = self.position
        left = self.content.size - place
        self.buffer = self.content.read(place, min(max(size, _CHUNK), left) if size <= left else size)
        self.start, self.at = place, 0
