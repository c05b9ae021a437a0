"""KV of a long prompt goes from the node that read it to the one that answers: real daemons, real model.

Skipped where the engine exchanges no KV.
"""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from mesh.wire import engine_pb2, local_pb2
from scripts.daemons import Daemon, until
from tests.conftest import DaemonFactory
from tests.node.test_daemon import address_of

pytestmark = [pytest.mark.slow, pytest.mark.model]

DOCUMENT = " ".join(f"Item {number} of the list is a thing that weighs {number} grams." for number in range(50))


def ask(text: str, model: str, node: str = "", tokens: int = 8) -> local_pb2.ChatRequest:
    message = engine_pb2.ChatMessage(role="user", content=text)
    request = engine_pb2.GenerateRequest(messages=[message], max_tokens=tokens, priority=1)
    return local_pb2.ChatRequest(request=request, model=model, node=node)


async def answered(asked: Daemon, request: local_pb2.ChatRequest) -> tuple[str, str, int]:
    """Node, text, and how many tokens of the prompt were cached there."""
    node, text, cached = "", "", 0
    async with asked.client() as client, aclosing(client.chat(request)) as events:
        async for event in events:
            node = event.routed.node_name or node
            text += event.generate.delta.text
            if event.generate.HasField("started"):
                cached = event.generate.started.cached_tokens
    return node, text, cached


async def test_the_node_that_answers_takes_what_the_other_one_read(daemon: DaemonFactory, model_path: Path) -> None:
    real = ["--engine", "llama", "--model", str(model_path), "--ctx", "2048"]
    a = daemon(name="a", environment={"KITH_ECHO_TOKENS_PER_S": "1"})
    await a.ready()
    seed = ["--seed", await address_of(a)]
    nodes = [daemon(*seed, *real, name=name) for name in "bc"]
    await asyncio.gather(*(node.ready(120.0) for node in nodes))

    async def known() -> bool:
        return sum(len(info.profile.agents) for info in await a.nodes()) == 3

    await until(known, 30.0, "all agents are known")
    agents = [agent for info in await a.nodes() for agent in info.profile.agents if agent.backend == "llama"]
    if not all("kv" in agent.abilities for agent in agents):
        pytest.skip("the engine exchanges no KV")

    async def named() -> bool:
        told = [agent for info in await a.nodes() for agent in info.profile.agents if agent.backend == "llama"]
        return all(agent.model_sha256 for agent in told)

    await until(named, 30.0, "the models' hashes are known")
    node, _, cached = await answered(a, ask(f"{DOCUMENT} What is item 3?", model_path.stem, node="b"))
    assert (node, cached < 100) == ("b", True)
    question = f"{DOCUMENT} What is item 5?"
    # B has something else to do, and so C is asked.
    async with a.client() as client, aclosing(client.chat(ask("Count.", "", "b", 600))) as busy:
        async for event in busy:
            if event.generate.HasField("delta"):
                break
        taken, text, cached = await answered(a, ask(question, model_path.stem))
    assert taken == "c"
    assert cached > 400
    _, again, _ = await answered(a, ask(question, model_path.stem, node="b"))
    assert text == again
