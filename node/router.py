"""Interactive chat: the node that is asked picks the best node by the same costs as jobs, and streams from it.

Idea: an agent's cost is what it has to do already, reading the prompt less what it holds of it, and writing the
answer. What it has to do is what its node told last, or what this router itself has under way there, whichever is more:
what was just sent is in nobody's beat yet. What it holds of a prompt this router knows from what it sent where
(mesh/prefixes.py). A dialogue therefore stays where it is, until the queue there costs more than reading it anew
elsewhere, or moving its KV (kv_moves.py).

One answer may need several agents; mesh/answer.py decides when.

Does not: plan for others. Two routers that send to the same node learn of each other from its load.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Collection, Hashable
from dataclasses import dataclass, field, replace
from itertools import count

from mesh.agent_load import load_of_agent
from mesh.answer import Answer, Choice
from mesh.effects import AgentState
from mesh.identity import NodeId
from mesh.prefixes import Block, Prefixes, blocks_of
from mesh.rate import Rate
from mesh.replica import Replica
from mesh.wire import common_pb2, engine_pb2, facts_pb2, membership_pb2, mesh_pb2
from node import clock
from node.abilities import needed
from node.answering import Answering
from node.denied import node_denied
from node.engine_door import EngineDoor
from node.errors import ExitCode, KithError
from node.kv_moves import MOVE_TOKENS_MIN, KvMoves, kv_kind
from node.leader import agent_id, load_of
from node.limits import ANSWER_WITHIN_S, DEADLINE_MARGIN_S, OUTPUT_TOKENS_MAX
from node.links import Links
from node.questions import Questions
from node.route import (
    CHARACTERS_PER_TOKEN,
    CHARACTERS_PER_TOKEN_MOST,
    Route,
    agents_named,
    estimated_tokens,
    weights_of,
    went_away,
)
from node.rpc import calling
from solver.costs import AgentLoad, Cached, TaskNeed, cost_terms, rates, why_not

#: Output assumed for the cost where the client set no limit.
OUTPUT_TOKENS_GUESS = 256
#: Second attempts, for an agent that is late, of all answers: a part of them, and so many at once after a quiet time.
#: Threat: a mesh that is slow because it has too much to do is given more by its own impatience.
HEDGED_PART, HEDGES_BURST = 0.1, 4.0
#: What a node told of itself may be so old, seconds: it may still count what this router had there.
TOLD_WITHIN_S = 1.5
#: Of those that ended, so many are remembered.
ENDED_MAX = 256
#: Tokens of a prompt that an engine reads between two tokens of an answer (llama_loop.BATCH_TOKENS).
STEP_TOKENS = 128


@dataclass
class _UnderWay:
    """A stream that this router has open."""

    agent: str
    prompt_tokens: int
    output_tokens: int


@dataclass
class _Asked:
    """One answer's request, as far as routing needs it."""

    request: engine_pb2.GenerateRequest
    route: Route
    blocks: list[Block]
    routes: dict[str, Route] = field(default_factory=dict)


class Router:
    def __init__(
        self,
        replica: Replica,
        engine: EngineDoor,
        links: Links,
        kv: KvMoves | None = None,
        prefixes: Prefixes | None = None,
    ) -> None:
        self._replica = replica
        self._engine = engine
        self._links = links
        self._kv = kv
        self.prefixes = prefixes or Prefixes()
        self.questions = Questions(replica, engine, links, self._load)
        self._under_way: dict[int, _UnderWay] = {}
        self._ended: deque[tuple[float, str]] = deque(maxlen=ENDED_MAX)  # when, agent
        self._numbers = count()
        self._answers = 0
        #: Its time is the number of answers.
        self._hedges = Rate(HEDGED_PART, HEDGES_BURST)

    def choose(self, request: engine_pb2.GenerateRequest, model: str = "", node: str = "") -> Route:
        """The cheapest agent. `model` and `node` (name or id prefix) narrow the choice. Raises `KithError`."""
        routes, reasons = self.routes(request, model, node)
        if not routes:
            raise self._nobody(request, model, node, reasons)
        return routes[0]

    def routes(
        self,
        request: engine_pb2.GenerateRequest,
        model: str = "",
        node: str = "",
        without: Collection[str] = (),
        like: str = "",
    ) -> tuple[list[Route], list[str]]:
        """All agents that can serve it but `without`, the cheapest first, those of the model `like` before others,
        and last whose context may be too small: their engines know it. And why the rest can not."""
        blocks = blocks_of(_parts(request))
        need, least = need_of(request), need_of(request, CHARACTERS_PER_TOKEN_MOST)
        found: list[tuple[bool, bool, float, str, Route]] = []
        reasons: list[str] = []
        agents = agents_named(self._replica, model, node)
        # Whoever is named answers; it may take KV from anyone.
        holders = self._holders(agents_named(self._replica, "", ""), blocks, need.prompt_tokens, without)
        for node_id, name, agent in agents:
            load = self._load(node_id, agent)
            ref = common_pb2.AgentRef(node_id=node_id, agent=agent.agent)
            if agent_id(node_id, agent.agent) in without:
                continue
            reason = why_not(load, least)
            if request.adapter and request.adapter not in agent.adapters:
                reason = f"it has no adapter {request.adapter!r}"
            if self._replica.membership.load_of(node_id).engine_stalled:
                reason = "its engine stands still"
            if reason:
                reasons.append(f"{name}: {reason}")
                continue
            own = int(need.prompt_tokens * self.prefixes.held(blocks, load.agent_id, capacity_of(agent)))
            prefill, decode = rates(load)
            holder, cached = self._cheapest_source(node_id, agent, own, holders, need.prompt_tokens, prefill)
            may_not_fit = bool(why_not(load, need))
            terms = cost_terms(replace(load, context_tokens=0), need, cached)
            assert terms is not None
            moves = not request.adapter and cached.moves(need.prompt_tokens, prefill)
            busy = max(self._told(node_id, agent).requests, self._open_at(load.agent_id))
            waits = load.queued_output_tokens / decode if busy >= agent.slots else 0.0
            route = Route(
                ref,
                name,
                agent.model,
                sum(terms.values()),
                first_token_s=waits + load.queued_prompt_tokens / prefill + terms.get("load", 0.0) + terms["prefill"],
                step_s=STEP_TOKENS / prefill if agent.backend == "llama" else 1 / decode,
                vocabulary=agent.vocabulary_sha256,
                capacity_tokens=capacity_of(agent),
                kv_holder=holder if moves else "",
                kv_tokens=cached.elsewhere_tokens if moves else 0,
                weights=weights_of(agent),
                model_asked=model,
                node_asked=node,
            )
            # Ties go to this node itself: no hop is cheaper than one.
            tie = "" if node_id == self._replica.me else node_id
            found.append((may_not_fit, bool(like) and agent.model != like, route.cost_s, tie, route))
        return [entry[-1] for entry in sorted(found, key=lambda entry: entry[:-1])], reasons

    async def generate(
        self,
        route: Route,
        request: engine_pb2.GenerateRequest,
        who: Hashable = "local",
        within_s: float | None = None,
    ) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
        """Stream from the routed agent, and from others where it is late or gone. Raises `KithError`; closing the
        iterator cancels there too.

        Args:
            who: on whose behalf, for the fair queue at this node's engine.
            within_s: what is left of the asker's time; None: it named none.
        """
        within_s = min(ANSWER_WITHIN_S, ANSWER_WITHIN_S if within_s is None else within_s - DEADLINE_MARGIN_S)
        deadline = asyncio.get_running_loop().time() + within_s
        self._answers += 1
        asked = _Asked(request, route, blocks_of(_parts(request)), {route.id: route})
        wanted = engine_pb2.GenerateRequest()
        wanted.CopyFrom(request)
        wanted.want_tokens = True  # what another agent can go on from

        def pick(request: engine_pb2.GenerateRequest, without: frozenset[str], like: Choice | None) -> Choice | None:
            routes, _ = self.routes(request, route.model_asked, route.node_asked, without, like.model if like else "")
            if not routes:
                return None
            asked.routes[routes[0].id] = routes[0]
            return routes[0].choice

        def open_stream(
            choice: Choice, rest: engine_pb2.GenerateRequest, left_s: float
        ) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
            return self._stream(asked, asked.routes[choice.agent], rest, who, left_s)

        answer = Answer(wanted, pick, self._may_hedge, deadline)
        answering = Answering(answer, open_stream, self._doubted)
        async with contextlib.aclosing(answering.events(route.choice)) as events:
            async for event in events:
                if event.HasField("delta") and not request.want_tokens:
                    event.delta.ClearField("token_ids")
                yield event

    # Agents and what they have to do

    def _load(self, node_id: NodeId, agent: facts_pb2.AgentProfile) -> AgentLoad:
        told = self._told(node_id, agent)
        name = agent_id(node_id, agent.agent)
        own = [one for one in self._under_way.values() if one.agent == name]
        # Of what others sent there, only the number is known.
        since = clock.now() - TOLD_WITHIN_S
        own_lately = sum(agent == name for at, agent in self._ended if at > since)
        others = max(0, told.requests - len(own) - own_lately)
        own_output = sum(one.output_tokens for one in own)
        return load_of(
            AgentState(
                agent=common_pb2.AgentRef(node_id=node_id, agent=agent.agent),
                profile=agent,
                slots_free=1,
                queued_prompt_tokens=max(told.queued_prompt_tokens, sum(one.prompt_tokens for one in own)),
                # Sequences in slots are decoded side by side.
                queued_output_tokens=max(told.queued_output_tokens, own_output + others * OUTPUT_TOKENS_GUESS)
                // max(1, agent.slots),
                draining=self._replica.membership.load_of(node_id).draining,
                load_wait_s=told.load_wait_seconds,
            )
        )

    def _told(self, node_id: NodeId, agent: facts_pb2.AgentProfile) -> membership_pb2.AgentLoad:
        return load_of_agent(self._replica.membership.load_of(node_id), agent.agent)

    def _open_at(self, agent: str) -> int:
        return sum(one.agent == agent for one in self._under_way.values())

    def _holders(
        self,
        agents: list[tuple[NodeId, str, facts_pb2.AgentProfile]],
        blocks: list[Block],
        prompt_tokens: int,
        without: Collection[str],
    ) -> list[tuple[NodeId, tuple[bytes, str], int]]:
        """Node, kind of KV and tokens of those that hold so much of the prompt that it is worth moving."""
        found = []
        for node_id, _, agent in agents:
            if (kind := kv_kind(agent)) is None or self._kv is None:
                continue
            name = agent_id(node_id, agent.agent)
            if name in without or self._replica.membership.load_of(node_id).engine_stalled:
                continue  # who fell silent would be waited for
            tokens = int(prompt_tokens * self.prefixes.held(blocks, name, capacity_of(agent)))
            if tokens >= MOVE_TOKENS_MIN:
                found.append((node_id, kind, tokens))
        return found

    def _cheapest_source(
        self,
        taker: NodeId,
        agent: facts_pb2.AgentProfile,
        own_tokens: int,
        holders: list[tuple[NodeId, tuple[bytes, str], int]],
        prompt_tokens: int,
        prefill_tokens_per_s: float,
    ) -> tuple[str, Cached]:
        """From whom `taker` has what it need not read of the prompt; empty: from nobody but itself."""
        sources = [("", Cached(own_tokens))]
        own_kind = kv_kind(agent)
        for holder, kind, tokens in holders:
            if self._kv is not None and kind == own_kind and holder != taker and tokens > own_tokens:
                sources.append((holder, Cached(own_tokens, tokens, self._kv.move_s(tokens, agent, holder, taker))))
        return min(sources, key=lambda source: source[1].prefill_s(prompt_tokens, prefill_tokens_per_s))

    def _doubted(self, agents: Collection[Choice], /) -> set[str]:
        membership = self._replica.membership
        view = membership.view()
        found = set()
        for choice in agents:
            node_id = NodeId(choice.agent.partition("/")[0])
            if node_id not in view or membership.load_of(node_id).engine_stalled:
                found.add(choice.agent)
        return found

    def _may_hedge(self) -> bool:
        return self._hedges.wait_s("", float(self._answers)) == 0.0

    # Streams

    async def _stream(
        self, asked: _Asked, route: Route, request: engine_pb2.GenerateRequest, who: Hashable, within_s: float
    ) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
        """One attempt, with what is learned from it."""
        need = need_of(request)
        expected = self.prefixes.expected(asked.blocks, route.id, route.capacity_tokens)
        self.prefixes.sent(asked.blocks, route.id, int(need.prompt_tokens * (1.0 - expected)) + need.output_tokens)
        number = next(self._numbers)
        under_way = self._under_way[number] = _UnderWay(route.id, need.prompt_tokens, need.output_tokens)
        text = ""
        try:
            local = route.agent.node_id == self._replica.me
            stream = self._here(route, request, who) if local else self._there(route, request, within_s)
            async with contextlib.aclosing(stream) as events:
                async for event in events:
                    match event.WhichOneof("event"):
                        case "started" if route.kv_holder:
                            if self._kv is not None:
                                holder, taker = NodeId(route.kv_holder), NodeId(route.agent.node_id)
                                self._kv.told(holder, taker, route.kv_tokens, event.started)
                        case "started":
                            started = event.started
                            part = started.cached_tokens / max(1, started.prompt_tokens)
                            self.prefixes.answered(route.id, expected, part)
                        case "delta":
                            text += event.delta.text
                            under_way.prompt_tokens = 0
                            under_way.output_tokens = max(0, under_way.output_tokens - event.delta.tokens)
                        case "finished" if request.messages:
                            said = request.continue_from + text
                            after = blocks_of([*_parts(request, answer=False), f"assistant\0{said}"])
                            self.prefixes.sent(after, route.id, 0)
                    yield event
        finally:
            del self._under_way[number]
            self._ended.append((clock.now(), route.id))

    async def _here(
        self, route: Route, request: engine_pb2.GenerateRequest, who: Hashable
    ) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
        if self._kv is not None and route.kv_holder:
            await self._kv.bring(NodeId(route.kv_holder), request, route.kv_tokens)
        async with contextlib.aclosing(self._engine.of(route.agent.agent).generate(who, request)) as events:
            async for event in events:
                yield event

    async def _there(
        self, route: Route, request: engine_pb2.GenerateRequest, within_s: float
    ) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
        stub = self._links.stub(NodeId(route.agent.node_id))
        if stub is None:
            raise went_away(route)
        asked = mesh_pb2.GenerateCall(
            request=request,
            agent=route.agent.agent,
            hop_count=1,
            kv_holder=route.kv_holder,
            kv_tokens=route.kv_tokens,
        )
        with calling(lambda: went_away(route)):
            call = stub.Generate(asked, timeout=within_s + DEADLINE_MARGIN_S)
            try:
                async for event in call:
                    yield event
            finally:
                call.cancel()

    def _nobody(self, request: engine_pb2.GenerateRequest, model: str, node: str, reasons: list[str]) -> KithError:
        if self._replica.denied:
            return node_denied(self._replica)
        if node and not reasons:
            return KithError("node-unknown", f"no live node is called {node!r}", "`kith nodes` lists them.")
        if model and not reasons:
            return KithError(
                "model-unknown", f"no live node serves the model {model!r}", "`kith nodes` lists the models."
            )
        contexts = [agent.context_tokens for _, _, agent in agents_named(self._replica, model, node)]
        need = need_of(request, CHARACTERS_PER_TOKEN_MOST)
        needed = need.prompt_tokens + need.output_tokens
        if contexts and all(0 < tokens < needed for tokens in contexts):
            return KithError(
                "prompt-too-long",
                f"the request needs {needed:,} tokens or more with its answer; "
                f"the largest context holds {max(contexts):,}",
                "Send less text, or allow for a shorter answer.",
                ExitCode.BAD_INPUT,
            )
        why = "; ".join(reasons) or "no engine is ready yet"
        return KithError("no-agent", f"no agent can answer now: {why}", "Wait a moment; `kith status` tells more.")


def need_of(request: engine_pb2.GenerateRequest, characters_per_token: float = CHARACTERS_PER_TOKEN) -> TaskNeed:
    """What a request asks of an agent; the prompt's tokens are estimated from its length."""
    characters = len(request.prompt) + len(request.continue_from)
    characters += sum(len(message.content) for message in request.messages)
    return TaskNeed(
        task_id="chat",
        prompt_tokens=estimated_tokens(characters, characters_per_token) + len(request.continue_tokens),
        output_tokens=min(request.max_tokens, OUTPUT_TOKENS_MAX) or OUTPUT_TOKENS_GUESS,
        ability="chat" if request.messages else "generate",
        abilities=needed(request),
    )


def capacity_of(agent: facts_pb2.AgentProfile) -> int:
    """Tokens that its cache holds; 0: not known."""
    return agent.context_tokens * max(1, agent.slots)


def _parts(request: engine_pb2.GenerateRequest, answer: bool = True) -> list[str]:
    """The prompt as `blocks_of` wants it. `answer`: with what of the answer is given."""
    parts = [f"{message.role}\0{message.content}" for message in request.messages] or [request.prompt]
    if request.adapter or request.tools_json:  # they change what is held of all of it
        parts[0] = f"{request.adapter}\0{request.tools_json}\0{parts[0]}"
    if answer and request.continue_from:
        parts.append(f"assistant\0{request.continue_from}")
    return parts
