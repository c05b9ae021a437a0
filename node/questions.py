"""A question that is answered as a whole or not at all: vectors of texts, scores of continuations.

Idea: it goes to the agent that costs the least, on this node or another. Where that one is gone, full, or refuses, it
goes on at the next one with the same weights: vectors and scores of another model mean something else, and one answer
mixes none. Where nobody is left, the reasons are told as they are of a written answer (mesh/answer.py).

Does not: ask two at once, as router.py does of a written answer that is late.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

from mesh.answer import MOVES_MAX, REFUSALS, why
from mesh.identity import NodeId
from mesh.replica import Replica
from mesh.wire import common_pb2, engine_pb2, facts_pb2, mesh_pb2, mesh_pb2_grpc
from node.answering import is_final
from node.engine.api import AskedT
from node.engine_door import EngineDoor
from node.errors import ExitCode, KithError
from node.limits import ANSWER_WITHIN_S
from node.links import Links
from node.logs import log
from node.route import Route, agents_named, estimated_tokens, weights_of, went_away
from node.rpc import calling
from node.waited import after
from solver.costs import AgentLoad, TaskNeed, cost_terms

Reply = TypeVar("Reply")


class Questions:
    """`who`: on whose behalf, for the fair queue at this node's engine. All methods raise `KithError`."""

    def __init__(
        self,
        replica: Replica,
        engine: EngineDoor,
        links: Links,
        load: Callable[[NodeId, facts_pb2.AgentProfile], AgentLoad],
    ) -> None:
        """`load`: what an agent can do and has to do."""
        self._replica = replica
        self._engine = engine
        self._links = links
        self._load = load

    def choose_embedder(self, model: str = "", node: str = "", texts: Sequence[str] = ()) -> Route:
        """The cheapest agent that embeds; all that it is chosen from have the same model."""
        found = self._routes(_embedding(texts), model, node)
        if not found:
            raise KithError("no-agent", "no live agent can embed texts", "`kith nodes` tells what each can.")
        models = sorted({route.model for route in found})
        if len(models) > 1:
            raise KithError(
                "bad-request",
                "several models embed here, and their vectors can not be compared",
                f"Name one: {', '.join(models)}.",
                ExitCode.BAD_INPUT,
            )
        return found[0]

    async def embed(
        self, route: Route, request: engine_pb2.EmbedRequest, who: Hashable = "local"
    ) -> tuple[engine_pb2.EmbedReply, Route]:
        """The vectors, and who gave them."""

        def here(engine: EngineDoor, rest: engine_pb2.EmbedRequest) -> Awaitable[engine_pb2.EmbedReply]:
            return engine.embed(who, rest)

        def there(
            stub: "mesh_pb2_grpc.MeshAsyncStub", rest: engine_pb2.EmbedRequest, agent: str, within_s: float
        ) -> Awaitable[engine_pb2.EmbedReply]:
            return stub.Embed(mesh_pb2.EmbedCall(request=rest, agent=agent, hop_count=1), timeout=within_s)

        return await self._asked(route, _embedding(request.texts), request, here, there)

    async def score(
        self, route: Route, request: engine_pb2.ScoreRequest, who: Hashable = "local"
    ) -> tuple[engine_pb2.ScoreReply, Route]:
        """The scores, and who gave them."""

        def here(engine: EngineDoor, rest: engine_pb2.ScoreRequest) -> Awaitable[engine_pb2.ScoreReply]:
            return engine.score(who, rest)

        def there(
            stub: "mesh_pb2_grpc.MeshAsyncStub", rest: engine_pb2.ScoreRequest, agent: str, within_s: float
        ) -> Awaitable[engine_pb2.ScoreReply]:
            return stub.Score(mesh_pb2.ScoreCall(request=rest, agent=agent, hop_count=1), timeout=within_s)

        return await self._asked(route, _scoring(request), request, here, there)

    async def _asked(
        self,
        route: Route,
        need: TaskNeed,
        request: AskedT,
        here: Callable[[EngineDoor, AskedT], Awaitable[Reply]],
        there: Callable[["mesh_pb2_grpc.MeshAsyncStub", AskedT, str, float], Awaitable[Reply]],
    ) -> tuple[Reply, Route]:
        now = asyncio.get_running_loop().time
        began = now()
        deadline = began + ANSWER_WITHIN_S
        asked, failed, problems, moves = route, set[str](), list[common_pb2.Problem](), 0
        while True:
            try:
                rest = after(now() - began, request)
                return await self._once(asked, rest, here, there, deadline - now()), asked
            except KithError as error:
                if is_final(error):
                    raise
                failed.add(asked.id)
                problems.append(error.to_wire())
                moves += error.code not in REFUSALS
                next_one = self._next(route, need, failed) if moves <= MOVES_MAX and now() < deadline else None
                if next_one is None and len(problems) == 1:
                    raise
            if next_one is None:
                raise KithError.from_wire(why(problems))
            log("info", f"a question goes on at {next_one.id}: {problems[-1].message}")
            asked = next_one

    async def _once(
        self,
        route: Route,
        request: AskedT,
        here: Callable[[EngineDoor, AskedT], Awaitable[Reply]],
        there: Callable[["mesh_pb2_grpc.MeshAsyncStub", AskedT, str, float], Awaitable[Reply]],
        within_s: float,
    ) -> Reply:
        if route.agent.node_id == self._replica.me:
            try:
                async with asyncio.timeout(within_s):
                    return await here(self._engine.of(route.agent.agent), request)
            except TimeoutError:
                message = "the answer took too long"
                raise KithError("timed-out", message, "Ask for less.", ExitCode.UNAVAILABLE) from None
        stub = self._links.stub(NodeId(route.agent.node_id))
        if stub is None:
            raise went_away(route)
        with calling(lambda: went_away(route)):
            return await there(stub, request, route.agent.agent, within_s)

    def _next(self, route: Route, need: TaskNeed, failed: Collection[str]) -> Route | None:
        """Another agent with the weights of `route`, among those that were asked for."""
        found = self._routes(need, route.model_asked, route.node_asked)
        alike = (one for one in found if route.weights and one.weights == route.weights and one.id not in failed)
        return next(alike, None)

    def _routes(self, need: TaskNeed, model: str, node: str) -> list[Route]:
        """All agents that can do it, the cheapest first; a tie stays here."""
        found: list[tuple[float, bool, Route]] = []
        for node_id, name, agent in agents_named(self._replica, model, node):
            load = self._load(node_id, agent)
            if need.ability == "embed":
                load = replace(load, context_tokens=0)  # each text has a context of its own
            terms = cost_terms(load, need)
            if terms is None or self._replica.membership.load_of(node_id).engine_stalled:
                continue
            route = Route(
                common_pb2.AgentRef(node_id=node_id, agent=agent.agent),
                name,
                agent.model,
                sum(terms.values()),
                weights=weights_of(agent),
                model_asked=model,
                node_asked=node,
            )
            found.append((route.cost_s, node_id != self._replica.me, route))
        return [route for _, _, route in sorted(found, key=lambda entry: entry[:2])]


def _embedding(texts: Sequence[str]) -> TaskNeed:
    return TaskNeed("embed", estimated_tokens(sum(map(len, texts))), 0, ability="embed")


def _scoring(request: engine_pb2.ScoreRequest) -> TaskNeed:
    """The prompt is read once, and each continuation after it."""
    characters = len(request.prompt) + sum(len(message.content) for message in request.messages)
    longest = max(map(len, request.continuations), default=0)
    return TaskNeed("score", estimated_tokens(characters + longest), 0, ability="score")
