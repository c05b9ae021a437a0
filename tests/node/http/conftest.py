"""A node with its HTTP door open, one for all tests of a module."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from scripts.daemons import Daemon, end_all
from scripts.throwaway import ThrowawayMesh


@dataclass(frozen=True)
class Door:
    """Where a node's HTTP door is."""

    url: str
    name: str
    model: str
    node_id: str
    data_dir: Path

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Of a node with the echo engine."""
    options = ["--listen", "127.0.0.1:0", "--no-mdns", "--engine", "echo", "--threads", "1", "--slots", "8"]
    node = Daemon(
        tmp_path_factory.mktemp("door") / "echo",
        [*options, "--http", "127.0.0.1:0"],
        name="echo",
        environment={"KITH_ECHO_TOKENS_PER_S": "2000"},
        mesh=ThrowawayMesh(),
    )
    try:
        node.start()
        status = asyncio.run(node.ready())
        yield Door(f"http://{status.http_address}", status.name, status.agent.model, status.node_id, node.data_dir)
    finally:
        wrong = end_all([node])
        assert not wrong, "\n".join(wrong)


@pytest.fixture
def client(door: Door) -> Iterator[openai.OpenAI]:
    with door.client() as one:
        yield one
