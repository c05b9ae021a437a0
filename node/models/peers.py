"""A model file from another node: asked for by name or hash, resumed from any holder, checked before it counts.

Idea: what a file is, its holder says first; from then on only the hash counts, so the transfer goes on at the same
offset with another holder when one goes away. The bytes are written to the part of that hash in the store, which a
later pull finds again. Hash and header are checked once all is there, in a thread.

Does not: look for models that no live node holds, or believe what a peer says of a file beyond its bytes.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

import grpc.aio

from mesh.identity import NodeId
from mesh.wire import mesh_pb2, mesh_pb2_grpc
from node.errors import ExitCode, KithError
from node.logs import log
from node.models.store import Entry, ModelStore, Origin, check_name, told_of_disk
from node.rpc import to_kith_error

#: A transfer that brings nothing for so long is given up, and another holder is asked.
SILENT_MAX_S = 20.0
#: One call; a longer transfer goes on with the next. Callers end calls after an hour.
CALL_WITHIN_S = 3000.0
#: Rounds over all holders that bring nothing new, before it is given up.
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
        said, peer = await self._described(holders, mesh_pb2.FetchModelRequest(sha256=sha256, name=model))
        digits, size = said.sha256.hex(), said.size_bytes
        name = check_name(name or said.name)
        if (there := await asyncio.to_thread(store.occupied, name, digits)) is not None:
            return there, True
        others = [other for other in holders if other != peer]
        with store.part(digits, size) as file:
            peer = await self._bytes([peer, *others], said.sha256, size, file, progress)
            # What the holder says of the source: the hash ties it to the bytes, nothing ties it to the truth.
            source = f"peer:{peer}" + (f" ({said.source[:TOLD_TEXT_MAX]})" if said.source else "")
            origin = Origin(source, said.revision[:TOLD_TEXT_MAX], said.licence[:TOLD_TEXT_MAX])
            return await asyncio.to_thread(store.finish, store.part_path(digits), name, digits, origin), False

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
                async with asyncio.timeout(SILENT_MAX_S):
                    first = await call.read()
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                last = _told(error, peer)
                continue
            finally:
                call.cancel()
            said = first.model if isinstance(first, mesh_pb2.BlobChunk) else mesh_pb2.ModelFile()
            right = not wanted.sha256 or said.sha256 == wanted.sha256
            if right and len(said.sha256) == 32 and 0 < said.size_bytes <= SIZE_MAX:
                return said, peer
        if last is not None and last.code != "model-unknown":
            raise last
        what = wanted.name or wanted.sha256.hex()[:12]
        remedy = "kith nodes shows who serves what; a node also gives what is in its store."
        raise KithError("model-unknown", f"no node that was asked holds the model {what}", remedy, ExitCode.NOT_FOUND)

    async def _bytes(
        self, holders: Sequence[NodeId], sha256: bytes, size: int, file: IO[bytes], progress: Progress
    ) -> NodeId:
        """Until the part is as long as the file; who gave the last of it."""
        vain = 0
        while True:
            before = file.tell()
            for peer in holders:
                if file.tell() < size:
                    await self._from(peer, sha256, size, file, progress)
                if file.tell() == size:
                    return peer
            vain = vain + 1 if file.tell() == before else 0
            if vain >= VAIN_ROUNDS_MAX:
                done = f"{before / 1e6:.0f} of {size / 1e6:.0f} MB came"
                message = f"no node gives the rest of the model: {done}"
                raise KithError("model-interrupted", message, "Pull again: it goes on there.", ExitCode.UNAVAILABLE)
            await asyncio.sleep(AGAIN_AFTER_S)

    async def _from(self, peer: NodeId, sha256: bytes, size: int, file: IO[bytes], progress: Progress) -> None:
        """What one holder gives, written behind what is there."""
        stub = self._stub_of(peer)
        if stub is None:
            return
        done, pending = file.tell(), bytearray()
        progress(Step(done, size, peer))
        request = mesh_pb2.FetchModelRequest(sha256=sha256, offset_bytes=done)
        call = stub.FetchModel(request, timeout=CALL_WITHIN_S)
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(SILENT_MAX_S) as silence:
                async for chunk in call:
                    pending += chunk.data
                    if done + len(pending) > size:
                        log("warning", f"{peer} sends more than the model has: it is not listened to")
                        pending.clear()
                        return
                    if len(pending) >= WRITE_BYTES:
                        await self._write(file, pending)
                        done = file.tell()
                        progress(Step(done, size, peer))
                    silence.reschedule(now() + SILENT_MAX_S)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            log("warning", f"a model from {peer}: {_told(error, peer).message}; at {done / 1e6:.0f} MB")
        finally:
            call.cancel()
            if pending:
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


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)
    file.flush()


def _told(error: BaseException, peer: NodeId) -> KithError:
    if isinstance(error, grpc.aio.AioRpcError):
        gone = KithError("node-unreachable", f"node {peer[:12]} does not answer", "", ExitCode.UNAVAILABLE)
        return to_kith_error(error, lambda: gone)
    message = f"node {peer[:12]} sent nothing for {SILENT_MAX_S:.0f} s"
    return KithError("node-unreachable", message, "Try again.", ExitCode.UNAVAILABLE)
