"""Who is asked for KV, and whether, follows what moves really took: four nodes over mTLS, one of which asks the others.

The engines are stand-ins that write nothing; what they exchange is packed and checked as the real one's is.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc.aio
import pytest

from mesh.identity import NodeId
from mesh.prefixes import blocks_of
from mesh.wire import common_pb2, engine_pb2, facts_pb2, membership_pb2, mesh_pb2_grpc
from node.callers import Callers
from node.credentials import Credentials
from node.engine import kv_state
from node.engine_door import EngineDoor
from node.grpc_options import GRPC_OPTIONS, PORT_OPTIONS
from node.kv_moves import MOVES_AT_ONCE, KvMoves
from node.mesh_service import MeshService
from node.refused import Refused
from node.route import Route
from node.router import Router
from scripts.throwaway import ThrowawayMesh
from tests.node.engine.test_kv_state import native

Event = engine_pb2.GenerateEvent
TOKENS = 1600
TEXT = "It is a long text. " * 300
NAME = "a" * 64
LAYOUT = kv_state.layout_of(native([0], transposed=False))


def packed(tokens: list[int], name: str = NAME) -> bytes:
    return kv_state.pack(native(list(range(len(tokens))), transposed=False), LAYOUT, name, tokens)


class Engine:
    """As much of an engine as is asked here. `packs`: what it gives for the KV of tokens."""

    loaded = None

    def __init__(self) -> None:
        self.packs: Callable[[list[int]], bytes] = packed
        self.hangs: asyncio.Event | None = None
        self.delay_s = 0.0
        self.exports = 0
        self.holds: list[int] = []

    async def prompt_tokens(self, request: engine_pb2.GenerateRequest) -> list[int]:
        return [int(request.prompt.partition(":")[0])] * TOKENS

    async def export_kv(self, request: engine_pb2.ExportKvRequest) -> engine_pb2.ExportKvReply:
        self.exports += 1
        await asyncio.sleep(self.delay_s)  # it is a slow one
        if self.hangs is not None:
            await self.hangs.wait()
        return engine_pb2.ExportKvReply(tokens=len(request.tokens), state=self.packs(list(request.tokens)))

    async def import_kv(self, request: engine_pb2.ImportKvRequest) -> None:
        tokens = list(request.tokens)
        kv_state.unpack(request.state, LAYOUT, NAME, tokens, 1)
        self.holds = tokens

    async def generate(self, request: engine_pb2.GenerateRequest) -> AsyncGenerator[Event, None]:
        prompt = await self.prompt_tokens(request)
        cached = len(prompt) if prompt == self.holds else 0
        yield Event(started=Event.Started(prompt_tokens=len(prompt), cached_tokens=cached))
        yield Event(delta=Event.Delta(text="yes", tokens=1, token_ids=[1]))
        yield Event(finished=Event.Finished(reason="stop", usage=common_pb2.Usage(completion_tokens=1)))


class Node:
    def __init__(self, folder: Path, mesh: ThrowawayMesh) -> None:
        self.credentials = Credentials(mesh.enrol(folder))
        self.id: NodeId = self.credentials.identity.node_id
        self.engine = Engine()
        self.door = EngineDoor(cast(Any, self.engine))
        self.profile = facts_pb2.NodeProfile(name=folder.name)
        self.stubs: dict[NodeId, mesh_pb2_grpc.MeshAsyncStub] = {}
        self.profiles: dict[NodeId, facts_pb2.NodeProfile] = {}
        self.kv = KvMoves(self.id, self.door, self.stubs.get, lambda: self.profile, self.profiles.get)


class World:
    """`asked` has no model; `taker` reads so many tokens a second; all believe that the holders have read it all."""

    def __init__(self, folder: Path) -> None:
        mesh = ThrowawayMesh()
        self.asked, self.taker, *self.holders = (Node(folder / name, mesh) for name in ("asked", "taker", "one", "two"))
        self.nodes = [self.asked, self.taker, *self.holders]
        self.number = 0
        for node in self.nodes[1:]:
            node.profile.agents.add(
                agent="default",
                model="m",
                abilities=["generate", "kv", "continue"],
                kv_layout=NAME,
                model_sha256=bytes(32),
                parameters=135,  # so little to carry that its fixed time decides
                prefill_tokens_per_s=100.0,
                decode_tokens_per_s=20.0,
                context_tokens=8192,
                slots=1,
            )
        for node in self.nodes:
            node.profiles |= {other.id: other.profile for other in self.nodes}
        membership = SimpleNamespace(
            view=lambda: frozenset(node.id for node in self.nodes), load_of=lambda _: membership_pb2.NodeLoad()
        )
        profiles = SimpleNamespace(of=self.asked.profiles.get)
        replica = SimpleNamespace(me=self.asked.id, membership=membership, profiles=profiles)
        links = SimpleNamespace(stub=self.asked.stubs.get)
        self.router = Router(cast(Any, replica), self.asked.door, cast(Any, links), self.asked.kv)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as open_ones:
            for node in self.nodes[1:]:
                callers = Callers(lambda: self.asked.credentials.roots, lambda _: False, Refused(lambda _, __: None))
                server = grpc.aio.server(options=PORT_OPTIONS, interceptors=[callers])
                unused = cast(Any, None)
                service = MeshService(unused, node.door, unused, unused, kv=node.kv)
                mesh_pb2_grpc.add_MeshServicer_to_server(service, server)
                port = server.add_secure_port("127.0.0.1:0", node.credentials.server())
                await server.start()
                open_ones.push_async_callback(server.stop, None)
                for other in self.nodes:
                    channel = other.credentials.channel("127.0.0.1", port, node.credentials.identity, GRPC_OPTIONS)
                    await open_ones.enter_async_context(channel)
                    other.stubs[node.id] = mesh_pb2_grpc.MeshStub(channel)
            yield

    def prompt(self, *holders: Node) -> engine_pb2.GenerateRequest:
        """One that nobody has read but these."""
        self.number += 1
        prompt = f"{self.number}: {TEXT}"
        for holder in holders:
            self.router.prefixes.sent(blocks_of([prompt]), f"{holder.id}/default", 0)
        return engine_pb2.GenerateRequest(prompt=prompt, max_tokens=10)

    def route(self, request: engine_pb2.GenerateRequest) -> Route:
        return self.router.choose(request, node=self.taker.id)

    async def answer(self, request: engine_pb2.GenerateRequest) -> tuple[str, Event.Started]:
        text, started = "", Event.Started()
        async for event in self.router.generate(self.route(request), request):
            text += event.delta.text
            if event.HasField("started"):
                started = event.started
        return text, started

    def cost_s(self, holder: Node) -> tuple[float, float]:
        """Of taking a prompt's KV, as the node that is asked thinks, and the taker."""
        agent = self.taker.profile.agents[0]
        asked, taker = (node.kv.move_s(TOKENS, agent, holder.id, self.taker.id) for node in (self.asked, self.taker))
        return asked, taker


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await asyncio.to_thread(World, tmp_path)
    async with world.serving():
        yield world


async def test_of_two_holders_the_one_is_asked_from_which_it_comes_sooner(world: World) -> None:
    first = world.route(world.prompt(*world.holders)).kv_holder
    slow, quick = sorted(world.holders, key=lambda node: node.id != first)
    slow.engine.delay_s = 2.0
    for _ in range(2):
        text, started = await world.answer(world.prompt(*world.holders))
        assert (text, started.cached_tokens, started.kv_tokens) == ("yes", TOKENS, TOKENS)
    assert (slow.engine.exports, quick.engine.exports) == (1, 1), "once it was seen how long it takes"
    assert world.route(world.prompt(*world.holders)).kv_holder == quick.id
    assert world.route(world.prompt(slow)).kv_holder == slow.id, "where nobody else has it: reading takes 16 s"
    assert min(world.cost_s(slow)) > max(world.cost_s(quick)), "as both nodes know"


async def test_a_pair_that_takes_longer_than_reading_is_not_asked_to_move(world: World) -> None:
    holder, other = world.holders
    holder.engine.delay_s = 0.5
    assert world.route(world.prompt(holder)).kv_holder == holder.id
    _, started = await world.answer(world.prompt(holder))
    assert started.kv_seconds > 0.5
    for node in world.nodes[1:]:
        node.profile.agents[0].prefill_tokens_per_s = TOKENS / 0.2
    assert world.route(world.prompt(holder)).kv_holder == "", "reading takes 0.2 s now"
    assert world.route(world.prompt(other)).kv_holder == other.id, "and by the prior a move is quicker"


async def test_a_taker_that_knows_better_reads(world: World) -> None:
    holder, _ = world.holders
    for node in world.nodes[1:]:
        node.profile.agents[0].prefill_tokens_per_s = TOKENS / 0.5
    holder.engine.hangs = asyncio.Event()
    assert (await world.taker.kv.bring(holder.id, world.prompt(), TOKENS)).tokens == 0
    before, _ = world.cost_s(holder)
    assert world.route(world.prompt(holder)).kv_holder == holder.id, "who is asked has not seen it"
    text, started = await world.answer(world.prompt(holder))
    assert (text, started.kv_tokens, started.kv_seconds, started.kv_not_now) == ("yes", 0, 0.0, False)
    assert holder.engine.exports == 1
    assert world.cost_s(holder)[0] > before, "it is heard that nothing came"


def wrong_bytes(tokens: list[int]) -> bytes:
    state = bytearray(packed(tokens))
    state[-1] ^= 1
    return bytes(state)


def of_another_model(tokens: list[int]) -> bytes:
    return packed(tokens, "b" * 64)


def of_other_tokens(tokens: list[int]) -> bytes:
    return packed([token + 1 for token in tokens])


def too_early_an_end(tokens: list[int]) -> bytes:
    return packed(tokens)[:-100]


@pytest.mark.parametrize("lie", [wrong_bytes, of_another_model, of_other_tokens, too_early_an_end])
async def test_a_holder_that_lies_is_read_around_and_dear_from_then_on(
    world: World, lie: Callable[[list[int]], bytes]
) -> None:
    liar, honest = world.holders
    liar.engine.packs = lie
    before = world.cost_s(liar)
    text, started = await world.answer(world.prompt(liar))
    assert (text, started.cached_tokens, started.kv_tokens) == ("yes", 0, 0)
    assert started.kv_seconds > 0.0
    assert liar.engine.exports == 1
    assert all(now > 1.4 * then for now, then in zip(world.cost_s(liar), before, strict=True))
    assert world.route(world.prompt(liar, honest)).kv_holder == honest.id


async def test_a_holder_that_stalls_is_waited_for_as_long_as_reading_takes_and_is_dear_then(world: World) -> None:
    stalls, honest = world.holders
    for node in world.nodes[1:]:
        node.profile.agents[0].prefill_tokens_per_s = TOKENS / 0.5
    stalls.engine.hangs = asyncio.Event()
    assert world.route(world.prompt(stalls)).kv_holder == stalls.id
    text, started = await world.answer(world.prompt(stalls))
    assert (text, started.cached_tokens, started.kv_tokens) == ("yes", 0, 0)
    assert 0.4 < started.kv_seconds < 5.0
    assert world.route(world.prompt(stalls)).kv_holder == ""
    assert world.route(world.prompt(stalls, honest)).kv_holder == honest.id
    assert min(world.cost_s(stalls)) > 0.5


async def test_who_named_a_holder_that_has_nothing_learns_it_and_the_taker_does_not(world: World) -> None:
    holder, _ = world.holders
    holder.engine.packs = lambda _: b""
    asked, taker = world.cost_s(holder)
    text, started = await world.answer(world.prompt(holder))
    assert (text, started.kv_tokens) == ("yes", 0)
    assert started.kv_seconds > 0.0
    assert world.cost_s(holder)[0] > 1.4 * asked
    assert world.cost_s(holder)[1] == taker


async def test_of_a_move_that_a_taker_had_no_room_for_nothing_is_learned(world: World) -> None:
    holder, _ = world.holders
    holder.engine.hangs = asyncio.Event()
    bringing = [
        asyncio.create_task(world.taker.kv.bring(holder.id, world.prompt(), TOKENS)) for _ in range(MOVES_AT_ONCE)
    ]
    while holder.engine.exports < MOVES_AT_ONCE:  # noqa: ASYNC110 - until both are asked for
        await asyncio.sleep(0.01)
    before, _ = world.cost_s(holder)
    text, started = await world.answer(world.prompt(holder))
    assert (text, started.kv_tokens, started.kv_seconds, started.kv_not_now) == ("yes", 0, 0.0, True)
    assert world.cost_s(holder)[0] == before
    for one in bringing:
        one.cancel()
    await asyncio.gather(*bringing, return_exceptions=True)


async def test_of_a_node_of_an_earlier_release_only_what_it_found_cached_is_learned(world: World) -> None:
    holder, _ = world.holders
    (before, _), started = world.cost_s(holder), Event.Started(prompt_tokens=TOKENS, cached_tokens=TOKENS)
    world.asked.kv.told(holder.id, world.taker.id, TOKENS, started)
    assert world.cost_s(holder)[0] == pytest.approx(before, rel=1e-3)
    world.asked.kv.told(holder.id, world.taker.id, TOKENS, Event.Started(prompt_tokens=TOKENS))
    assert world.cost_s(holder)[0] > 1.3 * before


async def test_a_figure_that_can_not_be_true_breaks_nothing(world: World) -> None:
    holder, _ = world.holders
    for seconds in (float("nan"), float("inf"), -1.0, 1e300, 1e-300):
        told = Event.Started(prompt_tokens=2**32 - 1, cached_tokens=2**32 - 1, kv_tokens=2**32 - 1, kv_seconds=seconds)
        world.asked.kv.told(holder.id, world.taker.id, TOKENS, told)
        assert 0.0 < world.cost_s(holder)[0] < 100.0
