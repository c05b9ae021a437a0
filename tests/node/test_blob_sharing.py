"""Blobs to other nodes over a real port: how much of them is in memory for whoever takes them slowly."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest

from mesh.rate import Rate
from mesh.wire import mesh_pb2
from node.blob_sharing import BlobSharing
from node.mesh_service import MeshService
from node.rpc import problem_of
from node.store import Store
from tests.node.calling import Port
from tests.node.working import KEY, no_fatal

MIB = 1 << 20
SIZE = 3 * MIB  # fits in no window of calling.py, so a call that is not read stays open
ENOUGH = Rate(1e12, 1e12)


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


def asked(number: int, offset_bytes: int = 0) -> mesh_pb2.FetchBlobRequest:
    return mesh_pb2.FetchBlobRequest(sha256=hashlib.sha256(content(number)).digest(), offset_bytes=offset_bytes)


class Scene:
    """A node that holds blobs, and members that fetch them."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self._port, self._stack = Port(folder, stack), stack
        self.store = Store(folder / "journal", no_fatal)
        self.member = self._port.member

    async def serve(self, of_one: int, in_all: int, pace: Rate = ENOUGH, blobs: int = 4) -> None:
        self.store.open(KEY.node_id)
        self._stack.push_async_callback(self.store.close)
        for number in range(blobs):
            await self.store.put_blob(content(number))
        unused = cast(Any, None)
        await self._port.serve(MeshService(unused, unused, BlobSharing(self.store, of_one, in_all, pace), unused))


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        yield Scene(tmp_path, stack)


async def begun(call: Any) -> Any:
    """A call that is under way, and will not be read."""
    head = await call.read()
    assert head.size_bytes == SIZE
    return call


async def refusal(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    problem = problem_of(caught.value)
    assert problem is not None
    assert problem.retry_after_s > 0
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return problem.code


async def rest_of(call: Any) -> bytes:
    chunks = []
    while isinstance(chunk := await call.read(), mesh_pb2.BlobChunk):
        chunks.append(chunk.data)
    return b"".join(chunks)


async def test_who_begins_to_fetch_all_and_takes_nothing_holds_its_part_and_others_have_theirs(scene: Scene) -> None:
    await scene.serve(of_one=2 * SIZE, in_all=3 * SIZE)
    slow, other = await scene.member("slow"), await scene.member("other")
    idle = [await begun(slow.FetchBlob(asked(number))) for number in (0, 1)]
    assert await refusal(slow.FetchBlob(asked(2))) == "too-many-requests"
    idle.append(await begun(slow.FetchBlob(asked(1))))  # in memory already, so it costs nothing
    assert await rest_of(other.FetchBlob(asked(2))) == content(2)
    idle.append(await begun(other.FetchBlob(asked(3))))
    assert await refusal(other.FetchBlob(asked(2))) == "too-many-requests", "with 0, 1 and 3 the memory is full"
    assert await rest_of(idle[1]) == await rest_of(idle[2]) == content(1)
    assert await rest_of(slow.FetchBlob(asked(2))) == content(2), "there is room again"
    for call in idle:
        call.cancel()


async def test_who_asks_and_goes_away_again_and_again_reads_no_more_than_its_part_of_the_disk(scene: Scene) -> None:
    await scene.serve(of_one=4 * SIZE, in_all=4 * SIZE, pace=Rate(1.0, 2 * SIZE))
    flood, other = await scene.member("flood"), await scene.member("other")
    for number in (0, 1):
        (await begun(flood.FetchBlob(asked(number)))).cancel()
    assert await refusal(flood.FetchBlob(asked(2))) == "too-many-requests"
    assert await rest_of(other.FetchBlob(asked(2))) == content(2)


async def test_who_sends_one_blob_to_many_at_once_reads_it_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 readers of a document of 16 MiB would be a gigabyte."""
    await scene.serve(of_one=SIZE, in_all=SIZE, blobs=1)
    read, reads = scene.store.get_blob, 0

    async def counted(sha256: bytes) -> bytes | None:
        nonlocal reads
        reads += 1
        return await read(sha256)

    monkeypatch.setattr(scene.store, "get_blob", counted)
    member = await scene.member("member")
    calls = [await begun(member.FetchBlob(asked(0))) for _ in range(8)]
    assert reads == 1
    assert [await rest_of(call) for call in calls] == [content(0)] * 8
    assert await rest_of(member.FetchBlob(asked(0))) == content(0)
    assert reads == 2, "it is not kept"


async def test_it_is_sent_from_where_the_asker_wants_it(scene: Scene) -> None:
    await scene.serve(of_one=SIZE, in_all=SIZE, blobs=1)
    member = await scene.member("member")
    for offset in (0, 1, MIB, SIZE, SIZE + 1, (1 << 64) - 1):
        assert await rest_of(member.FetchBlob(asked(0, offset))) == content(0)[offset:]
