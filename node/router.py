"""Interactive chat: the node that is asked picks the best node by the same costs as jobs, and streams from it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Hashable
from dataclasses import dataclass

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
            async with contextlib.aclosing(self._engine.of(route.agent.agent).generate(who, request)) as events:
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


def _is(node_id: str, name: str, wanted: str) -> bool:
    return not wanted or name == wanted or (len(wanted) >= 4 and node_id.startswith(wanted))
