"""Tests of the parts of node/callers.py that limit: a real port, a real member, and more calls than its part.

Who may call at all is in tests/security.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.rate import Rate
from mesh.wire import engine_pb2, mesh_pb2, mesh_pb2_grpc
from node import callers as callers_module
from node.callers import AHEAD_MAX, Callers, Patience, caller_of
from node.credentials import Credentials
from node.grpc_options import GRPC_OPTIONS, PORT_OPTIONS
from node.limits import LINKS_OF_ONE_MAX
from node.refused import Refused
from node.rpc import problem_of
from scripts.throwaway import ThrowawayMesh
from tests.node.calling import Port


class Service(mesh_pb2_grpc.MeshServicer):  # the rest is not called here
    __abstractmethods__: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.asked_by: list[str] = []
        self.links = 0
        self.places = 0

    async def CountTokens(self, request: Any, context: Any) -> engine_pb2.CountTokensReply:
        self.asked_by.append(caller_of(context).node_id)
        return engine_pb2.CountTokensReply()

    async def FetchModel(self, request: Any, context: Any) -> AsyncIterator[mesh_pb2.BlobChunk]:
        self.places += 1
        try:
            for _ in range(request.offset_bytes):
                yield mesh_pb2.BlobChunk(data=bytes(1 << 20))
        finally:
            self.places -= 1

    async def Link(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        self.links += 1
        await context.write(mesh_pb2.LinkMessage())
        async for _ in request_iterator:
            pass


class Scene:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mesh = ThrowawayMesh()
        self.server_side = Credentials(self._mesh.enrol(folder / "server"))
        self.service = Service()  # type: ignore[abstract]
        self.said: list[str] = []
        self.port = 0

    @asynccontextmanager
    async def serving(self, calls: Rate, refusals: Rate | None = None) -> AsyncIterator[None]:
        callers = Callers(
            lambda: self.server_side.roots,
            lambda _: False,
            Refused(lambda _, text: self.said.append(text)),
            calls=calls,
            refusals=refusals,
        )
        server = grpc.aio.server(options=PORT_OPTIONS, interceptors=[callers])
        mesh_pb2_grpc.add_MeshServicer_to_server(self.service, server)
        self.port = server.add_secure_port("127.0.0.1:0", self.server_side.server())
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)

    @asynccontextmanager
    async def member(self, name: str) -> "AsyncIterator[mesh_pb2_grpc.MeshAsyncStub]":
        credentials = Credentials(await asyncio.to_thread(self._mesh.enrol, self._folder / name))
        channel = credentials.channel("127.0.0.1", self.port, self.server_side.identity, GRPC_OPTIONS)
        async with channel:
            yield mesh_pb2_grpc.MeshStub(channel)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


async def outcome(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        problem = problem_of(error)
        assert problem is not None
        assert problem.retry_after_s > 0
        assert problem.remedy
        return error.code().name
    return "OK"


async def test_calls_beyond_a_members_part_are_refused_with_a_time_and_cost_others_nothing(scene: Scene) -> None:
    request = engine_pb2.CountTokensRequest()
    async with scene.serving(Rate(0.5, 5)), scene.member("flood") as flood, scene.member("other") as other:
        outcomes = await asyncio.gather(*(outcome(flood.CountTokens(request, timeout=10)) for _ in range(20)))
        assert outcomes.count("OK") == 5
        assert outcomes.count("RESOURCE_EXHAUSTED") == 15
        assert await outcome(other.CountTokens(request, timeout=10)) == "OK"
    assert len(set(scene.service.asked_by)) == 2
    assert sum("too often" in text for text in scene.said) == 1, "logged once, the others counted"


async def test_refusals_are_not_hurried_where_there_are_many(scene: Scene) -> None:
    request = engine_pb2.CountTokensRequest()
    async with scene.serving(Rate(0.01, 1), Rate(10, 1)), scene.member("flood") as flood:
        assert await outcome(flood.CountTokens(request, timeout=10)) == "OK"
        began = asyncio.get_running_loop().time()
        outcomes = await asyncio.gather(*(outcome(flood.CountTokens(request, timeout=10)) for _ in range(6)))
        assert set(outcomes) == {"RESOURCE_EXHAUSTED"}
        assert asyncio.get_running_loop().time() - began >= 0.45


async def test_a_members_links_are_few_and_take_nothing_of_its_calls(scene: Scene) -> None:
    async with scene.serving(Rate(0.01, 1)), scene.member("a") as a:
        links = [a.Link() for _ in range(LINKS_OF_ONE_MAX)]
        for link in links:
            assert isinstance(await link.read(), mesh_pb2.LinkMessage)
        assert await outcome(a.Link().read()) == "RESOURCE_EXHAUSTED"
        assert await outcome(a.CountTokens(engine_pb2.CountTokensRequest(), timeout=10)) == "OK"
        for link in links:
            link.cancel()
    assert scene.service.links == LINKS_OF_ONE_MAX


async def rest_of(call: Any) -> None:
    async with asyncio.timeout(10):
        while await call.read():
            pass


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # any state may be asked for
            await asyncio.sleep(0.01)


@given(st.floats(0.1, 20.0), st.lists(st.integers(1, AHEAD_MAX), max_size=20), st.integers(0, 50))
def test_a_steady_reader_keeps_its_place_however_it_is_told_of_and_a_silent_one_does_not(
    within_s: float, bursts: list[int], at_once: int
) -> None:
    """Bursts of so many messages, each as late as its messages together may be; first what the window holds."""
    patience = Patience(within_s)
    for _ in range(AHEAD_MAX + at_once):
        patience.taken(0.0)
    for burst in bursts:
        silent_s = burst * within_s * 0.999
        assert silent_s < patience.left_s
        patience.taken(silent_s)
        for _ in range(burst - 1):
            patience.taken(0.0)
        assert within_s <= patience.left_s <= (AHEAD_MAX + 1) * within_s
    silent = 0
    while patience.left_s > within_s * 1.001:  # at half the pace it uses up what it was ahead
        patience.taken(min(2 * within_s, patience.left_s))
        silent += 1
    assert silent <= AHEAD_MAX + 1


async def test_who_takes_nothing_of_an_answer_loses_its_place_and_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(callers_module.TAKEN_WITHIN_S, "FetchModel", 0.3)
    monkeypatch.setattr(callers_module, "AHEAD_MAX", 0)  # what the window takes buys no time: here it ends in 0.3 s
    request = mesh_pb2.FetchModelRequest(offset_bytes=200)
    async with scene.serving(Rate(100, 100)), scene.member("slow") as slow, scene.member("quick") as quick:
        idle = slow.FetchModel(request, timeout=30)
        await idle.read()
        assert scene.service.places == 1
        await until(lambda: scene.service.places == 0)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await rest_of(idle)
        problem = problem_of(ended.value)
        assert problem is not None
        assert problem.code == "too-slow"
        assert "nothing of it was taken" in problem.message
        for _ in range(int(callers_module.SLOW_ENDS_BURST)):  # what they wrote is in memory for as long as they like
            idle = slow.FetchModel(request, timeout=30)
            await idle.read()
            await until(lambda: scene.service.places == 0)
        assert await outcome(slow.FetchModel(request, timeout=10).read()) == "RESOURCE_EXHAUSTED"
        assert await outcome(slow.CountTokens(engine_pb2.CountTokensRequest(), timeout=10)) == "OK"
        # One that takes its time, and takes something, keeps its place. HTTP/2 tells of what it took several messages
        # at a time; what is over between these is for the tests of `Patience`. The bound is for a busy machine.
        monkeypatch.setattr(callers_module, "AHEAD_MAX", AHEAD_MAX)
        monkeypatch.setitem(callers_module.TAKEN_WITHIN_S, "FetchModel", 2.0)
        steady = quick.FetchModel(mesh_pb2.FetchModelRequest(offset_bytes=12), timeout=60)
        chunks = 0
        async for _ in steady:
            chunks += 1
            await asyncio.sleep(0.25)
        assert chunks == 12
    assert scene.service.places == 0


@pytest.mark.parametrize("by", ["the caller", "the server"])
async def test_a_call_that_ends_in_the_midst_of_a_write_leaves_no_fault_that_nobody_hears(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Such are told in the node's log, as errors."""
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: unheard.append(what))
    monkeypatch.setitem(callers_module.TAKEN_WITHIN_S, "FetchModel", 60.0)
    async with scene.serving(Rate(100, 100)), scene.member("a") as member:
        call = member.FetchModel(mesh_pb2.FetchModelRequest(offset_bytes=200), timeout=60)
        await call.read()
        await until(lambda: scene.service.places == 1)
        if by == "the caller":
            call.cancel()
            await until(lambda: scene.service.places == 0)
    await until(lambda: scene.service.places == 0)
    for _ in range(3):
        gc.collect()
        await asyncio.sleep(0)
    assert not unheard


class Faulty(Service):
    """Fails inside, with a text that is nobody's to read."""

    __abstractmethods__: frozenset[str] = frozenset()

    async def CountTokens(self, request: Any, context: Any) -> engine_pb2.CountTokensReply:
        raise TimeoutError("a secret") if request.texts else ValueError("a secret")

    async def FetchModel(self, request: Any, context: Any) -> AsyncIterator[mesh_pb2.BlobChunk]:
        yield mesh_pb2.BlobChunk(data=b"begun")
        raise ValueError("a secret")

    async def Link(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        async for _ in request_iterator:
            raise ValueError("a secret")


async def end_of(call: Any) -> grpc.aio.AioRpcError:
    end = rest_of(call) if hasattr(call, "read") else call
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await end
    return ended.value


async def test_a_fault_inside_is_told_in_general_and_logged_by_kind_and_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        port = Port(tmp_path, stack)
        await port.serve(Faulty())  # type: ignore[abstract]
        member = await port.member("member")
        link = member.Link(timeout=30)
        await link.write(mesh_pb2.LinkMessage())
        calls = {
            "CountTokens": member.CountTokens(engine_pb2.CountTokensRequest(), timeout=30),
            "CountTokens out of time": member.CountTokens(engine_pb2.CountTokensRequest(texts=["x"]), timeout=30),
            "FetchModel": member.FetchModel(mesh_pb2.FetchModelRequest(), timeout=30),
            "Link": link,
        }
        for rpc, call in calls.items():
            error = await end_of(call)
            assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, callers_module.FAULT), rpc
            assert "secret" not in str(error)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    for rpc, kind in [("CountTokens", "ValueError"), ("CountTokens", "TimeoutError"), ("Link", "ValueError")]:
        assert any(f"{rpc} of {port.ids['member']} failed inside: {kind} at test_callers.py:" in line for line in lines)
    assert not any("secret" in line for line in lines)
    assert "secret" not in caplog.text


async def test_what_is_no_message_is_read_of_nobody_who_may_not_call_and_told_without_a_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        port = Port(tmp_path, stack)
        await port.serve(Faulty())  # type: ignore[abstract]
        channel = await port.channel("member")
        unary: Any = channel.unary_unary("/kith.mesh.v1.Mesh/CountTokens")
        stream: Any = channel.unary_stream("/kith.mesh.v1.Mesh/FetchModel")
        link: Any = channel.stream_stream("/kith.mesh.v1.Mesh/Link")
        for call in (unary(b"\xff" * 99), stream(b"\xff" * 99), link(iter([b"\xff" * 99]))):
            error = await end_of(call)
            assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, callers_module.UNREADABLE)
        assert sum("can not be read" in line for line in port.said) == 3
        port.denied.add(port.ids["member"])
        for call in (unary(b"\xff" * 99), stream(b"\xff" * 99)):
            assert (await end_of(call)).code() is grpc.StatusCode.PERMISSION_DENIED
    assert "Error parsing" not in caplog.text


async def test_a_request_that_never_comes_holds_a_place_of_its_own_caller_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sends the beginning of megabytes, and waits, held them before anybody had asked who it is."""
    monkeypatch.setattr(callers_module, "REQUEST_WITHIN_S", 0.3)
    async with AsyncExitStack() as stack:
        port = Port(tmp_path, stack)
        await port.serve(Faulty())  # type: ignore[abstract]
        channel = await port.channel("member")
        for rpc in ("CountTokens", "FetchModel"):
            call: Any = channel.stream_stream(f"/kith.mesh.v1.Mesh/{rpc}")(timeout=60)
            error = await end_of(call)
            assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, callers_module.UNREADABLE)
        port.denied.add(port.ids["member"])
        monkeypatch.setattr(callers_module, "REQUEST_WITHIN_S", 60.0)
        silent: Any = channel.stream_stream("/kith.mesh.v1.Mesh/CountTokens")(timeout=60)
        assert (await end_of(silent)).code() is grpc.StatusCode.PERMISSION_DENIED, "before it says anything"
