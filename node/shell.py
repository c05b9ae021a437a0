"""Drives the replica: feeds it events, carries out its effects on the disk and the network.

Idea: the replica is pure, so all that is left here is duty: persist before telling, vote after the sync, drop what can
not be sent, and let only facts in that are truly their author's, an author of this mesh (authors.py). What takes other
parts of the node (engine, solver, blobs, clients), and what they want to hear of, goes to `Listener`.

Does not: take decisions.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from google.protobuf.message import Message

from mesh import effects, events
from mesh.authorisation import may_author
from mesh.certificates import Identity
from mesh.denials import is_genuine
from mesh.facts import Fact, FactError, FactRange, Retired, StreamId, parse, parse_retired
from mesh.identity import NodeId, node_id_of
from mesh.journal import Fork, Position
from mesh.rate import Rate
from mesh.replica import Replica
from mesh.wire import common_pb2, facts_pb2, membership_pb2, mesh_pb2
from node import clock
from node.authors import CERTIFICATES_MAX, Authors, Say, warn
from node.background import Background
from node.callers import Callers
from node.credentials import Credentials
from node.denied import node_denied
from node.errors import ExitCode, KithError
from node.limits import PUSH_BYTES_BURST, PUSH_BYTES_PER_S
from node.links import Links
from node.logs import log, logger
from node.quotas import FactQuotas
from node.refused import Refused
from node.store import Store
from node.ticking import Ticker
from node.trimming import trim

#: Messages that links carry while nothing happens.
ROUTINE = frozenset({"leader_beat", "leader_beat_reply", "probe", "probe_reply", "vector_digest"})
#: From a denial until the links and calls of its node end.
FAREWELL_S = 0.1
#: How long the end waits for what is being written, seconds. Threat: a disk that hangs keeps the node from ending. What
#: is not known to be written then is finished by the store all the same, where the disk comes back in time.
SETTLED_WITHIN_S = 5.0


class Listener(Protocol):
    """What happens above the machines. All calls come on the event loop and must not block."""

    def ticking(self) -> None:
        """Time is about to go on for the machines."""

    def carry_out(self, effect: effects.Effect) -> None:
        """An effect of effects.py's sections on blobs and work."""

    def delivered(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None: ...

    def member_changed(self, node_id: NodeId, state: int) -> None: ...

    def leader_changed(self, token: common_pb2.FencingToken | None) -> None: ...

    def facts_applied(self, facts: Sequence[Fact]) -> None: ...


class Shell:
    """Implements `links.Owner`. Start it once the listener is complete."""

    def __init__(
        self,
        replica: Replica,
        store: Store,
        hello: Callable[[], membership_pb2.Hello],
        listener: Listener,
        authors: Authors,
        credentials: Credentials | None = None,
    ) -> None:
        """`credentials`: None for a node that belongs to no mesh."""
        self.replica = replica
        self.authors = authors
        self._credentials = credentials
        self._store = store
        self._hello = hello
        self._listener = listener
        self._refused = Refused(log)
        self.links = Links(self, replica.me, credentials, self.denied)
        #: Stands before every handler of the mesh port; None for a node that has none.
        self.callers = (
            Callers(lambda: credentials.roots, self.denied, self._refused) if credentials is not None else None
        )
        #: A failed disk stops the node through the store's own hook; anything else in here is a programmer's error.
        self._duties = Background()
        self._quotas = FactQuotas(replica.me, replica.journal.lacks)
        self._authoring: dict[bytes, asyncio.Future[Fact]] = {}
        #: Peers to which stored facts are being pushed, with what comes next.
        self._pushing: dict[NodeId, tuple[FactRange, ...]] = {}
        self._push_pace = Rate(PUSH_BYTES_PER_S, PUSH_BYTES_BURST)
        self._ticker = Ticker(self._tick)
        self._stopped = False

    # What the rest of the node uses

    def start(self) -> None:
        self._ticker.start()

    def post(self, event: events.Event) -> None:
        """Hand an event to the replica and carry out what it answers."""
        if self._stopped:
            return
        if not is_routine(event):
            self._ticker.stir()
        for effect in self.replica.handle(event, clock.now()):
            self._carry_out(effect)

    def denied(self, node_id: NodeId) -> bool:
        """Whether a member was cut off."""
        return self.replica.denials.is_denied(node_id)

    def cut_off(self, node_id: NodeId) -> None:
        """A member was denied, or this node was: end its links and calls, both ways, at once."""
        self.links.cut(node_id)
        if self.callers is not None:
            self.callers.cut(node_id)

    def certificate_renewed(self) -> None:
        """The enrolment holds another certificate: show it from now on. No link breaks."""
        assert self._credentials is not None, "only who is in a mesh has a certificate"
        self._credentials.refresh()
        self.links.renewed()
        self._duties.spawn(self.learn([self._credentials.identity.certificate]))

    async def learn(self, certificates: Sequence[bytes]) -> None:
        """Keep certificates of authors, durably, this node's own among them."""
        if new := self.authors.read(certificates):
            await self._store.save_certificates(new)
            self.authors.take(new)

    async def author(self, kind: str, content: Message) -> Fact:
        """Say something once and for all. Returns when it is durable here. Raises `KithError` (`role-refused`)."""
        self.require_may_author(kind)
        own: Fact | None = None
        # The fact is made inside `handle`; a pause may have made the machines say things of their own before it.
        for effect in self.replica.handle(events.FactAuthored(kind, content, clock.wall_clock_ms()), clock.now()):
            if isinstance(effect, effects.Persist) and effect.source is None and effect.facts[-1].kind == kind:
                own = effect.facts[-1]
                self._authoring[own.hash] = asyncio.get_running_loop().create_future()
            self._carry_out(effect)
        assert own is not None, "what is authored is persisted"
        return await self._authoring[own.hash]

    def require_may_author(self, kind: str) -> None:
        """Raises `KithError` (`node-denied`, `role-refused`) where no other node would take such a fact of this one."""
        if self.replica.denied:
            raise node_denied(self.replica)
        if self._credentials is None or may_author(self._credentials.identity.role, kind):
            return
        role = self._credentials.identity.role
        raise KithError(
            "role-refused",
            f"this node is a {role} of its mesh: it may not say that",
            "Ask on a node that was invited as one; `kith nodes` lists them.",
            ExitCode.UNAVAILABLE,
        )

    def live_peers(self) -> list[NodeId]:
        return self.replica.membership.live_peers()

    async def stop(self) -> None:
        """Say goodbye, end the links, finish what is being written within `SETTLED_WITHIN_S`."""
        self.post(events.Stopping("the node stops"))
        self._ticker.stop()
        await self.links.close()
        self._stopped = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLED_WITHIN_S):
                await self._duties.settled()
        for future in self._authoring.values():
            if not future.done():
                future.set_exception(
                    KithError("node-stops", "the node stops", "Start it again, then ask again.", ExitCode.UNAVAILABLE)
                )
        self._refused.settle(all_of_them=True)

    # links.Owner

    def hello(self) -> membership_pb2.Hello:
        return self._hello()

    def link_opened(self, hello: membership_pb2.Hello, dialled_from: str) -> None:
        self.post(events.LinkOpened(hello, dialled_from))

    def link_closed(self, peer: NodeId) -> None:
        self.post(events.LinkClosed(peer))

    async def message_received(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        kind = message.WhichOneof("message")
        # In a thread, awaited by the link's reader: the loop stays free and the order of the link is kept.
        if kind == "fact_push":
            facts, retired = await self._verified(peer, message.fact_push)
            facts, retired = self._quotas.within(facts, retired, clock.now())
            if facts:
                self._say_of_void(peer, facts)
                self.post(events.FactsVerified(peer, facts, retired))
        elif kind == "fork_proof":
            both = facts_pb2.FactPush(facts=[message.fork_proof.one, message.fork_proof.other])
            facts, _ = await self._verified(peer, both)
            if len(facts) == 2:
                self.post(events.ForkProven(peer, *facts))
        elif trim(message):
            self.post(events.Received(peer, message))
        else:
            self.refused(peer, f"{peer} said too much of a task: its {kind!r} is ignored")

    def log(self, level: str, text: str) -> None:
        log(level, text)

    def refused(self, peer: NodeId, text: str) -> None:
        self._refused.say(peer, text)

    def _say_of_void(self, peer: NodeId, facts: Sequence[Fact]) -> None:
        """Why facts of a push will not be kept: held already, or beyond what counts of their author."""
        debugging = logger.isEnabledFor(logging.DEBUG)
        journal = self.replica.journal
        if not (debugging or journal.forks or journal.denials.nodes):
            return
        seen: set[bytes] = set()
        for fact in facts:
            if journal.is_void(fact.stream_id, fact.sequence):
                why = "was revoked" if journal.denials.is_denied(fact.author) else "wrote two histories"
                self.refused(peer, f"{peer} pushed a fact of {fact.author} that does not count: its author {why}")
            elif debugging and (fact.hash in seen or not journal.lacks(fact)):
                # Gossip brings facts more than once by design: a reason to say it to who looks, none to warn.
                log(
                    "debug", f"{peer} pushed fact {fact.sequence} of {fact.author} ({fact.kind}), which is held already"
                )
            if debugging:
                seen.add(fact.hash)

    # Effects

    def _tick(self) -> None:
        self._listener.ticking()
        self.post(events.Ticked(clock.wall_clock_ms()))
        self._refused.settle()

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Send(peer, message):
                self._send(peer, message)
            case effects.Persist(facts, source, retired):
                self._duties.spawn(self._persist(facts, source, retired))
            case effects.SaveVote(term, voted_for, then):
                self._duties.spawn(self._save_vote(term, voted_for, then))
            case effects.PushStored(peer, ranges):
                if peer not in self._pushing:
                    self._duties.spawn(self._push_stored(peer))
                self._pushing[peer] = ranges
            case effects.CompareStored(peer, facts):
                self._duties.spawn(self._compare_stored(peer, facts))
            case effects.SaveFork(fork):
                self._duties.spawn(self._save_fork(fork))
            case effects.SaveProof(fork):
                self._duties.spawn(self._store.save_proof(fork))
            case effects.CutStreams(ends):
                self._duties.spawn(self._cut_streams(ends))
            case effects.CutOff(node_id, farewell):
                # What it sends is heard no more already; one that was only lost may still hear why.
                asyncio.get_running_loop().call_later(FAREWELL_S if farewell else 0.0, self.cut_off, node_id)
            case effects.RetireFacts(ranges):
                self._duties.spawn(self._store.retire(ranges))
            case effects.Dial(host, port, expected):
                self.links.dial(host, port, expected, lambda node, refused: self._dial_ended(host, port, node, refused))
            case effects.Deliver(peer, message):
                self._listener.delivered(peer, message)
            case effects.MemberChanged(node_id, state):
                self._listener.member_changed(node_id, state)
            case effects.LeaderChanged(token):
                self._listener.leader_changed(token)
            case effects.FactsApplied(facts):
                self._listener.facts_applied(facts)
            case effects.Log(level, text):
                log(level, text)
            case _:
                self._listener.carry_out(effect)

    async def _persist(self, facts: tuple[Fact, ...], source: NodeId | None, retired: tuple[Retired, ...]) -> None:
        try:
            await self._store.append(facts, retired)
        except KithError as error:
            for fact in facts:
                self._said(fact, error)
            raise
        self.post(events.Persisted(facts, source, retired))
        for fact in facts:
            self._said(fact)

    def _said(self, fact: Fact, error: KithError | None = None) -> None:
        """Whoever says it hears that it is durable, or why it is not."""
        future = self._authoring.pop(fact.hash, None)
        if future is None or future.done():  # not of this node, or nobody waits any more
            return
        if error is None:
            future.set_result(fact)
        else:
            future.set_exception(error)

    async def _save_vote(self, term: int, voted_for: str, then: tuple[effects.Effect, ...]) -> None:
        await self._store.save_vote(term, voted_for)
        for effect in then:
            self._carry_out(effect)
        self.post(events.VoteSaved(term, voted_for))

    async def _push_stored(self, peer: NodeId) -> None:
        """What it lacks; of what it asked for meanwhile the last, for the rest comes with the next exchange."""
        try:
            while ranges := self._pushing[peer]:
                self._pushing[peer] = ()
                # Nobody would take the others: of a journal that was written before the node belonged to a mesh.
                ranges = tuple(wanted for wanted in ranges if self.authors.knows(wanted.stream_id.author))
                if facts := await self._store.read_ranges(ranges):
                    self._introduce(peer, {wanted.stream_id.author for wanted in ranges})
                    message = mesh_pb2.LinkMessage(fact_push=facts_pb2.FactPush(facts=facts))
                    self.links.send(peer, message)
                    await asyncio.sleep(self._push_pace.charge(peer, clock.now(), message.ByteSize()))
        finally:
            del self._pushing[peer]

    def _send(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        match message.WhichOneof("message"):
            case "fact_push":
                self._introduce(peer, {author_of(signed) for signed in message.fact_push.facts})
            case "fork_proof":
                self._introduce(peer, {author_of(message.fork_proof.one)})
        self.links.send(peer, message)

    def _introduce(self, peer: NodeId, authors: set[NodeId]) -> None:
        """Send the certificates of these authors, once a link, ahead of their facts."""
        told = self.links.told(peer)
        if told is None:
            return
        new = [author for author in sorted(authors - told) if self.authors.knows(author)][:CERTIFICATES_MAX]
        push = facts_pb2.FactPush(certificates=self.authors.certificates_of(new))
        if push.certificates and self.links.send(peer, mesh_pb2.LinkMessage(fact_push=push)):
            told.update(new)

    async def _verified(self, peer: NodeId, push: facts_pb2.FactPush) -> tuple[tuple[Fact, ...], tuple[Retired, ...]]:
        """The facts that count, in a thread; the certificates that came with them are durable by then."""
        facts, retired, new = await asyncio.to_thread(
            verified, peer, push, self.authors, lambda line: self.refused(peer, line)
        )
        if new:
            await self._store.save_certificates(new)
            self.authors.take(new)
        return facts, retired

    async def _compare_stored(self, peer: NodeId, facts: tuple[Fact, ...]) -> None:
        self.post(events.StoredCompared(peer, facts, tuple(await self._store.stored_beside(facts))))

    async def _save_fork(self, fork: Fork) -> None:
        self.post(events.ForkSaved(fork.stream_id, tuple(await self._store.save_fork(fork))))

    async def _cut_streams(self, ends: tuple[tuple[StreamId, Position], ...]) -> None:
        facts = await self._store.cut_streams(ends)
        self.post(events.StreamsCut(tuple(stream_id for stream_id, _ in ends), tuple(facts)))

    def _dial_ended(self, host: str, port: int, answered: NodeId | None, refused: bool) -> None:
        if answered is None:
            self.post(events.DialFailed(host, port, refused))
        else:
            self.post(events.DialSucceeded(host, port, answered))


def is_routine(event: events.Event) -> bool:
    """Whether it is one of those that come while nothing happens."""
    if isinstance(event, events.Received):
        return event.message.WhichOneof("message") in ROUTINE
    return isinstance(event, (events.Ticked, events.DiskMeasured))


def author_of(signed: facts_pb2.SignedFact) -> NodeId:
    """Of a fact that this node holds."""
    if signed.HasField("retired"):
        return NodeId(signed.retired.author_id)
    return node_id_of(facts_pb2.FactBody.FromString(signed.body).author_key)


def verified(
    peer: NodeId, push: facts_pb2.FactPush, authors: Authors, say: Say = warn
) -> tuple[tuple[Fact, ...], tuple[Retired, ...], list[Identity]]:
    """The well-formed, truly signed facts of a push, up to the first that is not, the retired ranges between them, and
    the certificates that are new. Facts that their author may not author are left out. `say`: where it is told why.

    About 0.1 ms a fact.
    """
    new = authors.read(push.certificates[:CERTIFICATES_MAX], say)
    facts: list[Fact] = []
    retired: list[Retired] = []
    for signed in push.facts:
        try:
            if signed.HasField("retired"):
                gone = parse_retired(signed.retired)
                if authors.knows(gone.stream_id.author, new):
                    retired.append(gone)
                continue
            fact = parse(signed)
        except FactError as error:
            say(f"{peer} pushed what is no fact: {error}")
            break
        if not authors.accepts(fact, new, say):
            continue
        if not fact.is_signed_by_author():
            say(f"{peer} pushed a fact of {fact.author} with a false signature")
            break
        if not is_genuine(fact, authors.verify_denial):
            say(f"{peer} pushed a denial by {fact.author} that the mesh's CA did not sign")
            break
        facts.append(fact)
    return tuple(facts), tuple(retired), new
