"""Messages on the socket pair between a daemon and its engine process: four bytes of length, then protobuf.

Both ends are here: asyncio streams for the daemon, a blocking socket for the child. A length above `FRAME_BYTES_MAX`
ends the conversation. Threat: a damaged or malicious engine process (it parses model files from strangers) that
announces four gigabytes and fills the daemon's memory.

Not guaranteed: anything about the content; the messages are checked by whoever handles them.
"""

import socket
import struct
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

if TYPE_CHECKING:
    import asyncio  # the child does without it

#: Largest message, in bytes: the KV of a long prompt fits.
FRAME_BYTES_MAX = 128 * 1024 * 1024

_LENGTH = struct.Struct("!I")

M = TypeVar("M", bound=Message)


class FrameError(Exception):
    """The other end broke the protocol: too long a frame, or bytes that are no message."""


def encode(message: Message) -> bytes:
    """The frame of `message`. Raises `FrameError` where it is too long to be sent."""
    body = message.SerializeToString()
    if len(body) > FRAME_BYTES_MAX:
        raise FrameError(f"a message of {len(body)} bytes is above the limit of {FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


def _checked_length(head: bytes) -> int:
    (length,) = _LENGTH.unpack(head)
    assert isinstance(length, int)
    if length > FRAME_BYTES_MAX:
        raise FrameError(f"a frame of {length} bytes is above the limit of {FRAME_BYTES_MAX}")
    return length


def _parse(into: type[M], body: bytes) -> M:
    try:
        return into.FromString(body)
    except DecodeError as error:
        raise FrameError(f"a frame of {len(body)} bytes is no {into.__name__}") from error


async def read_frame(reader: "asyncio.StreamReader", into: type[M]) -> M | None:
    """The next message; None at the end of the stream, also where it ends inside a frame."""
    try:
        length = _checked_length(await reader.readexactly(_LENGTH.size))
        return _parse(into, await reader.readexactly(length))
    except (EOFError, ConnectionError):
        return None


def receive_frame(sock: socket.socket, into: type[M]) -> M | None:
    """The next message from a blocking socket; None at its end, also where it ends inside a frame."""
    head = _receive_exactly(sock, _LENGTH.size)
    if head is None:
        return None
    body = _receive_exactly(sock, _checked_length(head))
    return None if body is None else _parse(into, body)


def _receive_exactly(sock: socket.socket, count: int) -> bytes | None:
    buffer = bytearray()
    while len(buffer) < count:
        try:
            block = sock.recv(min(count - len(buffer), 1 << 20))
        except ConnectionError:
            return None
        if not block:
            return None
        buffer += block
    return bytes(buffer)
