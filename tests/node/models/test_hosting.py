"""A node that is up before what it hosts can be had: it comes, without anybody who starts the node again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from starlette.requests import Request
from starlette.responses import Response

from node import hosting as hosting_module
from node import logs
from node.background import Background
from node.config import NodeConfig
from node.engine.process import EngineProcess
from node.engines import Engines, engine_config
from node.hosting import Hosting
from tests.node.engine.engines import PATIENCE
from tests.node.engine.hosted.talking import says, streams, told_server
from tests.node.models.hub_server import SOURCE, HubUp

MESSAGE = {"choices": [{"message": {"role": "assistant", "content": "Hello!"}}]}
CHUNK = {"choices": [{"delta": {"content": " word"}}]}


class Node:
    """The part of one that hosts, and what it logged as an error."""

    def __init__(self, config: NodeConfig) -> None:
        self.engine = EngineProcess(engine_config(config), None, print, self._changed)
        self.engines = Engines(self.engine, 1 << 40, self._changed)
        self.background = Background()
        self.hosting = Hosting(config, self.engine, self.engines, self.background, self._changed)
        self.told: list[str] = []
        self._event = asyncio.Event()

    def log(self, level: str, text: str) -> None:
        if level == "error":
            self.told.append(text)
            self._changed()

    def _changed(self) -> None:
        self._event.set()

    async def until_failed(self) -> None:
        while not self.told:
            self._event.clear()
            await self._event.wait()


@contextlib.asynccontextmanager
async def hosted(config: NodeConfig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    node = Node(config)
    monkeypatch.setattr(hosting_module, "AGAIN_S", 0.05)
    monkeypatch.setattr(hosting_module, "SERVER_AGAIN_MAX_S", 0.2)
    monkeypatch.setattr(hosting_module, "FETCH_AGAIN_MAX_S", 0.2)
    monkeypatch.setattr(logs, "log", node.log)
    try:
        async with asyncio.timeout(PATIENCE):
            yield node
    finally:
        await node.background.cancel()
        await node.engines.stop()
        node.hosting.serving.close()


async def answer(request: Request, body: dict[str, object]) -> Response:
    return await (streams(*[CHUNK] * 20) if body.get("stream") else says(MESSAGE))(request, body)


async def test_the_server_behind_a_node_may_come_up_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At boot the order of the two is anybody's guess."""
    async with told_server() as server:
        config = NodeConfig(data_dir=tmp_path, engine="openai", engine_url=server.url, threads=1)
        async with hosted(config, monkeypatch) as node:
            coming = asyncio.ensure_future(node.hosting.bring_up())
            await node.until_failed()
            assert node.engine.state == "failed"
            assert "tried again by itself" in node.told[0]
            server.answers["/v1/models"] = says({"data": [{"id": "small"}]})
            server.answers["/v1/chat/completions"] = answer
            await coming
            assert node.engine.state == "ready"
            assert len(node.told) <= 2, "the same is told once an hour"


async def test_a_model_is_fetched_once_there_is_a_network(
    hub_up: HubUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    config = NodeConfig(data_dir=tmp_path, model=SOURCE, threads=1)
    async with hosted(config, monkeypatch) as node:
        coming = asyncio.ensure_future(node.hosting.bring_up())
        await node.until_failed()
        assert node.engine.state == "failed"
        assert "tried again by itself" in node.engine.problem
        assert not node.hosting.model_paths
        with hub_up():
            await coming  # the file holds no weights, so its engine does not come up, and is not tried again
        assert [path.name for path in node.hosting.model_paths] == ["T.gguf"]


async def test_what_no_network_mends_is_told_once(
    hub_up: HubUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = NodeConfig(data_dir=tmp_path, model=SOURCE, threads=1)
    async with hosted(config, monkeypatch) as node:
        with hub_up() as hub:
            hub.gated = True
            await node.hosting.bring_up()
        assert len(node.told) == 1
        assert "again" not in node.told[0]
        assert not node.hosting.model_paths
