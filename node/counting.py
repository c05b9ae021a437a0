"""Whose tokens a plan is counted in: an agent's that can do its tasks, of this node where one moves, else of a peer.

Why: planning needs a tokenizer. A leader without a working engine would otherwise hold up every job of the mesh, though
its peers could do all of the work.
"""

from collections.abc import Sequence
from typing import Protocol

from mesh.replica import Replica
from mesh.surroundings import does_tasks, task_agents
from mesh.wire import engine_pb2, facts_pb2, mesh_pb2_grpc
from node.engines import Engines, Further
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

    def __init__(self, agent: facts_pb2.AgentProfile, stub: "mesh_pb2_grpc.MeshAsyncStub") -> None:
        self._agent = agent.agent
        self._loaded = engine_pb2.EngineLoaded(model=agent.model, context_tokens=agent.context_tokens)
        self._stub = stub

    @property
    def loaded(self) -> engine_pb2.EngineLoaded | None:
        return self._loaded

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        request = engine_pb2.CountTokensRequest(texts=texts, agent=self._agent)
        with calling(_gone):
            counts = list((await self._stub.CountTokens(request, timeout=COUNT_TIMEOUT_S)).counts)
        if len(counts) != len(texts):
            raise _gone()
        return counts


def counter_of(engines: Engines, replica: Replica, links: Links) -> Counter:
    """Best one whose model is loaded. Raises `KithError` (`engine-not-ready`) where no engine in sight can count.

    Why not any engine: a model that only embeds takes far shorter texts than the ones that will do the tasks."""
    found: list[tuple[float, Counter]] = []  # with the seconds until it is loaded
    for own in (engines.first, *engines.further.values()):
        if own.state == "ready" and not own.stalled and own.loaded is not None and does_tasks(own.loaded):
            found.append((own.load_wait_s if isinstance(own, Further) else 0.0, own))
    for node_id in replica.membership.live_peers():
        load = replica.membership.load_of(node_id)
        stub = links.stub(node_id)
        agents = task_agents(replica, node_id)
        if not agents or load.engine_stalled or load.draining or stub is None:
            continue
        found.append((max(0.0, agents[0].load_wait_seconds), PeerCounter(agents[0], stub)))  # as it says itself
    if found:
        return min(found, key=lambda one: one[0])[1]
    first = engines.first
    state = "stands still" if first.stalled else "only embeds" if first.state == "ready" else f"is {first.state}"
    raise KithError(
        "engine-not-ready",
        f"the leader's engine {state}, and no other that writes is ready",
        "Wait a moment.",
        ExitCode.UNAVAILABLE,
    )


def _gone() -> KithError:
    return KithError("engine-gone", "the node that counted went away", "It is tried again.", ExitCode.UNAVAILABLE)
