"""Whose tokens a plan is counted in: this node's engine where it moves, else that of a peer.

Why: planning needs a tokenizer. A leader without a working engine would otherwise hold up every job of the mesh, though
its peers could do all of the work.
"""

from collections.abc import Sequence
from typing import Protocol

from mesh.identity import NodeId
from mesh.replica import Replica
from mesh.wire import engine_pb2, mesh_pb2_grpc
from node.engine.api import Engine
from node.errors import ExitCode, KithError
from node.links import Links
from node.rpc import calling

#: Longest wait for one batch of texts: counting a thousand sentences takes milliseconds.
COUNT_TIMEOUT_S = 10.0


class Counter(Protocol):
    """The part of an engine that a plan needs."""

    @property
    def loaded(self) -> engine_pb2.EngineLoaded | None:
        """Its model and context."""

    async def count_tokens(self, texts: Sequence[str]) -> list[int]: ...


class PeerCounter:
    """Counts on another node."""

    def __init__(self, loaded: engine_pb2.EngineLoaded, stub: "mesh_pb2_grpc.MeshAsyncStub") -> None:
        self._loaded = loaded
        self._stub = stub

    @property
    def loaded(self) -> engine_pb2.EngineLoaded | None:
        return self._loaded

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        request = engine_pb2.CountTokensRequest(texts=texts)
        with calling(_gone):
            return list((await self._stub.CountTokens(request, timeout=COUNT_TIMEOUT_S)).counts)


def counter_of(engine: Engine, replica: Replica, links: Links) -> Counter:
    """Raises `KithError` (`engine-not-ready`) where no engine in sight can count."""
    if engine.state == "ready" and not engine.stalled:
        return engine
    for node_id in sorted(replica.membership.live_peers()):
        profile = replica.profiles.of(node_id)
        load = replica.membership.load_of(node_id)
        stub = links.stub(NodeId(node_id))
        if profile is None or not profile.agents or load.engine_stalled or load.draining or stub is None:
            continue
        agent = profile.agents[0]
        loaded = engine_pb2.EngineLoaded(model=agent.model, context_tokens=agent.context_tokens)
        return PeerCounter(loaded, stub)
    state = "stands still" if engine.stalled else f"is {engine.state}"
    raise KithError(
        "engine-not-ready",
        f"the leader's engine {state}, and no other is ready",
        "Wait a moment.",
        ExitCode.UNAVAILABLE,
    )


def _gone() -> KithError:
    return KithError("engine-gone", "the node that counted went away", "It is tried again.", ExitCode.UNAVAILABLE)
