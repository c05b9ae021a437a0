"""Interactive chat: the node that is asked picks the best node by the same costs as jobs, and streams from it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Hashable
from dataclasses import dataclass
from typing import TypeVar

import grpc.aio

from mesh.effects import AgentState
from mesh.identity import NodeId
from mesh.replica import Replica
from mesh.wire import common_pb2, engine_pb2, mesh_pb2
from node.engine_door import EngineDoor
from node.errors import ExitCode, KithError
from node.leader import load_of
from node.limits import ANSWER_WITHIN_S, DEADLINE_MARGIN_S
from node.links import Links
from node.rpc import to_kith_error
from solver.costs import TaskNeed, cost_terms, why_not

#: Output assumed for the cost where the client set no limit.
OUTPUT_TOKENS_GUESS = 256
#: Characters a token, for estimating a prompt without asking the engine.
CHARACTERS_PER_TOKEN = 3.5

Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Route:
    agent: common_pb2.AgentRef
    node_name: str
    model: str
    cost_s: float


class Router:
    def __init__(self, replica: Replica, engine: EngineDoor, links: Links) -> None:
        self._replica = replica
        self._engine = engine
        self._links = links

    def choose(self, request: engine_pb2.GenerateRequest, model: str = "", node: str = "") -> Route:
        """The cheapest agent. `model` and `node` (name or id prefix) narrow the choice. Raises `KithError`."""
        characters = len(request.prompt) + sum(len(message.content) for message in request.messages)
        need = TaskNeed(
            task_id="chat",
            prompt_tokens=int(characters / CHARACTERS_PER_TOKEN) + 1,
            output_tokens=request.max_tokens or OUTPUT_TOKENS_GUESS,
            ability="chat" if request.messages else "generate",
        )
        routes: list[tuple[float, str, Route]] = []
        reasons: list[str] = []
        for node_id in sorted(self._replica.membership.view()):
            profile = self._replica.profiles.of(node_id)
            if profile is None or not _is(node_id, profile.name, node):
                continue
            for agent in profile.agents:
                if model and agent.model != model:
                    continue
                load = self._replica.membership.load_of(node_id)
                ref = common_pb2.AgentRef(node_id=node_id, agent=agent.agent)
                candidate = load_of(
                    AgentState(
                        agent=ref,
                        profile=agent,
                        slots_free=1,
                        queued_prompt_tokens=load.queued_prompt_tokens,
                        queued_output_tokens=load.queued_output_tokens,
                        draining=load.draining,
                    )
                )
                terms = cost_terms(candidate, need)
                if terms is None:
                    reasons.append(f"{profile.name}: {why_not(candidate, need)}")
                    continue
                cost = sum(terms.values())
                # Ties go to this node itself: no hop is cheaper than one.
                tie = "" if node_id == self._replica.me else node_id
                routes.append((cost, tie, Route(ref, profile.name, agent.model, cost)))
        if not routes:
            raise self._nobody(model, node, reasons)
        return min(routes, key=lambda entry: entry[:2])[2]

    async def generate(
        self,
        route: Route,
        request: engine_pb2.GenerateRequest,
        who: Hashable = "local",
        within_s: float | None = None,
    ) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
        """Stream from the routed agent. Raises `KithError`; closing the iterator cancels there too.

        Args:
            who: on whose behalf, for the fair queue at this node's engine.
            within_s: what is left of the asker's time; None: it named none.
        """
        within_s = min(ANSWER_WITHIN_S, ANSWER_WITHIN_S if within_s is None else within_s - DEADLINE_MARGIN_S)
        deadline = asyncio.get_running_loop().time() + within_s
        if route.agent.node_id == self._replica.me:
            async with contextlib.aclosing(self._engine.generate(who, request)) as events:
                while (event := await _next_by(deadline, events)) is not None:
                    yield event
            return

        def unreachable() -> KithError:
            return KithError(
                "node-unreachable",
                f"{route.node_name} went away while it answered",
                "Ask again: another node answers then.",
                ExitCode.UNAVAILABLE,
            )

        stub = self._links.stub(NodeId(route.agent.node_id))
        if stub is None:
            raise unreachable()
        call = stub.Generate(
            mesh_pb2.GenerateCall(request=request, agent=route.agent.agent, hop_count=1), timeout=within_s
        )
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise to_kith_error(error, unreachable) from error
        finally:
            call.cancel()

    def choose_embedder(self, model: str = "", node: str = "") -> Route:
        """The least busy agent that embeds; all that it is chosen from have the same model. Raises `KithError`."""
        routes = []
        for node_id in sorted(self._replica.membership.view()):
            profile, load = self._replica.profiles.of(node_id), self._replica.membership.load_of(node_id)
            if profile is None or load.draining or not _is(node_id, profile.name, node):
                continue
            for agent in profile.agents:
                if "embed" in agent.abilities and model in ("", agent.model):
                    ref = common_pb2.AgentRef(node_id=node_id, agent=agent.agent)
                    routes.append(Route(ref, profile.name, agent.model, float(load.queued_prompt_tokens)))
        if not routes:
            raise KithError("no-agent", "no live agent can embed texts", "`kith nodes` tells what each can.")
        if len({route.model for route in routes}) > 1:
            raise KithError(
                "bad-request",
                "several models embed here, and their vectors can not be compared",
                f"Name one: {', '.join(sorted({route.model for route in routes}))}.",
                ExitCode.BAD_INPUT,
            )
        return min(routes, key=lambda route: (route.cost_s, route.agent.node_id != self._replica.me))

    async def embed(
        self, route: Route, request: engine_pb2.EmbedRequest, who: Hashable = "local"
    ) -> engine_pb2.EmbedReply:
        """Raises `KithError`."""
        if route.agent.node_id == self._replica.me:
            return await _in_time(self._engine.embed(who, request))
        stub = self._links.stub(NodeId(route.agent.node_id))
        if stub is None:
            raise _went_away(route)
        call = mesh_pb2.EmbedCall(request=request, agent=route.agent.agent, hop_count=1)
        return await _answered(stub.Embed(call, timeout=ANSWER_WITHIN_S), route)

    async def score(
        self, route: Route, request: engine_pb2.ScoreRequest, who: Hashable = "local"
    ) -> engine_pb2.ScoreReply:
        """Raises `KithError`."""
        if route.agent.node_id == self._replica.me:
            return await _in_time(self._engine.score(who, request))
        stub = self._links.stub(NodeId(route.agent.node_id))
        if stub is None:
            raise _went_away(route)
        call = mesh_pb2.ScoreCall(request=request, agent=route.agent.agent, hop_count=1)
        return await _answered(stub.Score(call, timeout=ANSWER_WITHIN_S), route)

    def _nobody(self, model: str, node: str, reasons: list[str]) -> KithError:
        if node and not reasons:
            return KithError("node-unknown", f"no live node is called {node!r}", "`kith nodes` lists them.")
        if model and not reasons:
            return KithError(
                "model-unknown", f"no live node serves the model {model!r}", "`kith nodes` lists the models."
            )
        why = "; ".join(reasons) or "no engine is ready yet"
        return KithError("no-agent", f"no agent can answer now: {why}", "Wait a moment; `kith status` tells more.")


async def _next_by(
    deadline: float, events: AsyncGenerator[engine_pb2.GenerateEvent, None]
) -> engine_pb2.GenerateEvent | None:
    """The next event, None at the end. Raises `KithError` (`timed-out`) at `deadline`, in the loop's time."""
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(events, None)
    except TimeoutError:
        raise KithError("timed-out", "the answer took too long", "Ask for less.", ExitCode.UNAVAILABLE) from None


async def _in_time(answer: Awaitable[Reply]) -> Reply:
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            return await answer
    except TimeoutError:
        raise KithError("timed-out", "the answer took too long", "Ask for less.", ExitCode.UNAVAILABLE) from None


async def _answered(call: Awaitable[Reply], route: Route) -> Reply:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise to_kith_error(error, lambda: _went_away(route)) from error


def _went_away(route: Route) -> KithError:
    return KithError(
        "node-unreachable",
        f"{route.node_name} went away while it answered",
        "Ask again: another node answers then.",
        ExitCode.UNAVAILABLE,
    )


def _is(node_id: str, name: str, wanted: str) -> bool:
    return not wanted or name == wanted or (len(wanted) >= 4 and node_id.startswith(wanted))
