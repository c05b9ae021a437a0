"""Whose vectors and scores are asked for, and what becomes of a question: with real engines, here and over a link."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.certificates import Role
from mesh.wire import engine_pb2, facts_pb2, membership_pb2, mesh_pb2_grpc
from node import questions
from node.engine.echo import vector_of
from node.engine_door import EngineDoor
from node.errors import ExitCode, KithError
from node.http import embeddings
from node.limits import TEXTS_MAX, WAITING_OF_ONE_MAX
from node.mesh_service import MeshService
from node.route import Route
from node.router import Router
from tests.node.engine.engines import PATIENCE, ask, running
from tests.node.linking import Made, Node

ME, ONE, TWO = "a" * 32, "b" * 32, "c" * 32
TEXTS = engine_pb2.EmbedRequest(texts=["a b"])
ASKED = engine_pb2.ScoreRequest(prompt="a", continuations=["b", "c d"])


class World:
    """What node `me` knows of agents that embed."""

    def __init__(self, engine: Any = None, me: str = ME, links: Any = None) -> None:
        self.profiles: dict[str, facts_pb2.NodeProfile] = {}
        self.loads: dict[str, membership_pb2.NodeLoad] = {}
        membership = SimpleNamespace(
            view=lambda: frozenset(self.profiles),
            load_of=lambda node_id: self.loads.get(node_id, membership_pb2.NodeLoad()),
        )
        profiles = SimpleNamespace(of=self.profiles.get)
        self.replica = cast(Any, SimpleNamespace(me=me, membership=membership, profiles=profiles))
        self.engine = engine
        self.further: dict[str, Any] = {}
        door = EngineDoor(engine, lambda agent: self.further.get(agent, engine))
        links = links or SimpleNamespace(stub=lambda _: None)
        self.router = Router(self.replica, door, cast(Any, links))
        self.questions = self.router.questions

    def agent(
        self, node_id: str, name: str = "default", model: str = "m", ability: str = "embed", **fields: Any
    ) -> None:
        profile = self.profiles.setdefault(node_id, facts_pb2.NodeProfile(name=node_id[:1]))
        abilities = [ability, "score"] if ability == "embed" else [ability]
        profile.agents.add(agent=name, model=model, abilities=abilities, **fields)

    def busy(self, node_id: str) -> None:
        busy = membership_pb2.AgentLoad(agent="default", requests=1)
        self.loads[node_id] = membership_pb2.NodeLoad(slots_busy=1, agents=[busy])

    async def embed(self, route: Route) -> tuple[Any, str]:
        """The vector of "a b", and whose it is."""
        reply, by = await self.questions.embed(route, TEXTS)
        return list(reply.vectors[0].values), by.agent.node_id


class Refusing:
    """An engine before a server that takes nothing."""

    loaded = None

    def __init__(self, code: str, why: str) -> None:
        self.error = KithError(code, why, "Change it.", ExitCode.BAD_INPUT)

    async def embed(self, request: engine_pb2.EmbedRequest) -> engine_pb2.EmbedReply:
        raise self.error


@dataclass
class Pair:
    """Node `a` asks, and has an engine; node `b` serves another one over a real link."""

    world: World
    a: Node
    b: Node
    door: EngineDoor  # of b

    def known(self, a_sha256: bytes, b_sha256: bytes) -> Route:
        """The route to `b`: it is idle, and `a` is busy."""
        self.world.agent(self.a.me, model_sha256=a_sha256)
        self.world.agent(self.b.me, model_sha256=b_sha256)
        self.world.busy(self.a.me)
        route = self.world.questions.choose_embedder()
        assert route.agent.node_id == self.b.me
        return route

    async def waiting(self, count: int) -> None:
        """Until so many wait for a turn at `b`."""
        await self.b.until(lambda: self.door.turns.waiting == count)

    async def die(self) -> None:
        assert self.b.server is not None
        await self.b.server.stop(None)


@contextlib.asynccontextmanager
async def linked(folder: Path) -> AsyncIterator[Pair]:
    async with running() as here, running(slots=1, echo_tokens_per_s=5.0) as there:
        doors: dict[str, EngineDoor] = {}

        def service(node: Node) -> mesh_pb2_grpc.MeshServicer:
            doors[node.me] = EngineDoor(there.engine)
            nothing: Any = None
            return MeshService(node.links, doors[node.me], nothing, nothing)

        made = Made(folder, service)
        try:
            a, b = await made(Role.NODE, Role.NODE)
            assert await a.dial(b) == b.me
            await a.until(lambda: a.links.count(b.me) == 1)
            yield Pair(World(here.engine, a.me, a.links), a, b, doors[b.me])
        finally:
            await made.close()


@contextlib.asynccontextmanager
async def taken(door: EngineDoor) -> AsyncIterator[None]:
    """While another caller's answer runs in the only place."""
    words = " ".join(f"word{number}" for number in range(500))
    async with contextlib.aclosing(door.generate("another", ask(words))) as events:
        await anext(events)
        yield


def chosen(world: World, **narrowed: str) -> tuple[str, str]:
    agent = world.questions.choose_embedder(**narrowed).agent
    return agent.node_id, agent.agent


def test_the_least_busy_agent_embeds_and_a_tie_stays_here() -> None:
    world = World()
    world.agent(ONE)
    world.agent(ME)
    assert chosen(world) == (ME, "default")
    assert chosen(world, node="b") == (ONE, "default")
    world.busy(ME)
    assert chosen(world) == (ONE, "default")
    world.agent(ME, "second")
    assert chosen(world) == (ME, "second"), "its neighbour's work is none of its own"
    world.loads[ME].engine_stalled = True
    assert chosen(world) == (ONE, "default")


def test_vectors_of_several_models_are_not_mixed() -> None:
    world = World()
    with pytest.raises(KithError, match="no live agent can embed"):
        chosen(world)
    world.agent(ME)
    world.agent(ONE, model="n")
    world.agent(ONE, "third", "o", "chat")
    with pytest.raises(KithError, match="can not be compared") as caught:
        chosen(world)
    assert caught.value.remedy == "Name one: m, n."
    assert chosen(world, model="n") == (ONE, "default")


async def test_this_node_answers_itself_and_one_that_is_gone_does_not() -> None:
    async with running() as watched:
        world = World(watched.engine)
        world.agent(ME)
        here = world.questions.choose_embedder()
        vector, by = await world.embed(here)
        assert (vector, by) == (pytest.approx(vector_of("a b")), ME)
        scores, route = await world.questions.score(here, ASKED)
        assert (len(scores.log_probabilities), route) == (2, here)
        world.agent(ONE)
        there = world.questions.choose_embedder(node="b")
        for question in (world.questions.embed(there, engine_pb2.EmbedRequest()), world.questions.score(there, ASKED)):
            with pytest.raises(KithError) as caught:
                await question
            assert (caught.value.code, caught.value.exit_code) == ("node-unreachable", ExitCode.UNAVAILABLE)


async def test_an_answer_of_this_node_takes_no_longer_than_one_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "ANSWER_WITHIN_S", 0.0)
    async with running() as watched:
        world = World(watched.engine)
        world.agent(ME)
        with pytest.raises(KithError) as caught:
            await world.questions.embed(world.questions.choose_embedder(), engine_pb2.EmbedRequest(texts=["a"]))
    assert caught.value.code == "timed-out"


def test_an_engine_that_reads_faster_embeds_many_texts_and_one_that_is_loaded_embeds_few() -> None:
    world = World()
    world.agent(ME, prefill_tokens_per_s=100.0)
    world.agent(ONE, prefill_tokens_per_s=10_000.0, load_wait_seconds=5.0)
    assert world.questions.choose_embedder().agent.node_id == ME
    many = ["It is a text of some forty characters. "] * 100
    assert world.questions.choose_embedder(texts=many).agent.node_id == ONE


async def test_a_question_goes_on_where_no_link_leads_to_who_was_chosen() -> None:
    async with running() as watched:
        world = World(watched.engine)
        world.agent(ME, model_sha256=b"1")
        world.agent(ONE, model_sha256=b"1")
        world.busy(ME)
        route = world.questions.choose_embedder()
        assert route.agent.node_id == ONE
        assert await world.embed(route) == (pytest.approx(vector_of("a b")), ME)
        scores, by = await world.questions.score(route, ASKED)
        assert (len(scores.log_probabilities), by.agent.node_id) == (2, ME)


async def test_a_question_goes_on_where_the_node_dies_under_it(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair, taken(pair.door), asyncio.timeout(PATIENCE):
        route = pair.known(b"1", b"1")
        vector = asyncio.create_task(pair.world.embed(route))
        scores = asyncio.create_task(pair.world.questions.score(route, ASKED))
        await pair.waiting(2)
        await pair.die()
        assert await vector == (pytest.approx(vector_of("a b")), pair.a.me)
        assert (await scores)[1].agent.node_id == pair.a.me


async def test_a_question_goes_on_where_this_node_ends_the_link(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair, taken(pair.door), asyncio.timeout(PATIENCE):
        vector = asyncio.create_task(pair.world.embed(pair.known(b"1", b"1")))
        await pair.waiting(1)
        pair.a.links.cut(pair.b.me)
        assert await vector == (pytest.approx(vector_of("a b")), pair.a.me)


async def test_a_question_goes_on_where_the_agent_is_full(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair, taken(pair.door), asyncio.timeout(PATIENCE):
        route = pair.known(b"1", b"1")
        before = [asyncio.create_task(pair.door.embed(pair.a.me, TEXTS)) for _ in range(WAITING_OF_ONE_MAX)]
        await pair.waiting(WAITING_OF_ONE_MAX)
        assert await pair.world.embed(route) == (pytest.approx(vector_of("a b")), pair.a.me)
        for task in before:
            task.cancel()
        await asyncio.gather(*before, return_exceptions=True)


async def test_a_question_that_is_too_late_at_one_node_goes_on_with_what_is_left_of_its_time(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair, taken(pair.door), asyncio.timeout(PATIENCE):
        route = pair.known(b"1", b"1")
        given: list[float] = []
        score = pair.world.engine.score

        async def noted(request: engine_pb2.ScoreRequest) -> engine_pb2.ScoreReply:
            given.append(request.useful_seconds)
            reply: engine_pb2.ScoreReply = await score(request)
            return reply

        pair.world.engine.score = noted
        asked = engine_pb2.ScoreRequest(prompt="a", continuations=["b"], useful_seconds=0.05)
        assert (await pair.world.questions.score(route, asked))[1].agent.node_id == pair.a.me
        assert 0 < given[0] < 0.05


@pytest.mark.parametrize(("here", "there"), [(b"1", b"2"), (b"", b"1"), (b"1", b""), (b"", b"")])
async def test_no_question_goes_on_at_another_model_nor_at_one_that_is_not_known(
    tmp_path: Path, here: bytes, there: bytes
) -> None:
    """Both call it by the same name."""
    async with linked(tmp_path) as pair:
        route = pair.known(here, there)
        await pair.die()
        for question in (pair.world.embed(route), pair.world.questions.score(route, ASKED)):
            with pytest.raises(KithError) as caught:
                await question
            assert caught.value.code == "node-unreachable"


async def test_the_batches_of_one_answer_go_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "BATCH", 1)
    async with linked(tmp_path) as pair, asyncio.timeout(PATIENCE):
        pair.known(b"1", b"1")
        words = [f"w{number}" for number in range(5)]
        embed = pair.door.embed

        async def until_it_dies(who: Any, request: engine_pb2.EmbedRequest) -> engine_pb2.EmbedReply:
            if request.texts[0] == "w2":
                dying.append(asyncio.create_task(pair.die()))
                await asyncio.Event().wait()
            return await embed(who, request)

        dying: list[asyncio.Task[None]] = []
        pair.door.embed = until_it_dies  # type: ignore[method-assign]
        answer = await embeddings.embeddings(pair.world.router, pair.world.replica, {"input": words}, "me")
        assert [list(vector.values) for vector in answer.vectors] == [pytest.approx(vector_of(word)) for word in words]
        await dying[0]


async def test_where_all_refuse_every_reason_is_told_and_what_is_wrong_everywhere_once() -> None:
    world = World(Refusing("agent-refused", "the server embeds nothing"))
    world.agent(ME, model_sha256=b"1")
    world.agent(ME, "second", model_sha256=b"1")
    world.further["second"] = Refusing("agent-refused", "nor does this one")
    route = world.questions.choose_embedder()
    with pytest.raises(KithError) as caught:
        await world.questions.embed(route, TEXTS)
    assert caught.value.message == "the server embeds nothing; nor does this one"
    assert (caught.value.code, caught.value.exit_code) == ("agent-refused", ExitCode.BAD_INPUT)
    with pytest.raises(KithError, match="are more than") as caught:
        await world.questions.embed(route, engine_pb2.EmbedRequest(texts=["a"] * (TEXTS_MAX + 1)))
    assert "nor does" not in caught.value.message


async def test_a_question_asked_of_one_node_stays_with_it() -> None:
    async with running() as watched:
        world = World(watched.engine)
        world.agent(ME, model_sha256=b"1")
        world.agent(ONE, model_sha256=b"1")
        world.agent(TWO, model_sha256=b"1")
        with pytest.raises(KithError) as caught:
            await world.questions.embed(world.questions.choose_embedder(node="b"), TEXTS)
        assert caught.value.code == "node-unreachable"


async def test_questions_have_no_longer_than_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with linked(tmp_path) as pair, taken(pair.door), asyncio.timeout(PATIENCE):
        route = pair.known(b"1", b"1")
        monkeypatch.setattr(questions, "ANSWER_WITHIN_S", 0.05)
        with pytest.raises(KithError) as caught:
            await pair.world.embed(route)
        assert caught.value.code == "timed-out"
