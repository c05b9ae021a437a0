"""One question to one agent and its one answer: vectors of texts, scores of continuations.

Idea: unlike an answer that is written (router.py, answering.py), such a one is there as a whole or not at all, so it is
asked once, of the agent that was chosen, on this node or another; whoever asks decides what to do without it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from mesh.identity import NodeId
from mesh.replica import Replica
from mesh.wire import common_pb2, engine_pb2, mesh_pb2, mesh_pb2_grpc
from node import agent_load
from node.engine_door import EngineDoor
from node.errors import ExitCode, KithError
from node.limits import ANSWER_WITHIN_S
from node.links import Links
from node.route import Route, agents_named, went_away
from node.rpc import calling

Reply = TypeVar("Reply")


class Questions:
    """`who`: on whose behalf, for the fair queue at this node's engine. All methods raise `KithError`."""

    def __init__(self, replica: Replica, engine: EngineDoor, links: Links) -> None:
        self._replica = replica
        self._engine = engine
        self._links = links

    def choose_embedder(self, model: str = "", node: str = "") -> Route:
        """The least busy agent that embeds; all that it is chosen from have the same model."""
        found: list[tuple[tuple[int, int, bool], Route]] = []
        for node_id, name, agent in agents_named(self._replica, model, node):
            load = self._replica.membership.load_of(node_id)
            if load.draining or load.engine_stalled or "embed" not in agent.abilities:
                continue
            own = agent_load.read(load, agent.agent)
            busy = (own.requests, own.queued_prompt_tokens, node_id != self._replica.me)
            ref = common_pb2.AgentRef(node_id=node_id, agent=agent.agent)
            found.append((busy, Route(ref, name, agent.model, float(own.queued_prompt_tokens))))
        if not found:
            raise KithError("no-agent", "no live agent can embed texts", "`kith nodes` tells what each can.")
        models = sorted({route.model for _, route in found})
        if len(models) > 1:
            raise KithError(
                "bad-request",
                "several models embed here, and their vectors can not be compared",
                f"Name one: {', '.join(models)}.",
                ExitCode.BAD_INPUT,
            )
        return min(found, key=lambda entry: entry[0])[1]

    async def embed(
        self, route: Route, request: engine_pb2.EmbedRequest, who: Hashable = "local"
    ) -> engine_pb2.EmbedReply:
        call = mesh_pb2.EmbedCall(request=request, agent=route.agent.agent, hop_count=1)
        return await self._asked(
            route,
            lambda engine: engine.embed(who, request),
            lambda stub: stub.Embed(call, timeout=ANSWER_WITHIN_S),
        )

    async def score(
        self, route: Route, request: engine_pb2.ScoreRequest, who: Hashable = "local"
    ) -> engine_pb2.ScoreReply:
        call = mesh_pb2.ScoreCall(request=request, agent=route.agent.agent, hop_count=1)
        return await self._asked(
            route,
            lambda engine: engine.score(who, request),
            lambda stub: stub.Score(call, timeout=ANSWER_WITHIN_S),
        )

    async def _asked(
        self,
        route: Route,
        here: Callable[[EngineDoor], Awaitable[Reply]],
        there: Callable[["mesh_pb2_grpc.MeshAsyncStub"], Awaitable[Reply]],
    ) -> Reply:
        if route.agent.node_id == self._replica.me:
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    return await here(self._engine.of(route.agent.agent))
            except TimeoutError:
                message = "the answer took too long"
                raise KithError("timed-out", message, "Ask for less.", ExitCode.UNAVAILABLE) from None
        stub = self._links.stub(NodeId(route.agent.node_id))
        if stub is None:
            raise went_away(route)
        with calling(lambda: went_away(route)):
            return await there(stub)
