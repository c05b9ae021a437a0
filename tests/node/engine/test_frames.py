"""Both ends of the frame format, against each other and against damaged input."""

import asyncio
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.wire import engine_pb2
from node.engine import frames


async def read_all(data: bytes) -> list[engine_pb2.EngineCommand]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    found = []
    while (command := await frames.read_frame(reader, engine_pb2.EngineCommand)) is not None:
        found.append(command)
    return found


def receive_all(data: bytes) -> list[engine_pb2.EngineCommand]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        found = []
        while (command := frames.receive_frame(ours, engine_pb2.EngineCommand)) is not None:
            found.append(command)
        return found


commands = st.builds(
    lambda request_id, text: engine_pb2.EngineCommand(id=request_id, generate=engine_pb2.GenerateRequest(prompt=text)),
    st.integers(0, 2**64 - 1),
    st.text(max_size=50),
)


@given(sent=st.lists(commands, max_size=5))
def test_frames_arrive_as_they_were_sent(sent: list[engine_pb2.EngineCommand]) -> None:
    data = b"".join(map(frames.encode, sent))
    assert receive_all(data) == sent
    assert asyncio.run(read_all(data)) == sent


def test_end_inside_a_frame_is_the_end() -> None:
    data = frames.encode(engine_pb2.EngineCommand(id=7))
    for length in range(len(data)):
        assert receive_all(data[:length]) == []
        assert asyncio.run(read_all(data[:length])) == []


def test_frame_above_the_limit_is_refused_before_it_is_read() -> None:
    head = struct.pack("!I", frames.FRAME_BYTES_MAX + 1)
    with pytest.raises(frames.FrameError, match="above the limit"):
        receive_all(head)
    with pytest.raises(frames.FrameError, match="above the limit"):
        asyncio.run(read_all(head))


def test_message_above_the_limit_is_not_sent() -> None:
    request = engine_pb2.GenerateRequest(prompt="x" * frames.FRAME_BYTES_MAX)
    with pytest.raises(frames.FrameError, match="above the limit"):
        frames.encode(engine_pb2.EngineCommand(generate=request))


def test_bytes_that_are_no_message_are_refused() -> None:
    data = struct.pack("!I", 3) + b"\xff\xff\xff"
    with pytest.raises(frames.FrameError, match="no EngineCommand"):
        receive_all(data)
