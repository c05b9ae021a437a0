"""Messages on the socket pair between a daemon and its solver process: four bytes of length, then JSON.

JSON and not protobuf: the records are plain dataclasses that never leave the machine, and neither end needs a schema
of its own. Both ends are here: asyncio streams for the daemon, a blocking socket for the child. This module imports
neither gRPC nor cvxpy, so it costs the child nothing.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from solver.allocation import Allocation, Assigned
from solver.costs import AgentLoad, TaskNeed

#: Largest message, bytes: 1000 tasks and 1000 agents take about 0.4 MB. Stops a mad length from filling memory.
FRAME_BYTES_MAX = 16 * 1024 * 1024

_LENGTH = struct.Struct("!I")


class WireError(Exception):
    """The other end broke the protocol, or a message is too large to be sent."""


def encode(message: dict[str, Any]) -> bytes:
    body = json.dumps(message, separators=(",", ":"), default=_plain).encode()
    if len(body) > FRAME_BYTES_MAX:
        raise WireError(f"a message of {len(body)} bytes is above the limit of {FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


def _plain(value: object) -> list[str]:
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no place in a message")


async def read(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next message; None where the stream ends, also inside a message. Raises `WireError`."""
    try:
        length = _checked_length(await reader.readexactly(_LENGTH.size))
        return _parse(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def read_blocking(connection: socket.socket) -> dict[str, Any] | None:
    """As `read`, for the child."""
    head = _read_exactly(connection, _LENGTH.size)
    if head is None:
        return None
    body = _read_exactly(connection, _checked_length(head))
    return None if body is None else _parse(body)


def _read_exactly(connection: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _checked_length(head: bytes) -> int:
    length = int(_LENGTH.unpack(head)[0])
    if length > FRAME_BYTES_MAX:
        raise WireError(f"a frame of {length} bytes is above the limit of {FRAME_BYTES_MAX}")
    return length


def _parse(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except ValueError as error:
        raise WireError(f"a frame of {len(body)} bytes is no JSON") from error
    if not isinstance(message, dict):
        raise WireError("a message is an object")
    return message


def round_to_json(agents: Sequence[AgentLoad], tasks: Sequence[TaskNeed]) -> dict[str, Any]:
    return {"agents": [_flat(agent) for agent in agents], "tasks": [_flat(task) for task in tasks]}


def _flat(record: AgentLoad | TaskNeed) -> dict[str, Any]:
    """Its fields as they are. `asdict` copies deeply: of a round of 256 tasks, a leader's loop stood still for that."""
    return {name: getattr(record, name) for name in record.__slots__}


def round_from_json(message: dict[str, Any]) -> tuple[list[AgentLoad], list[TaskNeed]]:
    agents = [AgentLoad(**_with_sets(fields, "abilities")) for fields in message["agents"]]
    tasks = [TaskNeed(**_with_sets(fields, "abilities", "forbidden_agents")) for fields in message["tasks"]]
    return agents, tasks


def _with_sets(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    """JSON has no sets: those of these names came as lists."""
    return fields | {name: frozenset(fields[name]) for name in names}


def allocation_to_json(allocation: Allocation) -> dict[str, Any]:
    return asdict(allocation)


def allocation_from_json(fields: dict[str, Any]) -> Allocation:
    try:
        return Allocation(**{**fields, "assignments": tuple(Assigned(**one) for one in fields["assignments"])})
    except (KeyError, TypeError) as error:
        raise WireError("an allocation lacks a field or has one too many") from error
