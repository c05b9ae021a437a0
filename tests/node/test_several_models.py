"""A real node with three models: each an agent, two of them loaded when they are asked for, one at a time."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from mesh.wire import engine_pb2, local_pb2, work_pb2
from scripts.daemons import ENGINE, Daemon, until
from tests.conftest import DaemonFactory

pytestmark = [pytest.mark.slow, pytest.mark.model]


async def chat(node: Daemon, model: str) -> tuple[str, str]:
    """Which agent answered, and what."""
    request = engine_pb2.GenerateRequest(max_tokens=4)
    request.messages.add(role="user", content="Say yes.")
    agent = text = ""
    async with node.client() as client:
        events = client.chat(local_pb2.ChatRequest(request=request, model=model))
        async with contextlib.aclosing(events):
            async for event in events:
                if event.WhichOneof("event") == "routed":
                    agent = event.routed.agent.agent
                else:
                    text += event.generate.delta.text
    return agent, text


async def test_each_model_is_an_agent_and_memory_is_kept_within_its_budget(
    daemon: DaemonFactory, model_path: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{name}.gguf" for name in ("Alpha", "Beta", "Gamma")]
    for path in paths:
        os.symlink(model_path, path)
    # One needs about 240 MB here: room for the first and one further.
    arguments = [word for path in paths for word in ("--model", str(path))]
    node = daemon("--engine", "llama", "--ctx", "512", "--memory-budget", "600", *arguments)
    await node.ready(120.0)

    async def told() -> list[str] | None:
        [info] = await node.nodes()
        agents = [(one.agent, one.model, bool(one.model_sha256)) for one in info.profile.agents]
        wanted = [("default", "Alpha", True), ("beta", "Beta", True), ("gamma", "Gamma", True)]
        return [agent for agent, _, _ in agents] if agents == wanted else None

    await until(told, 30.0, "three agents with the hashes of their files")
    assert len(node.children(ENGINE)) == 1
    agent, first = await chat(node, "Alpha")
    assert (agent, bool(first)) == ("default", True)
    assert await chat(node, "Beta") == ("beta", first)  # the same file, so the same words
    assert len(node.children(ENGINE)) == 2
    assert await chat(node, "Gamma") == ("gamma", first)
    assert len(node.children(ENGINE)) == 2  # Beta had to go
    assert await chat(node, "Beta") == ("beta", first)
    both = await asyncio.gather(chat(node, "Alpha"), chat(node, "Beta"))
    assert {agent for agent, _ in both} == {"default", "beta"}
    async with node.client() as client:
        assert list((await client.show_model()).paths) == [str(path) for path in paths]
        question = work_pb2.AskRequest(question="Is water wet?", options=["yes", "no"], panel=3)
        accepted = await client.submit(work_pb2.JobRequest(ask=question))
        last = local_pb2.JobSnapshot()
        async with asyncio.timeout(120):
            async for snapshot in client.watch(accepted.job_id):
                last = snapshot
        assert last.state == local_pb2.JOB_STATE_COMPLETED
        ballots = (await client.result(accepted.job_id)).result.panel.ballots
        assert {ballot.agent.agent for ballot in ballots} == {"default", "beta", "gamma"}
