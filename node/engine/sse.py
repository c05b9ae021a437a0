"""Server-sent events out of a stream of bytes, with bounds; only the `data` field, which is all that chat APIs use.

Threat: a server that sends one endless line. Source: the HTML standard, section "Server-sent events".
"""

from collections.abc import Iterator

EVENT_BYTES_MAX = 1024 * 1024


class SseError(Exception):
    """An event is longer than `EVENT_BYTES_MAX`."""


class SseParser:
    """Invariant: what is held between calls is at most one unfinished event."""

    def __init__(self) -> None:
        self._line = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, block: bytes) -> Iterator[str]:
        """The data of every event that ends in this block. Lines end with LF or CR LF."""
        *lines, self._line = (self._line + block).split(b"\n")
        for line in lines:
            yield from self._take(line.removesuffix(b"\r"))
        if self._size + len(self._line) > EVENT_BYTES_MAX:
            raise SseError

    def _take(self, line: bytes) -> Iterator[str]:
        if not line:
            if self._data:
                yield b"\n".join(self._data).decode("utf-8", "replace")
            self._data, self._size = [], 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._size += len(value)
            if self._size > EVENT_BYTES_MAX:
                raise SseError
