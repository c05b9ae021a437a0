"""Fuzzing of a running node's doors with real sockets: nonsense in HTTP, in TLS, in HTTP/2 and in every RPC.

Idea: whoever attacks here is the strongest who may connect: on the mesh port a member of the mesh, with a good
certificate. The node has to live, to answer others, and to log no exception; what it answers to nonsense is its affair.
"""

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from mesh.wire import engine_pb2, mesh_pb2
from node.credentials import Credentials
from node.grpc_options import GRPC_OPTIONS
from node.handshake import identify
from scripts.daemons import Daemon
from tests.security.http_bodies import BODIES, request_of
from tests.security.odd_input import Pool, nearly

#: A door that says nothing to nonsense is not waited for.
PATIENCE_S = 0.05
#: Attacks at the same time.
TOGETHER = 8

HTTP = (
    *(request_of(path) for path in BODIES),
    b"GET /v1/responses/resp_1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer kith-x\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n',
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
)
#: Preface, SETTINGS, and a HEADERS frame of an HTTP/2 client.
HTTP2 = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + bytes.fromhex("000006040000000000 0003000000ff 000005010500000001 8386848541".replace(" ", "")),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + bytes.fromhex("000000040000000000 00000401ff00000001 82868400".replace(" ", "")),
)
CLIENT_HELLO = bytes.fromhex("160301007a010000760303") + bytes(32) + bytes.fromhex("00000413011302010000490000")

RPCS = mesh_pb2.DESCRIPTOR.services_by_name["Mesh"].methods
#: A link lives as long as its connection: it is fuzzed with a few messages at a time.
LINK_MESSAGES = 20


@dataclass
class Doors:
    """The doors of one daemon, and who knocks."""

    daemon: Daemon
    credentials: Credentials  # a member's
    mesh_port: int
    http_port: int

    async def attack(self, count: int, seed: int) -> int:
        """Send about `count` inputs to all doors; how many it were."""
        rng = random.Random(seed)
        plain = count // 4
        sent = await _together(plain, lambda: self._raw(self.http_port, nearly(rng, *HTTP)))
        sent += await _together(plain, lambda: self._raw(self.mesh_port, nearly(rng, CLIENT_HELLO, *HTTP2, *HTTP)))
        context = self.credentials.context()
        sent += await _together(plain, lambda: self._raw(self.mesh_port, nearly(rng, *HTTP2), context))
        return sent + await self._rpcs(rng, count - sent)

    async def _raw(self, port: int, data: bytes, context: ssl.SSLContext | None = None) -> int:
        with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
            async with asyncio.timeout(5.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            try:
                writer.write(data)
                await writer.drain()
                async with asyncio.timeout(PATIENCE_S):
                    await reader.read(65_536)
            finally:
                writer.transport.abort()
        return 1

    async def _rpcs(self, rng: random.Random, count: int) -> int:
        """Bytes as the request of every RPC: nonsense, and messages filled at random."""
        pool = Pool()
        sent = 0
        channel: Any
        there = await identify(self.credentials, "127.0.0.1", self.mesh_port, 10.0)
        async with self.credentials.channel("127.0.0.1", self.mesh_port, there, GRPC_OPTIONS) as channel:
            while sent < count:
                method = rng.choice(RPCS)
                path = f"/{method.containing_service.full_name}/{method.name}"
                requests = [self._request(rng, pool, method.input_type.name) for _ in range(LINK_MESSAGES)]
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError, TimeoutError):
                    async with asyncio.timeout(5.0):
                        if method.client_streaming:
                            sent += len(requests)
                            await _drained(channel.stream_stream(path)(iter_of(requests), timeout=1.0))
                        elif method.server_streaming:
                            sent += 1
                            await _drained(channel.unary_stream(path)(requests[0], timeout=1.0))
                        else:
                            sent += 1
                            await channel.unary_unary(path)(requests[0], timeout=1.0)
        return sent

    def _request(self, rng: random.Random, pool: Pool, name: str) -> bytes:
        kind = getattr(mesh_pb2, name, None) or getattr(engine_pb2, name)
        message = kind()
        pool.fill(rng, message)
        raw: bytes = message.SerializeToString()
        return raw if rng.random() < 0.6 else nearly(rng, raw)

    async def is_well(self) -> None:
        """The node answers at all doors, and nothing that it logged is an exception."""
        status = await self.daemon.status()
        assert status.engine_state == "ready"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http_port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(5.0):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        said = self.daemon.output.read_text() + (self.daemon.data_dir / "logs" / "kith.log").read_text()
        for word in ("Traceback", "Error:", "Exception", "should not happen", "assert"):
            assert word not in said, said[max(0, said.index(word) - 3000) :][:6000]


async def iter_of(requests: list[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


async def _drained(call: Any) -> None:
    async for _ in call:
        pass


async def _together(count: int, attack: Callable[[], Awaitable[int]]) -> int:
    """Run `count` attacks, some at a time; how many it were."""
    left = count

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await attack()

    await asyncio.gather(*(work() for _ in range(TOGETHER)))
    return count
