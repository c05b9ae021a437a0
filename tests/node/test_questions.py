"""Whose vectors and scores are asked for, and what becomes of a question: a real engine here, nobody elsewhere."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.wire import engine_pb2, facts_pb2, membership_pb2
from node import questions
from node.engine.echo import vector_of
from node.engine_door import EngineDoor
from node.errors import ExitCode, KithError
from node.questions import Questions
from tests.node.engine.engines import running

ME, ONE = "a" * 32, "b" * 32


class World:
    """What node `ME` knows of agents that embed; no other node is really there."""

    def __init__(self, engine: Any = None) -> None:
        self.profiles: dict[str, facts_pb2.NodeProfile] = {}
        self.loads: dict[str, membership_pb2.NodeLoad] = {}
        membership = SimpleNamespace(
            view=lambda: frozenset(self.profiles),
            load_of=lambda node_id: self.loads.get(node_id, membership_pb2.NodeLoad()),
        )
        replica = SimpleNamespace(me=ME, membership=membership, profiles=SimpleNamespace(of=self.profiles.get))
        links = SimpleNamespace(stub=lambda _: None)
        self.questions = Questions(cast(Any, replica), EngineDoor(engine), cast(Any, links))

    def agent(self, node_id: str, name: str = "default", model: str = "m", ability: str = "embed") -> None:
        profile = self.profiles.setdefault(node_id, facts_pb2.NodeProfile(name=node_id[:1]))
        profile.agents.add(agent=name, model=model, abilities=[ability])


def chosen(world: World, **narrowed: str) -> tuple[str, str]:
    agent = world.questions.choose_embedder(**narrowed).agent
    return agent.node_id, agent.agent


def test_the_least_busy_agent_embeds_and_a_tie_stays_here() -> None:
    world = World()
    world.agent(ONE)
    world.agent(ME)
    assert chosen(world) == (ME, "default")
    assert chosen(world, node="b") == (ONE, "default")
    busy = membership_pb2.AgentLoad(agent="default", requests=1)
    world.loads[ME] = membership_pb2.NodeLoad(slots_busy=1, agents=[busy])
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
        vectors = await world.questions.embed(here, engine_pb2.EmbedRequest(texts=["a b"]))
        assert list(vectors.vectors[0].values) == pytest.approx(vector_of("a b"))
        asked = engine_pb2.ScoreRequest(prompt="a", continuations=["b", "c d"])
        assert len((await world.questions.score(here, asked)).log_probabilities) == 2
        world.agent(ONE)
        there = world.questions.choose_embedder(node="b")
        for question in (world.questions.embed(there, engine_pb2.EmbedRequest()), world.questions.score(there, asked)):
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
