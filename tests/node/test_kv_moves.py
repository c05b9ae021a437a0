"""KV goes from the engine that has it to the one that needs it, over gRPC, between equal models only; else it is read.

The engines are stand-ins whose state is the text of its tokens; the real one's is tested where a model is.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc.aio
import pytest

from mesh.identity import NodeId
from mesh.kv_costs import BYTES_PER_S_PRIOR, HALF_LIFE_S, LATENCY_PRIOR_S
from mesh.wire import engine_pb2, facts_pb2, mesh_pb2, mesh_pb2_grpc
from node import clock, kv_moves
from node.engine_door import EngineDoor
from node.errors import KithError
from node.kv_moves import CHUNK_BYTES, MOVES_AT_ONCE, Brought, KvMoves
from node.mesh_service import MeshService

ME, HOLDER = NodeId("a" * 32), NodeId("b" * 32)
SHA = bytes(32)
PROMPT = list(range(1000))
REQUEST = engine_pb2.GenerateRequest(prompt="p")


class StandIn:
    """As much of an engine as moves need. `held`: the tokens whose KV it has."""

    loaded = None

    def __init__(self, held: list[int], bytes_per_token: int = 3000) -> None:
        self.held = held
        self.bytes_per_token = bytes_per_token
        self.imported: list[engine_pb2.ImportKvRequest] = []
        self.refuses: KithError | None = None
        self.can_not_count: KithError | None = None
        self.asked = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def prompt_tokens(self, request: engine_pb2.GenerateRequest) -> list[int]:
        assert request == REQUEST
        if self.can_not_count is not None:
            raise self.can_not_count
        return PROMPT

    async def export_kv(self, request: engine_pb2.ExportKvRequest) -> engine_pb2.ExportKvReply:
        self.asked.set()
        await self.go.wait()
        same = 0
        while same < min(len(self.held), len(request.tokens)) and self.held[same] == request.tokens[same]:
            same += 1
        return engine_pb2.ExportKvReply(tokens=same, state=self.state(same))

    async def import_kv(self, request: engine_pb2.ImportKvRequest) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.imported.append(request)

    def state(self, tokens: int) -> bytes:
        return b"".join(token.to_bytes(2) * (self.bytes_per_token // 2) for token in self.held[:tokens])


def profile(layout: str = "f16", sha: bytes = SHA, *abilities: str, rate: float = 100.0) -> facts_pb2.NodeProfile:
    agent = facts_pb2.AgentProfile(
        agent="default",
        abilities=abilities or ["generate", "kv"],
        kv_layout=layout,
        model_sha256=sha,
        context_tokens=4096,
        parameters=2_250_000,  # 3 kB a token
        prefill_tokens_per_s=rate,
    )
    return facts_pb2.NodeProfile(agents=[agent])


class World:
    def __init__(self, mine: facts_pb2.NodeProfile, theirs: facts_pb2.NodeProfile, held: int) -> None:
        self.theirs = StandIn(PROMPT[:held])
        self.mine = StandIn([])
        self.serving = KvMoves(
            HOLDER, EngineDoor(cast(Any, self.theirs)), lambda _: None, lambda: theirs, lambda _: None
        )
        self.stub: mesh_pb2_grpc.MeshAsyncStub | None = None
        profiles = {HOLDER: theirs}
        self.taking = KvMoves(ME, EngineDoor(cast(Any, self.mine)), lambda _: self.stub, lambda: mine, profiles.get)


@asynccontextmanager
async def world(
    mine: facts_pb2.NodeProfile | None = None, theirs: facts_pb2.NodeProfile | None = None, held: int = 800
) -> AsyncIterator[World]:
    one = World(mine or profile(), theirs or profile(), held)
    server = grpc.aio.server()
    unused = cast(Any, None)
    service = MeshService(unused, unused, unused, unused, kv=one.serving)
    mesh_pb2_grpc.add_MeshServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        one.stub = mesh_pb2_grpc.MeshStub(channel)
        yield one
    await server.stop(None)


async def test_what_the_holder_has_becomes_a_prefix_here() -> None:
    async with world() as one:
        assert (await one.taking.bring(HOLDER, REQUEST, 800)).tokens == 800
        [taken] = one.mine.imported
        assert list(taken.tokens) == PROMPT[:800]
        assert taken.state == one.theirs.state(800)
        assert len(taken.state) > 2 * CHUNK_BYTES, "it came in pieces"


def cost_s(moves: KvMoves, holder: NodeId = HOLDER, taker: NodeId = ME) -> float:
    return moves.move_s(800, profile().agents[0], holder, taker)


def part_that_comes(moves: KvMoves) -> float:
    return moves._costs.of(HOLDER, ME, clock.now()).came


async def test_moving_is_estimated_by_what_it_took() -> None:
    async with world() as one:
        before = cost_s(one.taking)
        took = [(await one.taking.bring(HOLDER, REQUEST, 800)).seconds for _ in range(10)]
        assert min(took) / 2 < cost_s(one.taking) < max(2 * max(took), before)
        for _ in range(10):
            one.mine.refuses = KithError("bad-request", "no room", "")
            failed = await one.taking.bring(HOLDER, REQUEST, 800)
            assert failed.tokens == 0
        assert cost_s(one.taking) > 3 * min(took), "what fails is dear"
        assert cost_s(one.taking, ME, HOLDER) == before, "nobody saw the other direction"


def test_until_it_was_seen_the_size_of_a_token_follows_that_of_the_model() -> None:
    moves = World(profile(), profile(), 0).taking
    small, large = (
        (moves.move_s(1000, facts_pb2.AgentProfile(parameters=parameters), HOLDER, ME) - LATENCY_PRIOR_S)
        * BYTES_PER_S_PRIOR
        for parameters in (135_000_000, 8_000_000_000)
    )
    assert small == pytest.approx(23e6, rel=0.02)
    assert large < 200e6


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (profile("q8_0"), profile()),
        (profile("f16", b"x" * 32), profile()),
        (profile("f16", b""), profile("f16", b"")),
        (profile("f16", SHA, "generate"), profile()),
        (profile(), profile("f16", SHA, "generate")),
    ],
)
async def test_only_equals_exchange(mine: facts_pb2.NodeProfile, theirs: facts_pb2.NodeProfile) -> None:
    async with world(mine, theirs) as one:
        assert (await one.taking.bring(HOLDER, REQUEST, 800)).tokens == 0
        assert not one.mine.imported


async def test_the_holder_checks_for_itself() -> None:
    async with world() as one:
        assert one.stub is not None
        for wrong in (
            mesh_pb2.FetchKvRequest(agent="default", model_sha256=SHA, kv_layout="q8_0", tokens=PROMPT),
            mesh_pb2.FetchKvRequest(agent="default", model_sha256=b"y" * 32, kv_layout="f16", tokens=PROMPT),
            mesh_pb2.FetchKvRequest(agent="other", model_sha256=SHA, kv_layout="f16", tokens=PROMPT),
            mesh_pb2.FetchKvRequest(agent="default", model_sha256=SHA, kv_layout="f16", tokens=range(4097)),
            mesh_pb2.FetchKvRequest(agent="default", model_sha256=SHA, kv_layout="f16", tokens=[7, 7]),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(one.stub.FetchKv(wrong)))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_holder_that_has_nothing_costs_only_the_question() -> None:
    async with world(held=0) as one:
        assert (await one.taking.bring(HOLDER, REQUEST, 800)).tokens == 0
    async with world() as one:
        one.stub = None  # gone
        assert (await one.taking.bring(HOLDER, REQUEST, 800)).tokens == 0


async def test_that_nothing_came_is_logged_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(kv_moves, "log", lambda _level, text: said.append(text))
    async with world(held=0) as one:
        for tokens in (800, 801, 802):
            assert (await one.taking.bring(HOLDER, REQUEST, tokens)).tokens == 0
    assert len(said) == 1


async def test_a_holder_is_not_blamed_where_this_nodes_own_engine_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(kv_moves, "log", lambda _level, text: said.append(text))
    async with world() as one:
        before = cost_s(one.taking)
        one.mine.can_not_count = KithError("engine-gone", "it went away", "")
        assert await one.taking.bring(HOLDER, REQUEST, 800) == Brought(not_now=True)
        assert cost_s(one.taking) == before
    [text] = said
    assert HOLDER not in text
    assert "it went away" in text


async def test_a_slow_holder_is_not_waited_for_longer_than_reading_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(profile(rate=800.0)) as one:
        one.theirs.go.clear()
        began = asyncio.get_running_loop().time()
        brought = await one.taking.bring(HOLDER, REQUEST, 800)
        assert brought.tokens == 0
        assert 0.8 < brought.seconds < asyncio.get_running_loop().time() - began < 5.0
        one.theirs.go.set()
        assert cost_s(one.taking) > 1.0
        assert await one.taking.bring(HOLDER, REQUEST, 800) == Brought(), "reading is thought to be quicker now"
        later = clock.now() + 10 * HALF_LIFE_S
        monkeypatch.setattr(clock, "now", lambda: later)
        assert (await one.taking.bring(HOLDER, REQUEST, 800)).tokens == 800, "and it is asked again after a while"


async def test_a_holder_that_stalls_is_dear_also_where_nobody_waited_for_it_to_the_end() -> None:
    """The answer came from elsewhere meanwhile, or its client went away."""
    async with world() as one:
        one.theirs.go.clear()
        before = cost_s(one.taking)
        bringing = asyncio.create_task(one.taking.bring(HOLDER, REQUEST, 800))
        await one.theirs.asked.wait()
        await asyncio.sleep(4 * before)  # longer than it is thought to take
        bringing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bringing
        assert cost_s(one.taking) > 1.5 * before


async def test_a_holder_that_had_no_time_yet_is_not_blamed() -> None:
    agent = profile(rate=1.0)
    agent.agents[0].parameters = 10**12  # so much to carry that it is thought to take half a minute
    async with world(agent, agent) as one:
        one.theirs.go.clear()
        before = one.taking.move_s(800, agent.agents[0], HOLDER, ME)
        bringing = asyncio.create_task(one.taking.bring(HOLDER, REQUEST, 800))
        await one.theirs.asked.wait()
        bringing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bringing
        assert one.taking.move_s(800, agent.agents[0], HOLDER, ME) == before > 30.0


@pytest.mark.parametrize("held", [0, 10])
async def test_that_another_nodes_belief_was_wrong_makes_no_pair_dear(held: int) -> None:
    """Any member may name a holder for a prompt that it never read, or of which it read the first words."""
    async with world(held=held) as one:
        brought = await one.taking.bring(HOLDER, REQUEST, 800, own_belief=False)
        assert brought.tokens == held
        assert brought.seconds > 0.0
        assert part_that_comes(one.taking) == 1.0
        await one.taking.bring(HOLDER, REQUEST, 800)
        assert part_that_comes(one.taking) < 0.7


async def test_who_lies_is_dear_whoever_named_it() -> None:
    one = World(profile(), profile(), 0)
    one.stub = cast(Any, Liar(mesh_pb2.KvChunk(data=b"xx", tokens=5, size_bytes=1)))
    assert (await one.taking.bring(HOLDER, REQUEST, 800, own_belief=False)).tokens == 0
    assert part_that_comes(one.taking) < 0.7


async def test_a_holder_serves_a_few_at_once() -> None:
    async with world(profile(rate=10.0)) as one:
        assert one.stub is not None
        one.theirs.go.clear()
        request = mesh_pb2.FetchKvRequest(agent="default", model_sha256=SHA, kv_layout="f16", tokens=PROMPT)
        waiting = [asyncio.ensure_future(anext(one.serving.chunks(request))) for _ in range(MOVES_AT_ONCE)]
        await asyncio.sleep(0)
        with pytest.raises(KithError) as caught:
            await anext(one.serving.chunks(request))
        assert caught.value.code == "busy"
        one.theirs.go.set()
        assert [chunk.tokens for chunk in await asyncio.gather(*waiting)] == [800, 800]


class Liar:
    """A holder that says other things than it sends."""

    def __init__(self, *chunks: mesh_pb2.KvChunk) -> None:
        self._chunks = chunks

    def FetchKv(self, _: mesh_pb2.FetchKvRequest, timeout: float) -> "Liar":
        assert timeout > 0
        return self

    async def __aiter__(self) -> AsyncIterator[mesh_pb2.KvChunk]:
        for chunk in self._chunks:
            yield chunk

    def cancel(self) -> None: ...


@pytest.mark.parametrize(
    "liar",
    [
        Liar(mesh_pb2.KvChunk(data=b"x", tokens=1001, size_bytes=1)),
        Liar(mesh_pb2.KvChunk(data=b"x", tokens=5, size_bytes=kv_moves.KV_BYTES_MAX + 1)),
        Liar(mesh_pb2.KvChunk(data=b"xx", tokens=5, size_bytes=1)),
        Liar(mesh_pb2.KvChunk(data=b"x", tokens=5, size_bytes=3), mesh_pb2.KvChunk(data=b"x")),
        Liar(mesh_pb2.KvChunk(data=b"x", tokens=5)),
        Liar(),
    ],
    ids=["tokens", "size", "more", "less", "unsaid", "nothing"],
)
async def test_what_does_not_fit_together_is_not_taken(liar: Liar) -> None:
    one = World(profile(), profile(), 0)
    one.stub = cast(Any, liar)
    assert (await one.taking.bring(HOLDER, REQUEST, 800)).tokens == 0
    assert not one.mine.imported
