"""Fuzzing of everything that reads what others wrote: seeded, so that a crash is a seed and a number.

Idea: each target takes bytes or messages that are nearly right (a true one, mutated) or wholly random, and may answer
or refuse in its own way; any other exception is a crash, and so is a machine whose invariants do not hold afterwards.
The machines get messages of every kind with every field filled from a pool of values that mean something to them: ids
of nodes and jobs that they know, and numbers at the edges.

A decoder's input can be had again from its seed and number; the machines remember, so for them run the whole block.

Not guaranteed: coverage. Nothing here looks at which branches were taken.
"""

import io
import json
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from mesh import effects, events
from mesh.certificates import CertificateError, Role
from mesh.facts import STREAM_OF_KIND, Fact, FactError, make, parse, parse_retired
from mesh.identity import NodeId
from mesh.wire import (
    common_pb2,
    engine_pb2,
    facts_pb2,
    join_pb2,
    local_pb2,
    membership_pb2,
    mesh_pb2,
    work_pb2,
)
from node import gguf
from node.addresses import split_address
from node.api_keys import ApiKeys
from node.cli.settings import load_config
from node.engine import frames
from node.engine.sse import SseError, SseParser
from node.errors import KithError
from node.http.fields import parsed
from node.http.guard import host_of_header
from node.http.tool_reading import Call, ToolReader
from node.joining import codes, exchange
from node.limits import bounded
from node.peers import load_peers
from node.solver_wire import WireError
from node.solver_wire import _parse as solver_message
from scripts.throwaway import ThrowawayMesh
from tests.mesh.building import BY_ID
from tests.mesh.lone import WALL_MS, Lone
from tests.node.engine.gguf_files import sample as gguf_sample
from tests.security.http_bodies import BODIES, READERS, with_odd_values
from tests.security.network_fuzzing import join_door, mdns_packets
from tests.security.odd_input import EDGES, TEXTS, Pool, Rng, mutated, nearly

#: Messages and events that one machine lives through before a fresh one takes its place.
LIFE = 1000


@dataclass
class Outcome:
    inputs: int = 0
    crashes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    name: str
    run: Callable[[Rng], None]
    weight: float = 1
    close: Callable[[], None] = lambda: None


def fuzz(count: int, seed: int, folder: Path, only: str = "") -> Outcome:
    """Run `count` inputs, spread over all targets by their weights. `folder`: for files that decoders read."""
    outcome = Outcome()
    targets = [target for target in targets_in(folder, seed) if not only or target.name == only]
    weights = [target.weight for target in targets]
    chooser = Rng(seed)
    for number in range(count):
        target = chooser.choices(targets, weights)[0]
        try:
            target.run(Rng(f"{seed} {number}"))
        except Exception:
            outcome.crashes.append(f"{target.name}, seed {seed}, input {number}\n{traceback.format_exc()}")
        outcome.inputs += 1
    for target in targets:
        target.close()
    return outcome


# The machines of one node, with peers that say anything


class Besieged(Lone):
    """One live replica, its effects answered at random as an engine, a disk and peers might answer them."""

    def __init__(self, rng: Rng, leads: bool) -> None:
        """`leads`: nobody disputes its lead, so that a leader's parts get their share."""
        super().__init__(peers=4, slots=2)
        self.kinds = [kind for kind in LINK_KINDS if kind not in (*FOR_THE_SHELL, *(DISPUTES if leads else ()))]
        self.rng = rng
        self.pool = Pool()
        self.heads: dict[tuple[NodeId, int], tuple[int, bytes]] = {}
        self.lived = 0
        for peer in self.peers:
            self.profile(peer, slots=2)
        self.profile(self.me, slots=2)
        self._meet()

    def _meet(self) -> None:
        """What the machines know now is what random messages should be about."""
        jobs = list(self.replica.ledger.jobs)[:6]
        facts = [fact.hash for fact in self.stored[-8:]]
        self.pool.ids = (b"", bytes(32), b"x" * 31, *jobs, *facts)
        self.pool.texts = (*TEXTS, self.me, *self.peers, BY_ID[6].node_id, "f" * 32)

    def one(self, rng: Rng) -> None:
        self.rng = rng
        self.lived += 1
        self.now += rng.choices((0.0, 0.01, 0.05, 0.3, 1.5, 20.0), (20, 20, 40, 20, 5, 1))[0]
        peer = rng.choice(self.peers)
        match rng.randrange(10):
            case 0 | 1 | 2 | 3:
                self.answered(events.Received(peer, self._message(rng)))
            case 4 | 5 | 6 | 7:
                if fact := self._fact(rng):
                    self.answered(events.FactsVerified(peer, (fact,), self._retired(rng)))
            case 8:
                if rng.random() < 0.5:
                    self.answered(events.LinkClosed(peer))
                hello = membership_pb2.Hello()
                self.pool.fill(rng, hello)
                hello.node_id, hello.protocol_version = peer, 3
                self.answered(events.LinkOpened(hello, rng.choice(("", "10.0.0.1"))))
            case _:
                self.answered(events.Ticked(WALL_MS + int(1000 * self.now)))
        if self.lived % 50 == 0:
            self._meet()

    def answered(self, event: events.Event, depth: int = 0) -> None:
        """Hand in an event and what the shell would answer to its effects."""
        for effect in self.do(event):
            if depth < 3 and (answer := self._answer(effect)) is not None:
                self.answered(answer, depth + 1)

    def _answer(self, effect: effects.Effect) -> events.Event | None:
        rng = self.rng
        match effect:
            case effects.Send(peer, sent) if sent.HasField("vote_request") and rng.random() < 0.9:
                asked = sent.vote_request
                reply = membership_pb2.VoteReply(term=asked.term, granted=True, pre_vote=asked.pre_vote)
                return events.Received(peer, mesh_pb2.LinkMessage(vote_reply=reply))
            case effects.Send(peer, sent) if sent.HasField("leader_beat"):
                told = membership_pb2.LeaderBeatReply(token=sent.leader_beat.token, highest=sent.leader_beat.token)
                return events.Received(peer, mesh_pb2.LinkMessage(leader_beat_reply=told))
            case effects.FetchBlob(peer, blob):
                return events.BlobStored(blob, peer) if rng.random() < 0.5 else events.BlobNotStored(blob, peer)
            case effects.ReadPlan():
                plan = work_pb2.Plan()
                self.pool.fill(rng, plan)
                return events.PlanRead(effect.ref, plan if rng.random() < 0.9 else None)
            case effects.MakePlan():
                return events.PlanFailed(effect.job_id, common_pb2.Problem(code="bad-document"), rng.random() < 0.5)
            case effects.Allocate():
                waiting = tuple((ready.key, "no") for ready in effect.tasks)
                return events.Allocated(effect.round_number, (), waiting, method="none")
            case effects.Assemble():
                return events.Assembled(effect.job_id, effect.plan_sha256, None, common_pb2.Problem(code="busy"))
            case effects.StartTask():
                failed = facts_pb2.TaskFinished(failure=common_pb2.Problem(code="engine-failed"))
                return events.TaskEnded(effect.key, failed)
            case effects.CompareStored(peer, facts):
                return events.StoredCompared(peer, facts, ())
            case effects.SaveFork(fork):
                return events.ForkSaved(fork.stream_id, ())
            case effects.CutStreams(ends):
                return events.StreamsCut(tuple(stream_id for stream_id, _ in ends), ())
        return None

    def _message(self, rng: Rng) -> mesh_pb2.LinkMessage:
        message = mesh_pb2.LinkMessage()
        kind = rng.choice(self.kinds)
        getattr(message, kind).SetInParent()
        self.pool.fill(rng, getattr(message, kind))
        return message

    def _fact(self, rng: Rng) -> Fact | None:
        """A well-formed fact with content that may be anything, the next of its stream."""
        key = rng.choice(BY_ID[1:6])
        kind = rng.choice([kind for kind in STREAM_OF_KIND if kind != "deny"])
        content = getattr(facts_pb2.FactBody(), kind)
        self.pool.fill(rng, content)
        sequence, head = self.heads.get((key.node_id, STREAM_OF_KIND[kind]), (0, b""))
        odd = rng.random() < 0.05
        if odd:
            sequence, head = rng.choice(((0, b""), (sequence + 1, bytes(32)), (2**63, bytes(32))))
        try:
            fact = make(key, 1, sequence + 1, head if sequence else b"", rng.choice(EDGES), kind, content)
        except FactError:
            return None
        if not odd:
            self.heads[key.node_id, STREAM_OF_KIND[kind]] = (fact.sequence, fact.hash)
        return fact

    def _retired(self, rng: Rng) -> tuple[Any, ...]:
        if rng.random() < 0.95:
            return ()
        wire = facts_pb2.RetiredRange()
        self.pool.fill(rng, wire)
        try:
            return (parse_retired(wire),)
        except FactError:
            return ()


LINK_KINDS = [descriptor.name for descriptor in mesh_pb2.LinkMessage.DESCRIPTOR.oneofs[0].fields]
#: These are read before the machines hear of them.
FOR_THE_SHELL = ("hello", "fact_push", "fork_proof")
DISPUTES = ("leader_beat", "leader_beat_reply", "leader_transfer", "vote_request", "vote_reply")


# The targets


def targets_in(folder: Path, seed: int) -> list[Target]:
    return [*_machines(seed), *_decoders(), *_files(folder), *_texts(), *_network(folder)]


def _network(folder: Path) -> Iterator[Target]:
    packets, door = mdns_packets(), join_door(folder)
    yield Target("mDNS packets", packets.run, 2, packets.close)
    yield Target("join door", door.run, 0.2, door.close)  # a handshake each


def _machines(seed: int) -> Iterator[Target]:
    alive: list[Besieged] = []
    lives = [0]

    def machines(rng: Rng) -> None:
        if not alive or alive[0].lived >= LIFE:
            lives[0] += 1
            alive[:] = [Besieged(Rng(seed), leads=lives[0] % 2 == 0)]
        try:
            alive[0].one(rng)
        except Exception:
            alive.clear()  # what broke once would break at every input after it
            raise

    yield Target("machines", machines, 8)


def _decoders() -> Iterator[Target]:
    mesh = ThrowawayMesh()
    key = BY_ID[0]
    leaf = mesh.certificate(key.public_key, Role.NODE)
    roots = _roots(mesh)
    notes = [
        make(key, 1, 1, b"", 1, "knowledge_added", facts_pb2.KnowledgeAdded(title="t", text="words " * 50)),
        make(key, 1, 1, b"", 1, "node_profile", facts_pb2.NodeProfile(name="n", stores=True)),
        make(key, 1, 1, b"", 1, "job_submitted", facts_pb2.JobSubmitted(job_id=bytes(32), client_key=bytes(16))),
    ]
    signed = [fact.signed.SerializeToString() for fact in notes]

    def facts(rng: Rng) -> None:
        try:
            wire = facts_pb2.SignedFact.FromString(nearly(rng, *signed))
            if rng.random() < 0.7:
                wire.body = nearly(rng, *(fact.signed.body for fact in notes))
            if wire.HasField("retired"):
                parse_retired(wire.retired)
            said = [fact.signed.body for fact in notes]
            assert not parse(wire).is_signed_by_author() or wire.body in said, "a fact that nobody signed"
        except (DecodeError, FactError):
            pass

    def certificates(rng: Rng) -> None:
        data = nearly(rng, leaf, mesh.authority.ca_der)
        try:
            assert roots.read(data).certificate == leaf, "a certificate that nobody issued"
        except CertificateError:
            pass

    def denials(rng: Rng) -> None:
        deny = facts_pb2.Deny()
        Pool().fill(rng, deny)
        assert not roots.verify_denial(deny)

    def join_frames(rng: Rng) -> None:
        inviter = exchange.InviterSide(b"certificate")
        start = join_pb2.JoinStart(version=1, invite="7", element=b"A" + rng.randbytes(32), nonce=bytes(32))
        try:
            data = nearly(rng, exchange.frame(exchange.Kind.START, start.SerializeToString()))
            exchange.length_of(data[:4])
            if len(data) > 4:
                inviter.read_start(exchange.content_of(data[4:], exchange.Kind.START))
        except exchange.ExchangeError:
            pass

    def join_proofs(rng: Rng) -> None:
        joiner = exchange.JoinerSide("7", b"two words", b"certificate")
        joiner.start()
        proof = join_pb2.JoinProof(element=b"B" + rng.randbytes(32), nonce=bytes(32), roots=[mesh.authority.ca_der])
        try:
            joiner.read_proof(nearly(rng, proof.SerializeToString() + bytes(32)))
            raise AssertionError("a proof by somebody who knows nothing")
        except exchange.ExchangeError:
            pass

    generate = engine_pb2.EngineEvent(generate=engine_pb2.GenerateEvent(delta=engine_pb2.GenerateEvent.Delta(text="x")))

    def engine_frames(rng: Rng) -> None:
        try:
            frames.receive_frame(_Socket(nearly(rng, frames.encode(generate))), engine_pb2.EngineEvent)  # type: ignore[arg-type]
        except frames.FrameError:
            pass

    def solver_frames(rng: Rng) -> None:
        try:
            solver_message(nearly(rng, b'{"method": "cvxpy", "placements": [[0, 1]], "bound_s": NaN}'))
        except WireError:
            pass

    def sse(rng: Rng) -> None:
        parser = SseParser()
        try:
            for _ in range(3):
                list(
                    parser.feed(
                        nearly(rng, b'data: {"choices": [{"delta": {"content": "x"}}]}\r\n\r\ndata: [DONE]\n\n')
                    )
                )
        except SseError:
            pass

    def messages(rng: Rng) -> None:
        message = rng.choice((mesh_pb2.LinkMessage, mesh_pb2.GenerateCall, work_pb2.Plan, local_pb2.SubmitPart))()
        Pool().fill(rng, message)
        try:
            type(message).FromString(mutated(rng, message.SerializeToString()))
        except DecodeError:
            pass

    def requests(rng: Rng) -> None:
        request = engine_pb2.GenerateRequest()
        Pool().fill(rng, request)
        try:
            assert bounded(request, rng.choice((0, 1, 4096))).max_tokens <= 8192
        except KithError:
            pass

    yield Target("facts", facts, 4)
    yield Target("certificates", certificates, 2)
    yield Target("denials", denials)
    yield Target("join frames", join_frames, 2)
    yield Target("join proofs", join_proofs)
    yield Target("engine frames", engine_frames, 2)
    yield Target("solver frames", solver_frames)
    yield Target("server-sent events", sse)
    yield Target("messages", messages, 2)
    yield Target("requests", requests, 2)


def _roots(mesh: ThrowawayMesh) -> Any:
    from mesh.certificates import Roots

    return Roots([mesh.authority.ca_der])


class _Socket:
    """A socket that received `data` and was closed."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def recv(self, size: int) -> bytes:
        return self._data.read(size)


def _files(folder: Path) -> Iterator[Target]:
    model = gguf_sample().build()
    settings = b'name = "desk"\nseeds = ["10.0.0.2:7420"]\nslots = 2\nhttp_hosts = ["a.example"]\nengine = "echo"\n'
    peers = json.dumps([{"host": "10.0.0.2", "port": 7420}, {"host": "fe80::1%eth0", "port": 1}]).encode()
    keys = json.dumps({"keys": [{"name": "a", "sha256": "0" * 64, "scopes": ["chat"], "created_ms": 1}]}).encode()
    path = folder / "fuzzed"

    def gguf_headers(rng: Rng) -> None:
        data = nearly(rng, model)
        try:
            header = gguf._header([gguf._Reader(io.BytesIO(data), path, len(data)).read()])
            assert header.tensor_bytes <= max(len(data), 1) * 4096
            gguf.memory_limit_bytes(header, 0, 1, 1)
            gguf.check_memory(header, 0, 1, available_bytes=1 << 30)
        except KithError:
            pass

    def config_files(rng: Rng) -> None:
        path.write_bytes(nearly(rng, settings))
        try:
            load_config(folder, {}, {}, path)
        except KithError:
            pass

    def peers_files(rng: Rng) -> None:
        path.write_bytes(nearly(rng, peers))
        for host, port in load_peers(path):
            assert isinstance(host, str)
            assert isinstance(port, int)

    def key_files(rng: Rng) -> None:
        path.write_bytes(nearly(rng, keys))
        try:
            assert ApiKeys(path).find("") is None
        except KithError:
            pass

    yield Target("GGUF headers", gguf_headers, 4)
    yield Target("settings", config_files, 2)
    yield Target("peers.json", peers_files)
    yield Target("keys.json", key_files)


def _texts() -> Iterator[Target]:
    token = str(codes.Token(bytes(32), "abcdef"[: codes.ID_CHARS].ljust(codes.ID_CHARS, "b"), bytes(16))).encode()

    def http_bodies(rng: Rng) -> None:
        path = rng.choice(sorted(READERS))
        try:
            READERS[path](parsed(nearly(rng, json.dumps(BODIES[path]).encode())))
        except KithError:
            pass

    def http_values(rng: Rng) -> None:
        """JSON that is right, with values of wrong kinds in right places."""
        path = rng.choice(sorted(READERS))
        try:
            READERS[path](parsed(json.dumps(with_odd_values(rng, BODIES[path], ODD_VALUES)).encode()))
        except KithError:
            pass

    def tool_calls(rng: Rng) -> None:
        """What a model may write: no character is lost, unless a call stands for it."""
        call = b'<tool_call>{"name": "f", "arguments": {"a": [1]}}</tool_call>'
        written = nearly(rng, call + b" and " + call, b"[TOOL_CALLS][" + call[11:-12] + b"]", call[11:-12] + b"; {}")
        text = written.decode("utf-8", "replace")
        reader = ToolReader(frozenset({"f"}), forced=rng.random() < 0.2)
        found: list[str | Call] = []
        at = 0
        while at < len(text):
            step = rng.randint(1, 9)
            found += reader.feed(text[at : at + step])
            at += step
        found += reader.finish()
        said = "".join(one for one in found if isinstance(one, str))
        assert len(found) - sum(isinstance(one, str) for one in found) == reader.calls
        assert reader.calls or said == text

    def invite_codes(rng: Rng) -> None:
        text = nearly(rng, b"7-cactus-violin", token).decode("utf-8", rng.choice(("replace", "surrogateescape")))
        try:
            codes.parse(text)
        except KithError:
            pass

    def names(rng: Rng) -> None:
        text = nearly(rng, b"[fe80::1%eth0]:7420", b"example.org:80", b"10.0.0.1:65535").decode("latin-1")
        host_of_header(text)
        split_address(text)

    yield Target("HTTP bodies", http_bodies, 3)
    yield Target("HTTP values", http_values, 3)
    yield Target("tool calls", tool_calls, 2)
    yield Target("invite codes", invite_codes, 2)
    yield Target("names", names)


ODD_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 1e308, 10**30, "", "x", "\ud800", [], {}, [[]], [None], [{}], [1, 2], {"text": 1}),
    *([{"text": None}], [{"type": "image_url"}], ["\udfff"], [{"role": "user"}], [{"role": [], "content": "x"}]),
)


def in_a_folder(count: int, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="kith-fuzz-") as name:
        return fuzz(count, seed, Path(name))
