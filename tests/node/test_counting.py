"""Whose tokens a plan is counted in where some agents only embed: with real engines, here and over a link."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.certificates import Role
from mesh.wire import engine_pb2, facts_pb2, membership_pb2, mesh_pb2_grpc
from node.config import FILE_ENGINES, NodeConfig
from node.counting import PeerCounter, counter_of
from node.engine.installed import installed
from node.engine.process import EngineProcess
from node.engine_door import EngineDoor
from node.engines import Engines, Further, agent_profile
from node.errors import KithError
from node.leader import FINAL_CODES
from node.mesh_service import MeshService
from tests.node.engine import tiny_embedders
from tests.node.engine.engines import running
from tests.node.linking import Made, Node

ENGINES = [name for name in FILE_ENGINES if installed(name)]
pytestmark = pytest.mark.skipif(not ENGINES, reason="needs an engine that loads files")
#: One token each for an engine that writes, as echo does; the embedder knows neither.
TEXTS = ["extraordinary", "unforeseeable consequences"]


@contextlib.asynccontextmanager
async def embedding(folder: Path) -> AsyncIterator[Engines]:
    """A node's engines; the first one only embeds."""
    path = folder / "tiny.gguf"
    tiny_embedders.write("bert", path)
    async with running(path, engine=ENGINES[0]) as watched:
        engines = Engines(watched.engine, 100, lambda: None)
        yield engines
        await engines.stop()


async def add_writer(engines: Engines, folder: Path) -> Further:
    """One that has not been loaded yet."""
    config = NodeConfig(folder, engine="echo")
    async with running(engine="echo") as watched:
        planned = watched.engine.loaded
    assert planned is not None
    return engines.add(Path("/m/writer.gguf"), EngineProcess(config, None, lambda line: None), 1, planned)


def profile(engines: Engines) -> facts_pb2.NodeProfile:
    agents = [agent_profile("default", "llama", engines.first, b"")]
    agents += [agent_profile(one.agent, "echo", one, b"") for one in engines.further.values()]
    return facts_pb2.NodeProfile(agents=agents)


def replica(**peers: facts_pb2.NodeProfile) -> Any:
    membership = SimpleNamespace(live_peers=lambda: list(peers), load_of=lambda _: membership_pb2.NodeLoad())
    return cast(Any, SimpleNamespace(membership=membership, profiles=SimpleNamespace(of=peers.get)))


async def test_a_plan_is_not_counted_by_an_engine_that_only_embeds(tmp_path: Path) -> None:
    links = cast(Any, SimpleNamespace(stub=lambda _: object()))
    async with embedding(tmp_path) as engines:
        with pytest.raises(KithError, match="only embeds") as caught:
            counter_of(engines, replica(b=profile(engines)), links)
        assert caught.value.code == "engine-not-ready"
        assert caught.value.code not in FINAL_CODES
        writer = await add_writer(engines, tmp_path)
        counter = counter_of(engines, replica(), links)
        assert counter is writer
        assert await counter.count_tokens(TEXTS) == [1, 2]


async def test_a_peer_counts_by_its_agent_that_writes(tmp_path: Path) -> None:
    async with embedding(tmp_path) as here, running(engine="echo") as there:
        # The peer's first agent only embeds, as this node's; the one that writes is its second.
        door = EngineDoor(here.first, lambda agent: there.engine if agent == "writer" else here.first)

        def service(node: Node) -> mesh_pb2_grpc.MeshServicer:
            nothing: Any = None
            return MeshService(node.links, door, nothing, nothing)

        made = Made(tmp_path, service)
        try:
            a, b = await made(Role.NODE, Role.NODE)
            assert await a.dial(b) == b.me
            await a.until(lambda: a.links.count(b.me) == 1)
            told = profile(here)
            told.agents.append(agent_profile("writer", "echo", there.engine, b""))
            counter = counter_of(here, replica(**{b.me: told}), a.links)
            assert counter.loaded is not None
            assert there.engine.loaded is not None
            assert counter.loaded.context_tokens == there.engine.loaded.context_tokens > 512
            assert await counter.count_tokens(TEXTS) == [1, 2]
        finally:
            await made.close()


async def test_who_has_its_model_loaded_counts_before_who_has_to_load_it(tmp_path: Path) -> None:
    links = cast(Any, SimpleNamespace(stub=lambda _: object()))
    async with embedding(tmp_path) as engines, running(engine="echo") as other:
        writer = await add_writer(engines, tmp_path)
        told = facts_pb2.NodeProfile(agents=[agent_profile("default", "echo", other.engine, b"")])
        assert counter_of(engines, replica(b=told), links) is not writer
        await writer.start()
        assert counter_of(engines, replica(b=told), links) is writer


async def test_a_peer_that_claims_to_be_quicker_than_at_once_does_not_count_for_this_node(
    tmp_path: Path,
) -> None:
    """What it says of itself is not checked by anybody; false counts end jobs for good."""
    links = cast(Any, SimpleNamespace(stub=lambda _: object()))
    async with running(engine="echo") as watched:
        told = facts_pb2.NodeProfile(agents=[agent_profile("default", "echo", watched.engine, b"")])
        told.agents[0].load_wait_seconds = -1.0
        engines = Engines(watched.engine, 100, lambda: None)
        assert counter_of(engines, replica(b=told), links) is watched.engine


async def test_a_peer_that_counts_fewer_texts_than_were_sent_went_away() -> None:
    class Short:
        async def CountTokens(
            self, request: engine_pb2.CountTokensRequest, timeout: float
        ) -> engine_pb2.CountTokensReply:
            return engine_pb2.CountTokensReply(counts=[1] * (len(request.texts) - 1))

    counter = PeerCounter(facts_pb2.AgentProfile(agent="default"), cast(Any, Short()))
    with pytest.raises(KithError) as caught:
        await counter.count_tokens(TEXTS)
    assert caught.value.code not in FINAL_CODES
