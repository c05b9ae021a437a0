"""A model file from another node: asked for by name or hash, resumed from any holder, checked before it counts.

Idea: what a file is, its holder says first; from then on only the hash counts, so the transfer goes on at the same
offset with another holder when one goes away, or gives next to nothing. The bytes are written to the part of that hash
in the store, which a later pull finds again. Hash and header are checked once all is there, in a thread.

A holder may lie: about the size, or with its bytes. Only the hash of the whole tells, so where that is wrong nothing is
kept, and each holder in turn has to give all of it alone: who then gives a wrong whole has lied for sure, and is asked
no more in this pull. So `n` liars cost `n + 1` transfers in vain at most, and one honest holder suffices.

Does not: look for models that no live node holds, or believe what a peer says of a file beyond its bytes.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

import grpc.aio

from mesh.identity import NodeId
from mesh.wire import mesh_pb2, mesh_pb2_grpc
from node.detached import detached
from node.errors import ExitCode, KithError
from node.logs import log
from node.models.store import Entry, FalseContentError, ModelStore, Origin, check_name, told_of_disk
from node.rpc import calling

#: A transfer that brings less than `PACE_BYTES_MIN` in so long is given up, and another holder is asked. It is a chunk
#: as nodes send them (sharing.py), 52 kB/s; a node cuts readers at the same pace (callers.py).
SILENT_MAX_S = 20.0
PACE_BYTES_MIN = 1 << 20
#: One call; a longer transfer goes on with the next. Callers end calls after an hour.
CALL_WITHIN_S = 3000.0
#: Rounds over all holders that bring next to nothing, before it is given up.
VAIN_ROUNDS_MAX = 3
AGAIN_AFTER_S = 2.0
#: No model file is larger.
SIZE_MAX = 1 << 42
TOLD_TEXT_MAX = 200
WRITE_BYTES = 8 << 20

StubOf = Callable[[NodeId], "mesh_pb2_grpc.MeshAsyncStub | None"]


@dataclass(frozen=True)
class Step:
    """How far it is, and who gives it now."""

    done_bytes: int
    size_bytes: int
    peer: NodeId


Progress = Callable[[Step], None]


class _Holders:
    """Whom to ask in one pull: who disappointed comes after the others, and a liar not at all."""

    def __init__(self, peers: Sequence[NodeId]) -> None:
        self._peers = list(dict.fromkeys(peers))
        self._faults: Counter[NodeId] = Counter()
        self._out: set[NodeId] = set()

    def in_order(self) -> list[NodeId]:
        return sorted((peer for peer in self._peers if peer not in self._out), key=lambda peer: self._faults[peer])

    def fault(self, peer: NodeId) -> None:
        self._faults[peer] += 1

    def drop(self, *peers: NodeId) -> None:
        self._out.update(peers)


@dataclass
class _Attempt:
    """All holders that say the same of a file give it together; or one alone."""

    sha256: bytes
    size: int
    file: IO[bytes]
    holders: list[NodeId]
    gave: set[NodeId] = field(default_factory=set)  # of whom some bytes are
    disagree: set[NodeId] = field(default_factory=set)  # they say something else of the file

    @property
    def missing(self) -> int:
        return self.size - self.file.tell()


class PeerModels:
    """Belongs to one event loop."""

    def __init__(self, stub_of: StubOf, store: Callable[[], ModelStore] = ModelStore) -> None:
        self._stub_of = stub_of
        self._store = store

    async def pull(
        self,
        holders: Sequence[NodeId],
        model: str = "",
        sha256: bytes = b"",
        name: str = "",
        progress: Progress = lambda _step: None,
    ) -> tuple[Entry, bool]:
        """The entry, and whether it was here already. Where it is cancelled, what came is kept.

        Args:
            holders: nodes to ask, the likeliest first.
            model: name of the file or the model there, where `sha256` is not known.
            name: of the file here; empty: as there.

        Raises:
            KithError: `model-unknown`, `model-exists`, `bad-model`, `disk-full`, `busy`, `model-interrupted`.
        """
        if sha256 and len(sha256) != 32:
            raise KithError("bad-request", "a SHA-256 has 32 bytes", "", ExitCode.BAD_INPUT)
        if not model and not sha256:
            raise KithError("bad-request", "neither a name nor a hash of the model is given", "", ExitCode.BAD_INPUT)
        store = self._store()
        if sha256 and (there := await asyncio.to_thread(store.find_hash, sha256.hex())) is not None:
            return there, True
        wanted = mesh_pb2.FetchModelRequest(sha256=sha256, name=model)
        ask = _Holders(holders)
        said, lead = await self._described(ask.in_order(), wanted)
        wanted = mesh_pb2.FetchModelRequest(sha256=said.sha256)
        digits = said.sha256.hex()
        name = check_name(name or said.name)
        if (there := await asyncio.to_thread(store.occupied, name, digits)) is not None:
            return there, True
        alone, failure = False, None
        postponed: set[NodeId] = set()
        while True:
            try:
                if lead in postponed or alone or not await asyncio.to_thread(_would_cut, store, said):
                    return await self._attempt(store, said, lead, ask, name, progress, alone), False
                postponed.add(lead)
                ask.fault(lead)
            except _FalseError as error:
                if failure is None or failure.code == "model-interrupted":
                    failure = error.reason  # the part that could be gone on with is no more
                if error.liar is not None:
                    log("warning", f"{error.liar} gave false content for the model {digits[:12]}: it is asked no more")
                    ask.drop(error.liar)
                alone = True
            except KithError as error:
                if error.code not in ("disk-full", "model-interrupted"):
                    raise
                failure = failure or error
            try:
                said, lead = await self._described(ask.in_order(), wanted)
            except KithError:
                if failure is not None:
                    raise failure from None
                raise

    async def _attempt(
        self,
        store: ModelStore,
        said: mesh_pb2.ModelFile,
        lead: NodeId,
        ask: _Holders,
        name: str,
        progress: Progress,
        alone: bool,
    ) -> Entry:
        """Raises `_FalseError` where the whole is not what its hash says, and other `KithError`s."""
        digits, size = said.sha256.hex(), said.size_bytes
        holders = [lead] if alone else [lead, *(peer for peer in ask.in_order() if peer != lead)]
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(store.part(digits, size, anew=alone))
            except KithError:
                ask.drop(lead)  # there may be room for what another one says
                raise
            attempt = _Attempt(said.sha256, size, file, holders)
            earlier = file.tell()
            try:
                peer = await self._bytes(attempt, ask, progress)
            except KithError:
                ask.drop(lead, *(set(holders) - attempt.disagree))
                raise
            # What the holder says of the source: the hash ties it to the bytes, nothing ties it to the truth.
            source = f"peer:{peer}" + (f" ({said.source[:TOLD_TEXT_MAX]})" if said.source else "")
            origin = Origin(source, said.revision[:TOLD_TEXT_MAX], said.licence[:TOLD_TEXT_MAX])
            try:
                take = partial(store.finish, store.part_path(digits), name, digits, origin)
                return await detached(take, "check a model")  # it reads gigabytes
            except FalseContentError as error:
                raise _FalseError(error, lead if attempt.gave == {lead} and not earlier else None) from error
            except KithError:
                ask.drop(*holders)  # all came, and can not be kept here: nobody else can help
                raise

    async def _described(
        self, holders: Sequence[NodeId], wanted: mesh_pb2.FetchModelRequest
    ) -> tuple[mesh_pb2.ModelFile, NodeId]:
        """What the first one that has it says of it."""
        last: KithError | None = None
        for peer in holders:
            stub = self._stub_of(peer)
            if stub is None:
                continue
            call = stub.FetchModel(wanted, timeout=CALL_WITHIN_S)
            try:
                async with asyncio.timeout(SILENT_MAX_S), contextlib.aclosing(_chunks(call, peer)) as chunks:
                    first = await anext(chunks, None)
            except (_NotGivenError, TimeoutError) as error:
                last = _told(error, peer)
                continue
            finally:
                call.cancel()
            said = first.model if first is not None else mesh_pb2.ModelFile()
            right = not wanted.sha256 or said.sha256 == wanted.sha256
            if right and len(said.sha256) == 32 and 0 < said.size_bytes <= SIZE_MAX:
                return said, peer
        if last is not None and last.code != "model-unknown":
            raise last
        what = wanted.name or wanted.sha256.hex()[:12]
        remedy = "kith nodes shows who serves what; a node also gives what is in its store."
        raise KithError("model-unknown", f"no node that was asked holds the model {what}", remedy, ExitCode.NOT_FOUND)

    async def _bytes(self, attempt: _Attempt, ask: _Holders, progress: Progress) -> NodeId:
        """Until the part is as long as the file; who gave the last of it."""
        vain, peer = 0, attempt.holders[0]
        while True:
            before = attempt.missing
            for peer in attempt.holders:
                if attempt.missing and peer not in attempt.disagree:
                    await self._from(peer, attempt, progress)
                if not attempt.missing:
                    return peer
                ask.fault(peer)
            vain = vain + 1 if before - attempt.missing < min(before, PACE_BYTES_MIN) else 0
            if vain >= VAIN_ROUNDS_MAX:
                done = f"{(attempt.size - before) / 1e6:.0f} of {attempt.size / 1e6:.0f} MB came"
                message = f"no node gives the rest of the model: {done}"
                raise KithError("model-interrupted", message, "Pull again: it goes on there.", ExitCode.UNAVAILABLE)
            attempt.holders.append(attempt.holders.pop(0))  # who was first did not give it all
            await asyncio.sleep(AGAIN_AFTER_S)

    async def _from(self, peer: NodeId, attempt: _Attempt, progress: Progress) -> None:
        """What one holder gives, written behind what is there."""
        stub = self._stub_of(peer)
        if stub is None:
            return
        file, size = attempt.file, attempt.size
        done, pending = file.tell(), bytearray()
        progress(Step(done, size, peer))
        request = mesh_pb2.FetchModelRequest(sha256=attempt.sha256, offset_bytes=done)
        call = stub.FetchModel(request, timeout=CALL_WITHIN_S)
        now = asyncio.get_running_loop().time
        since = 0  # bytes, from when the time last began
        try:
            async with asyncio.timeout(SILENT_MAX_S) as silence, contextlib.aclosing(_chunks(call, peer)) as chunks:
                async for chunk in chunks:
                    if chunk.HasField("model"):
                        if (chunk.model.sha256, chunk.model.size_bytes) != (attempt.sha256, size):
                            log("warning", f"{peer} says another size of a model than others: it is not listened to")
                            attempt.disagree.add(peer)
                            return
                        continue
                    pending += chunk.data
                    if done + len(pending) > size:
                        log("warning", f"{peer} sends more than the model has: it is not listened to")
                        attempt.disagree.add(peer)
                        pending.clear()
                        return
                    since += len(chunk.data)
                    if len(pending) >= WRITE_BYTES:
                        attempt.gave.add(peer)
                        await self._write(file, pending)
                        done = file.tell()
                        progress(Step(done, size, peer))
                    if since >= PACE_BYTES_MIN:
                        since = 0
                        silence.reschedule(now() + SILENT_MAX_S)
        except (_NotGivenError, TimeoutError) as error:
            log("warning", f"a model from {peer}: {_told(error, peer).message}; at {done / 1e6:.0f} MB")
        finally:
            call.cancel()
            if pending:
                attempt.gave.add(peer)
                await self._write(file, pending)
            progress(Step(file.tell(), size, peer))

    async def _write(self, file: IO[bytes], pending: bytearray) -> None:
        """Whoever is cancelled in it leaves a thread that writes on: what it has must not be written once more."""
        data = bytes(pending)
        pending.clear()
        with told_of_disk(self._store().folder):
            writing = asyncio.ensure_future(asyncio.to_thread(_write, file, data))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await writing
                raise


class _FalseError(Exception):
    """What came is not what its hash says. `liar`: who gave all of it."""

    def __init__(self, reason: KithError, liar: NodeId | None) -> None:
        super().__init__(reason.message)
        self.reason = reason
        self.liar = liar


class _NotGivenError(Exception):
    """A holder failed, not this node's disk."""

    def __init__(self, reason: KithError) -> None:
        super().__init__(reason.message)
        self.reason = reason


async def _chunks(
    call: "grpc.aio.UnaryStreamCall[Any, mesh_pb2.BlobChunk]", peer: NodeId
) -> AsyncGenerator[mesh_pb2.BlobChunk, None]:
    """What a holder gives. Raises `_NotGivenError`."""
    gone = KithError("node-unreachable", f"node {peer[:12]} does not answer", "", ExitCode.UNAVAILABLE)
    try:
        with calling(lambda: gone):
            async for chunk in call:
                yield chunk
    except KithError as error:
        raise _NotGivenError(error) from error


def _would_cut(store: ModelStore, said: mesh_pb2.ModelFile) -> bool:
    """Whether more came earlier than the file has, as its holder says: that would be thrown away."""
    try:
        return store.part_path(said.sha256.hex()).stat().st_size > said.size_bytes
    except OSError:
        return False


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)
    file.flush()


def _told(error: _NotGivenError | TimeoutError, peer: NodeId) -> KithError:
    if isinstance(error, _NotGivenError):
        return error.reason
    message = f"node {peer[:12]} sent nothing, or next to nothing, for {SILENT_MAX_S:.0f} s"
    return KithError("node-unreachable", message, "Try again.", ExitCode.UNAVAILABLE)
