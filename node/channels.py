"""The connections for calls to peers, one to each address and certificate, and how they end.

Idea: on a channel that is to end no call begins any more, and those that run have a grace: the connection may be well
although nothing new should begin there. Calls to a denied peer have none, also where their channel was ending before.
"""

import asyncio
from collections.abc import Callable
from functools import partialmethod
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

import grpc.aio

from mesh.certificates import Identity
from mesh.identity import NodeId
from mesh.wire import mesh_pb2_grpc
from node.blobs import FETCH_WITHIN_S
from node.credentials import Credentials
from node.grpc_options import GRPC_OPTIONS
from node.limits import ANSWER_WITHIN_S
from node.models.peers import CALL_WITHIN_S

if TYPE_CHECKING:
    from mesh.wire.mesh_pb2_grpc import MeshAsyncStub

#: From the end of a stuck link until the calls beside it are ended too.
STUCK_GRACE_S = 30.0
#: From the loss of the last link: what runs may be well, and ends by itself as late as the longest call.
UNLINKED_GRACE_S = max(ANSWER_WITHIN_S, FETCH_WITHIN_S, CALL_WITHIN_S)


class _Channel:
    """A channel with the calls that run on it, for stubs. gRPC lets nobody shorten the grace of one that ends."""

    def __init__(self, peer: Identity, channel: grpc.aio.Channel) -> None:
        self.peer = peer
        self.channel = channel
        self._calls: WeakSet[Any] = WeakSet()  # gRPC ends a call that nobody holds any more

    def cancel_calls(self) -> None:
        for call in list(self._calls):
            call.cancel()

    def _rpc(self, kind: str, *args: Any, **options: Any) -> Callable[..., Any]:
        begin = getattr(self.channel, kind)(*args, **options)

        def begin_known(*args: Any, **options: Any) -> Any:
            call = begin(*args, **options)
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            return call

        return begin_known

    unary_unary = partialmethod(_rpc, "unary_unary")
    unary_stream = partialmethod(_rpc, "unary_stream")
    stream_unary = partialmethod(_rpc, "stream_unary")
    stream_stream = partialmethod(_rpc, "stream_stream")


class Channels:
    """Invariant: no channel is in both `_open` and `_ending`."""

    def __init__(self, credentials: Credentials | None) -> None:
        """`credentials`: None for a node that belongs to no mesh, and calls nobody."""
        self._credentials = credentials
        self._open: dict[tuple[str, int, NodeId], _Channel] = {}
        self._ending: dict[asyncio.Task[None], _Channel] = {}

    def stub(self, host: str, port: int, peer: Identity) -> "MeshAsyncStub":
        """For calls at this address to who shows this certificate."""
        assert self._credentials is not None, "who is linked has credentials"
        channel = self._open.get((host, port, peer.node_id))
        if channel is None or channel.peer != peer:
            self.end(peer.node_id, STUCK_GRACE_S)
            channel = _Channel(peer, self._credentials.channel(host, port, peer, GRPC_OPTIONS))
            self._open[host, port, peer.node_id] = channel
        return mesh_pb2_grpc.MeshStub(cast(grpc.aio.Channel, channel))

    def end(self, peer: NodeId, grace_s: float) -> None:
        """Let no call to this peer begin any more on the channels of now; those that run are ended after `grace_s`."""
        for key in [key for key in self._open if key[2] == peer]:
            channel = self._open.pop(key)
            task = asyncio.create_task(channel.channel.close(grace_s), name=f"end of calls to {peer}")
            self._ending[task] = channel
            task.add_done_callback(self._ending.pop)

    def end_all(self, grace_s: float) -> None:
        for peer in {peer for _, _, peer in self._open}:
            self.end(peer, grace_s)

    def cut(self, peer: NodeId) -> None:
        """End all calls to this peer at once, those that have a grace too."""
        self.end(peer, 0.0)
        for channel in self._ending.values():
            if channel.peer.node_id == peer:
                channel.cancel_calls()

    async def close(self) -> None:
        """End all calls at once."""
        self.end_all(0.0)
        for channel in self._ending.values():
            channel.cancel_calls()
        await asyncio.gather(*self._ending)
