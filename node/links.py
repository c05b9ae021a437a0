"""Links to peers: one gRPC server, one bidirectional stream a peer, and channels for the calls beside it.

Idea: whoever knows an address dials; both sides say Hello first. Usually one link joins two nodes. When both dial at
once there are two for a moment: a little later, when both sides surely know both, the node with the higher id closes
the one that it dialled itself, so exactly one side acts and the peer never seems gone. A peer counts as linked while at
least one link is open, and the owner hears of the first and of the last only.

A TCP stream that lost much backs off for many seconds, where a new one would get through. So a dial of a node that is
linked already (the machines above ask for one when its link seems stuck) makes a new connection, which takes the place
of the old one.

Sending is best effort: a message to a peer whose queue is full is dropped, as a network would, and the machines above
live with that.

Does not: know what messages mean, judge liveness, or (until nodes have certificates) prove who a peer is: see
node/interfaces.py for what a node may bind until then.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote

import grpc
import grpc.aio

from mesh.identity import NodeId, node_id_of
from mesh.wire import membership_pb2, mesh_pb2, mesh_pb2_grpc

PROTOCOL_VERSION = 2
#: The previous release's, which a mesh may hold while it is upgraded.
PROTOCOL_VERSION_MIN = 1
#: Messages waiting for one slow peer.
QUEUE_MAX = 2000
#: A dial that has not exchanged Hellos by then failed.
HELLO_TIMEOUT_S = 3.0
#: From the second link to a peer until it is dropped.
TWIN_GRACE_S = 2.0
#: How long a failed dial may ask whether anybody listens there at all.
REFUSED_WITHIN_S = 0.5
#: From the end of a stuck link until the calls beside it are ended too.
CALLS_GRACE_S = 30.0
#: Against a peer that sends one huge message: facts come 1 MiB a push, blobs in 1 MiB chunks.
MESSAGE_BYTES_MAX = 4 << 20

GRPC_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", 8192),
    ("grpc.so_reuseport", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
    # Each dial is a connection of its own, not one more stream on a connection that may be stuck.
    ("grpc.use_local_subchannel_pool", 1),
    # A peer that lost power or its Wi-Fi answers nothing: its streams end after 15 s at the latest, and it is dialled
    # anew. (It is suspect after two probes already; this is about the stream.)
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
    ("grpc.http2.max_ping_strikes", 0),
]


class Owner(Protocol):
    """Who hears of links; all calls come on the event loop."""

    def hello(self) -> membership_pb2.Hello:
        """What this node says of itself."""

    def link_opened(self, hello: membership_pb2.Hello, dialled_from: str) -> None:
        """`dialled_from`: the host that the peer dialled from; empty where this node dialled."""

    def link_closed(self, peer: NodeId) -> None: ...

    async def message_received(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None: ...

    def log(self, level: str, text: str) -> None: ...


@dataclass(eq=False)
class Link:
    """One open stream. `outbox` holds what waits to be written; None ends it."""

    peer: NodeId
    hello: membership_pb2.Hello
    dialled: bool
    host: str  # of the peer
    port: int = 0  # where it was dialled
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    outbox: "asyncio.Queue[mesh_pb2.LinkMessage | None]" = field(default_factory=lambda: asyncio.Queue(QUEUE_MAX))

    @property
    def address(self) -> tuple[str, int] | None:
        """Where the peer takes calls: where it was dialled, else what it says, best on the host that it came from."""
        if self.dialled:
            return self.host, self.port
        said = [(address.host, address.port) for address in self.hello.addresses]
        return next((address for address in said if address[0] == self.host), said[0] if said else None)

    def close(self) -> None:
        """End it once what waits is written."""
        while True:
            try:
                self.outbox.put_nowait(None)
                return
            except asyncio.QueueFull:
                self.outbox.get_nowait()


class HelloError(Exception):
    """The peer can not be linked with; says why."""


Read = Callable[[], Awaitable[mesh_pb2.LinkMessage | None]]
Write = Callable[[mesh_pb2.LinkMessage], Awaitable[None]]


class Links:
    """All links of this node. Invariant: no peer is in `_links` with an empty list."""

    def __init__(self, owner: Owner, me: NodeId, twin_grace_s: float = TWIN_GRACE_S) -> None:
        self._owner = owner
        self._twin_grace_s = twin_grace_s
        self._me = me
        self._links: dict[NodeId, list[Link]] = {}
        self._channels: dict[tuple[str, int], grpc.aio.Channel] = {}
        self._dialling: set[tuple[str, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def count(self, peer: NodeId) -> int:
        """Open links to `peer`: 0, 1, or for a moment 2."""
        return len(self._links.get(peer, ()))

    def send(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> bool:
        """Queue a message. Returns False where it was dropped."""
        for link in reversed(self._links.get(peer, ())):  # the newest: an older one may be dead without our knowing
            try:
                link.outbox.put_nowait(message)
                return True
            except asyncio.QueueFull:
                continue
        return False

    def dial(
        self,
        host: str,
        port: int,
        expected: NodeId | None,
        on_end: Callable[[NodeId | None, bool], None],
    ) -> None:
        """Open a link in the background. Where `expected` is linked already, the new one takes its place.

        `on_end` hears who answered (also where the link is not kept), or None and whether nobody listens there.
        """
        if (host, port) in self._dialling or self._closing:
            return
        self._dialling.add((host, port))
        task = asyncio.create_task(self._dial(host, port, expected, on_end), name=f"dial {host}:{port}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stub(self, peer: NodeId) -> "mesh_pb2_grpc.MeshAsyncStub | None":
        """For calls beside the link. None while the peer is not linked."""
        links = self._links.get(peer)
        if not links or (address := links[-1].address) is None:
            return None
        return mesh_pb2_grpc.MeshStub(self._channel(*address))

    async def accept(
        self,
        request_iterator: AsyncIterator[mesh_pb2.LinkMessage],
        context: "grpc.aio.ServicerContext[mesh_pb2.LinkMessage, mesh_pb2.LinkMessage]",
    ) -> None:
        """Serve a link that a peer dialled; returns when it ends."""

        async def read() -> mesh_pb2.LinkMessage | None:
            return await anext(request_iterator, None)

        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = await self._first(read)
            await context.write(mesh_pb2.LinkMessage(hello=self._owner.hello()))
        except (TimeoutError, HelloError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error) or "no Hello came in time")
        await self._run(Link(NodeId(hello.node_id), hello, False, host_of(context.peer())), read, context.write)

    async def close(self) -> None:
        """End all links, flushing what waits for at most half a second."""
        self._closing = True
        for links in list(self._links.values()):
            for link in links:
                link.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=0.5)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels.values():
            await channel.close()

    async def _dial(
        self, host: str, port: int, expected: NodeId | None, on_end: Callable[[NodeId | None, bool], None]
    ) -> None:
        stuck = list(self._links.get(expected, ())) if expected is not None else []
        channel = grpc.aio.insecure_channel(target(host, port), options=GRPC_OPTIONS)
        answered: NodeId | None = None
        failed = False
        try:
            call = mesh_pb2_grpc.MeshStub(channel).Link(timeout=None)

            async def read() -> mesh_pb2.LinkMessage | None:
                message = await call.read()
                return message if isinstance(message, mesh_pb2.LinkMessage) else None

            mine = self._owner.hello()
            mine.answers_to = expected or ""
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                await call.write(mesh_pb2.LinkMessage(hello=mine))
                hello = await self._first(read)
            answered = NodeId(hello.node_id)
            on_end(answered, False)
            self._dialling.discard((host, port))
            linked = self._links.get(answered, ())
            stuck = [link for link in linked if link in stuck]
            if answered == self._me or any(link.dialled and link not in stuck for link in linked):
                call.cancel()
                return

            async def write(message: mesh_pb2.LinkMessage) -> None:
                await call.write(message)

            try:
                await self._run(Link(answered, hello, True, host, port), read, write, instead_of=stuck)
            finally:
                call.cancel()
        except HelloError as error:
            self._owner.log("warning", f"{target(host, port)} can not be linked with: {error}")
        except grpc.aio.AioRpcError:
            failed = True
        except (TimeoutError, asyncio.InvalidStateError):
            pass
        finally:
            refused = failed and answered is None and not self._closing and await is_refused(host, port)
            self._dialling.discard((host, port))
            if answered is None:
                on_end(None, refused)
            await channel.close()

    async def _first(self, read: Read) -> membership_pb2.Hello:
        message = await read()
        if message is None or message.WhichOneof("message") != "hello":
            raise HelloError("the first message was no Hello")
        hello = message.hello
        if node_id_of(hello.public_key) != hello.node_id:
            raise HelloError("its id is not the hash of its key")
        if hello.mesh_id != self._owner.hello().mesh_id:
            raise HelloError("it belongs to another mesh")
        if hello.protocol_version_min > PROTOCOL_VERSION or hello.protocol_version < PROTOCOL_VERSION_MIN:
            theirs = f"{hello.protocol_version_min} to {hello.protocol_version}"
            ours = f"{PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}"
            raise HelloError(f"it speaks protocol {theirs}, this node {ours}")
        if hello.node_id == self._me and hello.incarnation != self._owner.hello().incarnation:
            self._owner.log("error", "another node runs with a copy of this data directory; give it one of its own")
        return hello

    async def _run(self, link: Link, read: Read, write: Write, instead_of: Sequence[Link] = ()) -> None:
        """Carry one link until it ends, from either side."""
        if link.peer == self._me:
            return
        self._end_earlier_life(link)
        first = link.peer not in self._links
        self._links.setdefault(link.peer, []).append(link)
        for stuck in instead_of:
            self._replace(stuck)
        if first:
            self._owner.link_opened(link.hello, "" if link.dialled else link.host)
        elif self._me > link.peer:
            asyncio.get_running_loop().call_later(self._twin_grace_s, self._drop_twin, link.peer)
        writer = asyncio.create_task(self._write(link, write), name=f"link to {link.peer}")
        reader = asyncio.create_task(self._read(link, read), name=f"link from {link.peer}")
        cut = asyncio.create_task(link.cut.wait(), name=f"end of link to {link.peer}")
        try:
            await asyncio.wait({writer, reader, cut}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Before anything is awaited: gRPC may cancel this call once more, in the middle of its end.
            self._remove(link)
            for task in (writer, reader, cut):
                task.cancel()
            await asyncio.gather(writer, reader, cut, return_exceptions=True)

    def _remove(self, link: Link) -> None:
        links = self._links.get(link.peer, [])
        if link in links:
            links.remove(link)
            if not links:
                del self._links[link.peer]
                self._owner.link_closed(link.peer)

    def _replace(self, stuck: Link) -> None:
        """A newer link to the same peer is in place: end this one as it is, and the connection of the calls beside."""
        self._remove(stuck)
        stuck.cut.set()
        if (address := stuck.address) is not None and (channel := self._channels.pop(address, None)) is not None:
            task = asyncio.create_task(channel.close(CALLS_GRACE_S), name=f"end of calls to {stuck.peer}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _end_earlier_life(self, link: Link) -> None:
        """A peer that was started again is a new one: what was linked to its earlier life is over, noticed or not."""
        for old in list(self._links.get(link.peer, ())):
            if old.hello.incarnation != link.hello.incarnation:
                self._remove(old)
                old.close()

    def _drop_twin(self, peer: NodeId) -> None:
        links = self._links.get(peer, [])
        if any(not link.dialled for link in links):
            for link in links:
                if link.dialled:
                    link.close()

    async def _write(self, link: Link, write: Write) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            while (message := await link.outbox.get()) is not None:
                await write(message)

    async def _read(self, link: Link, read: Read) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            while (message := await read()) is not None:
                if message.WhichOneof("message") == "hello":
                    self._owner.log("warning", f"{link.peer} said Hello twice: link ended")
                    return
                await self._owner.message_received(link.peer, message)

    def _channel(self, host: str, port: int) -> grpc.aio.Channel:
        channel = self._channels.get((host, port))
        if channel is None:
            channel = grpc.aio.insecure_channel(target(host, port), options=GRPC_OPTIONS)
            self._channels[(host, port)] = channel
        return channel


async def is_refused(host: str, port: int) -> bool:
    """Whether that machine answers that nobody listens there; gRPC does not tell this from silence."""
    try:
        async with asyncio.timeout(REFUSED_WITHIN_S):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return False


def host_of(peer: str) -> str:
    """The host in gRPC's name of a peer, `ipv4:10.0.0.1:4000` or `ipv6:%5Bfd77::1%5D:4000`."""
    _, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]")


def target(host: str, port: int) -> str:
    """The gRPC target of an address; IPv6 literals in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
