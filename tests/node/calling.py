"""A mesh port with the guard of node/callers.py before whatever service, and members that call it."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio

from mesh.identity import NodeId
from mesh.wire import mesh_pb2_grpc
from node.callers import Callers
from node.credentials import Credentials
from node.grpc_options import GRPC_OPTIONS, PORT_OPTIONS
from node.refused import Refused
from scripts.throwaway import ThrowawayMesh

#: What a member does not read stays with the sender: its window does not grow.
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 << 10)]


class Port:
    """Open until `stack` is closed. `said`: what its log has of refusals; `denied`: who was cut off."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._mesh = ThrowawayMesh()
        self._server_side = Credentials(self._mesh.enrol(folder / "server"))
        self._port = 0
        self.said: list[str] = []
        self.denied: set[NodeId] = set()
        self.ids: dict[str, NodeId] = {}  # of the members, by name

    async def serve(self, service: mesh_pb2_grpc.MeshServicer) -> None:
        said = Refused(lambda _, text: self.said.append(text))
        callers = Callers(lambda: self._server_side.roots, self.denied.__contains__, said)
        server = grpc.aio.server(options=PORT_OPTIONS, interceptors=[callers])
        mesh_pb2_grpc.add_MeshServicer_to_server(service, server)
        self._port = server.add_secure_port("127.0.0.1:0", self._server_side.server())
        await server.start()
        self._stack.push_async_callback(server.stop, None)

    async def channel(self, name: str) -> grpc.aio.Channel:
        """A new member's."""
        enrolment = await asyncio.to_thread(self._mesh.enrol, self._folder / name)
        self.ids[name] = enrolment.key.node_id
        credentials = Credentials(enrolment)
        channel = credentials.channel(
            "127.0.0.1", self._port, self._server_side.identity, [*GRPC_OPTIONS, *SMALL_WINDOW]
        )
        return await self._stack.enter_async_context(channel)

    async def member(self, name: str) -> "mesh_pb2_grpc.MeshAsyncStub":
        return mesh_pb2_grpc.MeshStub(await self.channel(name))
