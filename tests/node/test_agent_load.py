"""Each agent of a node is charged with what it has to do itself: real engines, and the machine that takes tasks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.agent_load import load_of_agent
from mesh.wire import engine_pb2, membership_pb2
from node.agent_load import told
from node.config import NodeConfig
from node.engine_door import EngineDoor
from node.engines import FIRST
from scripts.daemons import until
from tests.mesh.lone import Lone
from tests.mesh.test_intake import gives, worker
from tests.node.engine.engines import PATIENCE
from tests.node.test_engines import Node

WORDS = " ".join(f"word{number}" for number in range(50))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    one = Node(tmp_path, 100)
    await one.first.start()
    one.add("Slow", 10, config=NodeConfig(data_dir=tmp_path, engine="echo", echo_tokens_per_s=20.0, slots=1))
    yield one
    await one.engines.stop()


async def test_what_waits_for_one_agent_is_not_charged_to_another(node: Node) -> None:
    door = EngineDoor(node.first, node.engines.of)
    intake = Lone().replica.work.intake
    assert told(node.engines, door, intake) == []
    request = engine_pb2.GenerateRequest(prompt=WORDS)
    async with contextlib.aclosing(door.of("slow").generate("a", request)) as events:
        await anext(events)
        second = asyncio.ensure_future(anext(aiter(door.of("slow").generate("b", request))))

        async def has_told() -> bool:
            return node.engines.of("slow").figures.slots_busy == 1

        await until(has_told, PATIENCE, "what the engine tells of itself")
        found = told(node.engines, door, intake)
        assert found == [membership_pb2.AgentLoad(agent="slow", requests=2)], "one writes and one waits"
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)


async def test_tasks_count_for_the_agent_that_has_them(node: Node) -> None:
    lone = worker(slots=2)
    gives(lone, 0)
    [found] = told(node.engines, EngineDoor(node.first, node.engines.of), lone.replica.work.intake)
    assert (found.agent, found.requests) == (FIRST, 1)
    assert (found.queued_prompt_tokens, found.queued_output_tokens) == (100, 50)
    assert lone.replica.work.intake.load(("slow",)) == (0, 0)


async def test_an_idle_agent_waits_for_the_load_of_another_model(node: Node) -> None:
    """In turn: first the one, then its own."""
    node.add("Other", 10)
    door, intake = EngineDoor(node.first, node.engines.of), Lone().replica.work.intake
    loading = asyncio.create_task(node.engines.further["slow"].start())
    while not (found := told(node.engines, door, intake)):  # noqa: ASYNC110 - until the task has begun
        await asyncio.sleep(0)
    waits = {one.agent: one.load_wait_seconds for one in found}
    assert waits.keys() == {"slow", "other"}
    assert waits["other"] > waits["slow"] > 0.0
    load = membership_pb2.NodeLoad(agents=found)
    assert load_of_agent(load, "other").load_wait_seconds == waits["other"]
    await loading
    assert told(node.engines, door, intake) == []


def test_a_node_of_an_earlier_release_tells_sums_and_they_are_charged_to_each() -> None:
    sums = membership_pb2.NodeLoad(slots_busy=3, queued_prompt_tokens=7, queued_output_tokens=9)
    assert [load_of_agent(sums, agent).requests for agent in ("default", "slow")] == [3, 3]
    assert load_of_agent(sums, "slow").queued_output_tokens == 9
    parts = membership_pb2.NodeLoad(slots_busy=3, agents=[membership_pb2.AgentLoad(agent="slow", requests=3)])
    assert [load_of_agent(parts, agent).requests for agent in ("default", "slow")] == [0, 3]
