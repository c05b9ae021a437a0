"""Links to peers: one gRPC server, one bidirectional stream a peer; channels for the calls beside it are channels.py's.

Idea: whoever knows an address dials; both sides say Hello first. Usually one link joins two nodes. When both dial at
once there are two for a moment: a little later, when both sides surely know both, the node with the higher id closes
the one that it dialled itself, so exactly one side acts and the peer never seems gone. A peer counts as linked while at
least one link is open; the owner hears of the first and of the last, and of one that says other addresses than before.

A TCP stream that lost much backs off for many seconds, where a new one would get through. So a dial of a node that is
linked already (the machines above ask for one when its link seems stuck) makes a new connection, which takes the place
of the old one.

Sending is best effort: a message to a peer whose queue is full is dropped, as a network would, and the machines above
live with that.

Who a peer is, TLS proves (credentials.py): a node is dialled with the certificate that it showed last, and where that
does not answer, or none is known, a handshake of our own reads which one is there (handshake.py). A Hello must say what
the certificate says (hellos.py). A connection outlives the certificate that began it, so none may grow old:
whoever dialled a link dials it anew before the other side's age limit, the new one takes the place of the old one, and
a peer whose certificate has ended meanwhile is not reached any more. A node that belongs to no mesh dials nobody.

Does not: know what messages mean or judge liveness.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote

import grpc
import grpc.aio

from mesh.authorisation import may_send
from mesh.certificates import Identity
from mesh.identity import NodeId
from mesh.rate import Rate
from mesh.wire import membership_pb2, mesh_pb2, mesh_pb2_grpc
from node.addresses import target
from node.callers import Denied, caller_of
from node.channels import STUCK_GRACE_S, UNLINKED_GRACE_S, Channels
from node.credentials import Credentials
from node.grpc_options import GRPC_OPTIONS
from node.handshake import DENIED, NOT_LISTENING, SILENT, HandshakeError, identify
from node.hellos import HelloError, check, named_by
from node.limits import LINK_BYTES_OF_A_MESSAGE, LINK_MESSAGES_BURST, LINK_MESSAGES_PER_S
from node.logs import where
from node.once import Once
from node.outbox import Outbox
from node.trimming import trim_hello

#: A dial that has not exchanged Hellos by then failed.
HELLO_TIMEOUT_S = 3.0
#: From the second link to a peer until it is dropped.
TWIN_GRACE_S = 2.0
#: How long a handshake may take that asks who is at an address.
IDENTIFY_TIMEOUT_S = 3.0
#: The same of an address where a known node did not answer: mostly nobody listens there, which is said at once.
IDENTIFY_AGAIN_S = 0.5
#: Whoever dialled a link dials it anew at an age from here on; a part of it is drawn by the node's id, so that a mesh
#: that began at once does not begin anew at once. Failing that, again and again, until the link has to end.
LINK_RENEW_S = 720.0
LINK_RENEW_SPREAD_S = 240.0
LINK_RENEW_AGAIN_S = 30.0
LINK_AGE_MAX_S = 1800.0
#: An address that turned out wrong in the same way is logged again after this.
LOG_AGAIN_S = 600.0
#: Certificates of peers that are remembered, about 1 KiB each; of any other a handshake asks again.
KNOWN_MAX = 2048


class Owner(Protocol):
    """Who hears of links; all calls come on the event loop."""

    def hello(self) -> membership_pb2.Hello:
        """What this node says of itself."""

    def link_opened(self, hello: membership_pb2.Hello, dialled_from: str) -> None:
        """Also while it is linked, where the peer has other addresses now.

        Args:
            dialled_from: the host that the peer dialled from; empty where this node dialled.
        """

    def link_closed(self, peer: NodeId) -> None: ...

    async def message_received(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None: ...

    def log(self, level: str, text: str) -> None: ...

    def refused(self, peer: NodeId, text: str) -> None:
        """Something that a peer did was refused; for the log."""


@dataclass(eq=False)
class Link:
    """One open stream."""

    peer: NodeId
    hello: membership_pb2.Hello
    identity: Identity  # of the peer, proved by TLS
    dialled: bool
    host: str  # of the peer
    port: int = 0  # where it was dialled
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    opened_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    pace: Rate = field(default_factory=lambda: Rate(LINK_MESSAGES_PER_S, LINK_MESSAGES_BURST))
    told: set[NodeId] = field(default_factory=set)  # authors whose certificates were sent on it; the owner's
    refused: set[str] = field(default_factory=set)  # kinds of messages that it may not send and did
    outbox: Outbox = field(default_factory=Outbox)

    @property
    def address(self) -> tuple[str, int] | None:
        """Where the peer takes calls: where it was dialled, else what it says, best on the host that it came from."""
        if self.dialled:
            return self.host, self.port
        said = [(address.host, address.port) for address in self.hello.addresses]
        return next((address for address in said if address[0] == self.host), said[0] if said else None)

    def close(self) -> None:
        """End it once what waits is written."""
        self.outbox.end()


Read = Callable[[], Awaitable[mesh_pb2.LinkMessage | None]]
Write = Callable[[mesh_pb2.LinkMessage], Awaitable[None]]


class Links:
    """All links of this node. Invariant: no peer is in `_links` with an empty list."""

    def __init__(
        self,
        owner: Owner,
        me: NodeId,
        credentials: Credentials | None,
        denied: Denied = lambda _: False,
        *,
        twin_grace_s: float = TWIN_GRACE_S,
        renew_s: float = LINK_RENEW_S,
    ) -> None:
        """`credentials`: None for a node that belongs to no mesh; `denied`: who was cut off from the mesh."""
        self._owner = owner
        self._credentials = credentials
        self._denied = denied
        self._twin_grace_s = twin_grace_s
        self._renew_s = renew_s + int(me[:4], 16) / 0xFFFF * min(LINK_RENEW_SPREAD_S, renew_s)
        self._me = me
        self._links: dict[NodeId, list[Link]] = {}
        self._known: OrderedDict[NodeId, Identity] = OrderedDict()
        self._channels = Channels(credentials)
        self._once = Once(LOG_AGAIN_S)
        self._dialling: set[tuple[str, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def count(self, peer: NodeId) -> int:
        """Open links to `peer`: 0, 1, or for a moment 2."""
        return len(self._links.get(peer, ()))

    def send(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> bool:
        """Queue a message. Returns False where it was dropped."""
        # The newest first: an older one may be dead without our knowing.
        return any(link.outbox.put(message) for link in reversed(self._links.get(peer, ())))

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
        if self._credentials is None or (expected is not None and self._denied(expected)):
            asyncio.get_running_loop().call_soon(on_end, None, False)
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
        return self._channels.stub(*address, links[-1].identity)

    def identity_of(self, peer: NodeId) -> Identity | None:
        """What the certificate of a linked peer says."""
        links = self._links.get(peer)
        return links[-1].identity if links else None

    def told(self, peer: NodeId) -> set[NodeId] | None:
        """Whose certificates were sent on the link that `send` takes, for the owner to keep; None while not linked."""
        links = self._links.get(peer)
        return links[-1].told if links else None

    def cut(self, peer: NodeId) -> None:
        """End every link with this peer and the calls beside them, at once: it was denied."""
        self._channels.cut(peer)
        for link in list(self._links.get(peer, ())):
            self._remove(link)
            link.cut.set()

    def renewed(self) -> None:
        """This node's certificate was renewed and `Credentials.refresh` called: every link is made anew.

        Those that peers dialled too: in the new one they see the certificate that they have to expect from now on.
        """
        self._channels.end_all(STUCK_GRACE_S)
        for links in list(self._links.values()):
            for link in links:
                if link.dialled:
                    self._dial_anew(link)
                elif link.address is not None:
                    self.dial(*link.address, link.peer, lambda _node, _refused: None)

    async def accept(
        self,
        request_iterator: AsyncIterator[mesh_pb2.LinkMessage],
        context: "grpc.aio.ServicerContext[mesh_pb2.LinkMessage, mesh_pb2.LinkMessage]",
    ) -> None:
        """Serve a link that a peer dialled; returns when it ends. Called through `callers.Callers`."""
        identity = caller_of(context)

        async def read() -> mesh_pb2.LinkMessage | None:
            return await anext(request_iterator, None)

        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = self._checked(await self._first(read), identity)
        except (TimeoutError, HelloError) as error:
            text = f"{identity.node_id} can not be linked with: {error or 'it said no Hello'}"
            self._owner.refused(identity.node_id, text)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not linked")
        answer = mesh_pb2.LinkMessage(hello=self._owner.hello())
        if identity.node_id == self._me:
            await context.write(answer)
            return
        link = Link(identity.node_id, hello, identity, False, host_of(context.peer()))
        # First in the queue, so that the link counts here before the peer reads it and ends the one before.
        link.outbox.put(answer)
        await self._run(link, read, context.write)

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
        await self._channels.close()

    async def _dial(
        self, host: str, port: int, expected: NodeId | None, on_end: Callable[[NodeId | None, bool], None]
    ) -> None:
        """One dial. Where another node answers than was expected, that one is linked with."""
        stuck = list(self._links.get(expected, ())) if expected is not None else []
        answered: list[NodeId] = []
        known = self._known.get(expected) if expected is not None else None
        refused = False

        def on_answer(node_id: NodeId) -> None:
            self._dialling.discard((host, port))
            answered.append(node_id)
            on_end(node_id, False)

        try:
            if known is None or not await self._link(host, port, known, expected, stuck, on_answer):
                within_s = IDENTIFY_TIMEOUT_S if known is None else IDENTIFY_AGAIN_S
                there = await self._who_is_at(host, port, within_s)
                if there != known:
                    await self._link(host, port, there, expected, stuck, on_answer)
        except HandshakeError as error:
            refused = error.reason == NOT_LISTENING
            if error.reason not in (NOT_LISTENING, SILENT):
                self._say_once(host, port, error.said)
        except HelloError as error:
            self._say_once(host, port, str(error))
        finally:
            self._dialling.discard((host, port))
            if not answered:
                on_end(None, refused and not self._closing)

    async def _who_is_at(self, host: str, port: int, within_s: float) -> Identity:
        assert self._credentials is not None
        there = await identify(self._credentials, host, port, within_s)
        if self._denied(there.node_id):
            raise HandshakeError(DENIED, f"{there.node_id} is there, which was cut off from the mesh")
        return there

    async def _link(
        self,
        host: str,
        port: int,
        shown: Identity,
        expected: NodeId | None,
        stuck: list[Link],
        on_answer: Callable[[NodeId], None],
    ) -> bool:
        """Link with who shows this certificate, until the end. Returns whether it answered. Raises `HelloError`."""
        assert self._credentials is not None
        peer = shown.node_id
        channel = self._credentials.channel(host, port, shown, GRPC_OPTIONS)
        answered = False
        try:
            call = mesh_pb2_grpc.MeshStub(channel).Link(timeout=None)

            async def read() -> mesh_pb2.LinkMessage | None:
                message = await call.read()
                return message if isinstance(message, mesh_pb2.LinkMessage) else None

            async def write(message: mesh_pb2.LinkMessage) -> None:
                await call.write(message)

            mine = self._owner.hello()
            mine.answers_to = expected or ""
            try:
                async with asyncio.timeout(HELLO_TIMEOUT_S):
                    await call.write(mesh_pb2.LinkMessage(hello=mine))
                    hello = await self._first(read)
                    identity = named_by(hello, peer, self._credentials.roots)
                    self._checked(hello, identity)
                answered = True
                on_answer(peer)
                linked = self._links.get(peer, ())
                stuck = [link for link in linked if link in stuck]
                if peer == self._me or any(link.dialled and link not in stuck for link in linked):
                    return True
                link = Link(peer, hello, identity, True, host, port)
                renewal = asyncio.get_running_loop().call_later(self._renew_s, self._dial_anew, link)
                try:
                    await self._run(link, read, write, instead_of=stuck)
                finally:
                    renewal.cancel()
            finally:
                call.cancel()
        except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError):
            pass
        finally:
            await channel.close()
        return answered

    def _dial_anew(self, link: Link) -> None:
        """Make a link before the old one grows too old; the old one carries on until then."""
        if link not in self._links.get(link.peer, ()) or self._closing:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - link.opened_at > LINK_AGE_MAX_S:
            link.close()
            return
        # Where the dial succeeds, the link is replaced, and this finds it gone.
        loop.call_later(LINK_RENEW_AGAIN_S, self._dial_anew, link)
        self.dial(link.host, link.port, link.peer, lambda _node, _refused: None)

    async def _first(self, read: Read) -> membership_pb2.Hello:
        message = await read()
        if message is None or message.WhichOneof("message") != "hello":
            raise HelloError("the first message was no Hello")
        return message.hello

    def _checked(self, hello: membership_pb2.Hello, identity: Identity) -> membership_pb2.Hello:
        """Raises `HelloError`."""
        trim_hello(hello)
        check(hello, identity)
        if hello.node_id == self._me and hello.incarnation != self._owner.hello().incarnation:
            self._owner.log("error", "another node runs with a copy of this data directory; give it one of its own")
        self._know(identity)
        return hello

    def _know(self, identity: Identity) -> None:
        """The certificate that this peer shows now: the only one that is taken from it at the next dial."""
        self._known[identity.node_id] = identity
        self._known.move_to_end(identity.node_id)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    async def _run(self, link: Link, read: Read, write: Write, instead_of: Sequence[Link] = ()) -> None:
        """Carry one link until it ends, from either side."""
        if link.peer == self._me:
            return
        self._end_earlier_life(link)
        before = self._links.get(link.peer, [])
        is_news = not before or before[-1].hello.addresses != link.hello.addresses
        self._links[link.peer] = [*before, link]
        for stuck in instead_of:
            self._replace(stuck)
        if is_news:
            self._owner.link_opened(link.hello, "" if link.dialled else link.host)
        if before and self._me > link.peer:
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
                if not self._closing:
                    # The next calls go where the next link is, on a connection as new; what runs may be well.
                    self._channels.end(link.peer, UNLINKED_GRACE_S)
                self._owner.link_closed(link.peer)

    def _replace(self, stuck: Link) -> None:
        """A newer link to the same peer is in place: end this one as it is, and the connection of the calls beside."""
        self._remove(stuck)
        stuck.cut.set()
        self._channels.end(stuck.peer, STUCK_GRACE_S)

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

    @contextlib.contextmanager
    def _ending(self, peer: NodeId) -> Iterator[None]:
        """Around reading and writing: whatever goes wrong ends the link; what is not the connection's end is told."""
        try:
            yield
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            pass
        except Exception as error:
            if self._once.due((peer, said := f"the link with {peer} ended by {where(error)}")):
                self._owner.log("error", said)

    async def _write(self, link: Link, write: Write) -> None:
        with self._ending(link.peer):
            while (message := await link.outbox.take()) is not None:
                await write(message)

    async def _read(self, link: Link, read: Read) -> None:
        with self._ending(link.peer):
            clock = asyncio.get_running_loop().time
            while (message := await read()) is not None:
                # Nothing is dropped: a peer that says too much is read more slowly.
                cost = 1 + message.ByteSize() / LINK_BYTES_OF_A_MESSAGE
                if (pause_s := link.pace.charge(link.peer, clock(), cost)) > 0:
                    await asyncio.sleep(pause_s)
                kind = message.WhichOneof("message") or ""
                if kind == "hello":
                    self._owner.refused(link.peer, f"{link.peer} said Hello twice: link ended")
                    return
                if self._denied(link.peer):
                    return
                if not may_send(role := link.identity.role, kind):
                    if kind not in link.refused:
                        link.refused.add(kind)
                        self._owner.refused(link.peer, f"{link.peer} is a {role}: its {kind!r} is ignored")
                    continue
                await self._owner.message_received(link.peer, message)

    def _say_once(self, host: str, port: int, text: str) -> None:
        if self._once.due((host, port, text)):
            self._owner.log("warning", f"{target(host, port)} can not be linked with: {text}")


def host_of(peer: str) -> str:
    """The host in gRPC's name of a peer, `ipv4:10.0.0.1:4000` or `ipv6:%5Bfd77::1%5D:4000`."""
    _, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]")
