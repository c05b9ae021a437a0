"""Nodes with real gRPC servers and links on loopback, and nothing else of a node."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio

from mesh.certificates import Role
from mesh.identity import NodeId
from mesh.wire import engine_pb2, membership_pb2, mesh_pb2, mesh_pb2_grpc
from node.callers import Callers
from node.credentials import Credentials
from node.enrolment import Enrolment
from node.grpc_options import PORT_OPTIONS
from node.hellos import PROTOCOL_VERSION
from node.links import Links
from node.refused import Refused
from scripts.throwaway import ThrowawayMesh


class Node:
    """An owner that writes down what it hears."""

    def __init__(self, enrolment: Enrolment, renew_s: float) -> None:
        self.enrolment = enrolment
        self.credentials = Credentials(enrolment)
        self.key = enrolment.key
        self.me = self.key.node_id
        self.port = 0
        self.host = "127.0.0.1"  # as it says
        self.version = PROTOCOL_VERSION
        self.denied: set[NodeId] = set()
        self.opened: list[NodeId] = []
        self.told_host = ""  # of who linked last
        self.dialled_from: list[str] = []
        self.closed: list[NodeId] = []
        self.received: list[mesh_pb2.LinkMessage] = []
        self.said: list[str] = []
        self.links = Links(self, self.me, self.credentials, self.denied.__contains__, twin_grace_s=0.1, renew_s=renew_s)
        self.callers = Callers(lambda: enrolment.roots, self.denied.__contains__, Refused(self.log))
        self.server: grpc.aio.Server | None = None
        self.goes_on = asyncio.Event()  # until then what is fetched here has no end

    def hello(self) -> membership_pb2.Hello:
        hello = membership_pb2.Hello(
            node_id=self.me,
            incarnation=1,
            public_key=self.key.public_key,
            protocol_version=self.version,
            protocol_version_min=self.version,
            certificate=self.enrolment.identity.certificate,
        )
        hello.addresses.add(host=self.host, port=self.port)
        return hello

    def link_opened(self, hello: membership_pb2.Hello, dialled_from: str) -> None:
        self.opened.append(NodeId(hello.node_id))
        self.dialled_from.append(dialled_from)
        self.told_host = hello.addresses[0].host

    def link_closed(self, peer: NodeId) -> None:
        self.closed.append(peer)

    async def message_received(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        self.received.append(message)

    def log(self, level: str, text: str) -> None:
        self.said.append(text)

    def refused(self, peer: NodeId, text: str) -> None:
        self.said.append(text)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # any state may be asked for
                await asyncio.sleep(0.01)

    async def dial(self, other: "Node", expected: NodeId | None = None) -> NodeId | None:
        return (await self.dial_port(other.port, expected))[0]

    async def dial_port(self, port: int, expected: NodeId | None = None) -> tuple[NodeId | None, bool]:
        """Who answered, and whether nobody listens there."""
        ended: asyncio.Future[tuple[NodeId | None, bool]] = asyncio.get_running_loop().create_future()
        self.links.dial("127.0.0.1", port, expected, lambda node, refused: ended.set_result((node, refused)))
        return await asyncio.wait_for(ended, 10)


class Service(mesh_pb2_grpc.MeshServicer):  # the link, and one call of each kind; the rest is not called here
    __abstractmethods__: frozenset[str] = frozenset()

    def __init__(self, node: Node) -> None:
        self.node = node

    async def Link(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await self.node.links.accept(request_iterator, context)

    async def Score(self, request: Any, context: Any) -> engine_pb2.ScoreReply:
        return engine_pb2.ScoreReply()

    async def FetchBlob(self, request: Any, context: Any) -> AsyncIterator[mesh_pb2.BlobChunk]:
        yield mesh_pb2.BlobChunk(data=b"beginning")
        await self.node.goes_on.wait()
        yield mesh_pb2.BlobChunk(data=b"end")


def plain(node: Node) -> mesh_pb2_grpc.MeshServicer:
    return Service(node)  # type: ignore[abstract]


class Made:
    """Nodes of a mesh, by role, in order of their ids, each with a server."""

    def __init__(self, folder: Path, service: Callable[[Node], mesh_pb2_grpc.MeshServicer] = plain) -> None:
        """`service`: what a node serves."""
        self.folder = folder
        self.service = service
        self.mesh = ThrowawayMesh()
        self.all: list[Node] = []

    async def __call__(
        self,
        *roles: Role,
        mesh: ThrowawayMesh | None = None,
        renew_s: float = 600.0,
        days: float = 30.0,
        connection_age_s: float = 1200.0,
    ) -> list[Node]:
        age_ms = int(1000 * connection_age_s)
        options = [
            *PORT_OPTIONS,
            ("grpc.max_connection_age_ms", age_ms),
            ("grpc.max_connection_age_grace_ms", age_ms),
        ]
        made = []
        for role in roles:
            data_dir = self.folder / str(len(self.all))
            enrolment = await asyncio.to_thread((mesh or self.mesh).enrol, data_dir, role, days=days)
            node = Node(enrolment, renew_s)
            node.server = grpc.aio.server(options=options, interceptors=[node.callers])
            mesh_pb2_grpc.add_MeshServicer_to_server(self.service(node), node.server)
            node.port = node.server.add_secure_port("127.0.0.1:0", node.credentials.server())
            await node.server.start()
            made.append(node)
            self.all.append(node)
        return sorted(made, key=lambda node: node.me)

    async def close(self) -> None:
        for node in self.all:
            await node.links.close()
        for node in self.all:
            assert node.server is not None
            await node.server.stop(None)
