"""KV of a prompt's beginning, from the engine of the node that has it to the one that needs it.

Idea: reading a long prompt takes an engine seconds; what it computes from it is some megabytes, and a LAN carries those
in milliseconds. The router names a holder where that is the cheaper by its costs; the node that answers asks it for
what it holds, takes it in as a cached prefix, and then generates as always. It waits for it no longer than reading
would take, and whatever goes wrong, it reads: trying at most doubles the time of reading, or adds a quarter of a
second.

What a move took is learned by pair of nodes (mesh/kv_costs.py), by the node that took it and, from the start of the
answer, by the one that asked it to. Each of them reads where it thinks that quicker. That a holder did not have what it
was thought to have is learned by whoever thought so.

Between members only, and only where model file and KV layout are the same. The engine's child process checks sizes and
hashes, and takes numbers only (node/engine/kv_state.py): a member that sends wrong ones can spoil answers.

Not guaranteed: that anything is saved. The holder's cache may have moved on.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, NamedTuple

from mesh.identity import NodeId
from mesh.kv_costs import KvCosts
from mesh.wire import engine_pb2, facts_pb2, mesh_pb2
from node import clock
from node.engine_door import EngineDoor
from node.engines import FIRST
from node.errors import ExitCode, KithError
from node.logs import log
from node.once import Once
from node.rpc import calling, not_reached

if TYPE_CHECKING:
    from mesh.wire import mesh_pb2_grpc

#: A shorter prefix is read: the call alone costs as much.
MOVE_TOKENS_MIN = 128
#: Until a state of the model was seen, bytes of one token: so many times the root of the number of parameters, which is
#: right for 135 million (23 kB) and half as much again for 8 billion (131 kB).
BYTES_PER_ROOT_PARAMETER = 2.0
BYTES_PER_TOKEN_UNKNOWN = 100e3
#: Models of which the size of a token is kept.
KINDS_MAX = 64
CHUNK_BYTES = 1 << 20
#: Characters of why a move failed, in the log.
WHY_MAX = 200
#: Of one state. Threat: a member that announces more than the memory holds.
KV_BYTES_MAX = 512 << 20
#: Exports, and imports, at once; each holds a whole state.
MOVES_AT_ONCE = 2
#: A move is given up after this, and after what reading would take, seconds.
MOVE_WITHIN_S_MIN, MOVE_WITHIN_S_MAX = 0.25, 15.0
#: A move is not said to have taken less, seconds: 0 says that none was tried.
SECONDS_MIN = 1e-6
#: That KV did not come from a holder is logged again after this.
LOG_AGAIN_S = 60.0

#: Code of a holder's answer that it has nothing of the prompt.
KV_MISSING = "kv-missing"

Stub = Callable[[NodeId], "mesh_pb2_grpc.MeshAsyncStub | None"]


class Brought(NamedTuple):
    """What came of a wish to have KV here. 0 seconds: it was not tried."""

    tokens: int = 0
    seconds: float = 0.0
    not_now: bool = False  # not tried, for a reason of this node's own and of the moment: it says nothing of the pair


class KvMoves:
    def __init__(
        self,
        me: NodeId,
        engine: EngineDoor,
        stub: Stub,
        own: Callable[[], facts_pb2.NodeProfile],
        profile_of: Callable[[NodeId], facts_pb2.NodeProfile | None],
    ) -> None:
        """`own`: this node's profile; `profile_of`: another one's, as far as it is known."""
        self._me = me
        self._engine = engine
        self._stub = stub
        self._own = own
        self._profile_of = profile_of
        self._costs = KvCosts()
        self._bytes_per_token: dict[tuple[bytes, str], float] = {}
        self._exporting = self._importing = 0
        self._once = Once(LOG_AGAIN_S)

    def move_s(self, tokens: int, agent: facts_pb2.AgentProfile, holder: NodeId, taker: NodeId) -> float:
        """What it should cost to take so many tokens of the agent's KV from one node to the other, with what fails."""
        return self._costs.of(holder, taker, clock.now()).seconds(self._size(tokens, agent))

    def told(
        self, holder: NodeId, taker: NodeId, expected_tokens: int, started: engine_pb2.GenerateEvent.Started
    ) -> None:
        """What an answer says that was to begin with so many tokens from `holder`."""
        profile = self._profile_of(taker)
        agent = next((agent for agent in profile.agents if _exchanges(agent)), None) if profile is not None else None
        if taker == self._me or agent is None or started.kv_not_now:
            return  # what came here, `bring` has learned from
        tried = started.kv_seconds > 0.0  # else it thought reading quicker, or is of a release that does not say
        came = min(started.kv_tokens, started.cached_tokens) if tried else started.cached_tokens
        expected = min(expected_tokens, started.prompt_tokens)
        self._learn(holder, taker, agent, expected, came, started.kv_seconds if tried else None)

    # This node needs it

    async def bring(
        self, holder: NodeId, request: engine_pb2.GenerateRequest, tokens: int, *, own_belief: bool = True
    ) -> Brought:
        """Have what `holder` has of the request's prompt here before it is read. Never an error: what does not come is
        read.

        Args:
            tokens: as many are expected.
            own_belief: this node expects them; else another one that asks it, and may be wrong or lie.
        """
        own = next((agent for agent in self._own().agents if _exchanges(agent)), None)
        profile = self._profile_of(holder)
        if own is None or profile is None or self._stub(holder) is None:
            return Brought()
        theirs = next((agent for agent in profile.agents if _exchanges(agent) and _kind(agent) == _kind(own)), None)
        if theirs is None:
            return Brought()
        reading_s = tokens / own.prefill_tokens_per_s if own.prefill_tokens_per_s > 0 else MOVE_WITHIN_S_MAX
        if self.move_s(tokens, own, holder, self._me) >= reading_s:
            return Brought()  # the node that chose has not seen yet how long it takes from there
        if self._importing >= MOVES_AT_ONCE:
            return Brought(not_now=True)
        now = asyncio.get_running_loop().time
        self._importing += 1
        began = None
        came, state, missing = 0, b"", False
        try:
            async with asyncio.timeout(min(MOVE_WITHIN_S_MAX, max(MOVE_WITHIN_S_MIN, reading_s))):
                prompt = await self._engine.prompt_tokens(request)
                tokens = min(tokens, len(prompt))  # what others name is an estimate, if not a lie
                began = now()
                held, state = await self._fetch(holder, theirs, prompt)
                await self._engine.import_kv(engine_pb2.ImportKvRequest(tokens=prompt[:held], state=state))
                came = held
        except (KithError, TimeoutError) as error:
            missing = isinstance(error, KithError) and error.code == KV_MISSING
            why = error.message if isinstance(error, KithError) else "it took too long"
            # Callers name the holder, and it says why: neither must fill the log.
            if began is None and self._once.due(self._me):
                log("info", f"no KV was asked for: the engine here did not tell the prompt's tokens: {why[:WHY_MAX]}")
            elif began is not None and self._once.due(holder):
                log("info", f"the KV of {tokens} tokens did not come from {holder}: {why[:WHY_MAX]}")
        except asyncio.CancelledError:
            # Where it stalls, the answer mostly comes from elsewhere before the time here is over.
            if began is not None and now() - began > self._takes_s(tokens, own, holder):
                self._learn(holder, self._me, own, tokens, 0, now() - began)
            raise
        finally:
            self._importing -= 1
        if began is None:
            return Brought(not_now=True)  # that is no fault of the holder's
        took = max(now() - began, SECONDS_MIN)
        if not own_belief:
            # Threat: any member makes any pair dear by naming holders of prompts that they never read.
            if missing:
                return Brought(0, took)
            tokens = came or tokens
        if came and (len(self._bytes_per_token) < KINDS_MAX or _kind(own) in self._bytes_per_token):
            self._bytes_per_token[_kind(own)] = len(state) / came
        self._learn(holder, self._me, own, tokens, came, took)
        return Brought(came, took)

    def _takes_s(self, tokens: int, agent: facts_pb2.AgentProfile, holder: NodeId) -> float:
        """A move from there to here that succeeds, as far as it is known."""
        return self._costs.of(holder, self._me, clock.now()).takes_s(self._size(tokens, agent))

    def _learn(
        self,
        holder: NodeId,
        taker: NodeId,
        agent: facts_pb2.AgentProfile,
        expected_tokens: int,
        came_tokens: int,
        seconds: float | None,
    ) -> None:
        self._costs.moved(
            holder,
            taker,
            clock.now(),
            size_bytes=self._size(came_tokens or expected_tokens, agent),
            seconds=seconds,
            came=came_tokens / max(1, expected_tokens),
        )

    def _size(self, tokens: int, agent: facts_pb2.AgentProfile) -> float:
        """Bytes of so many tokens' KV, as it was seen here."""
        guess = BYTES_PER_ROOT_PARAMETER * math.sqrt(agent.parameters) or BYTES_PER_TOKEN_UNKNOWN
        return tokens * self._bytes_per_token.get(_kind(agent), guess)

    async def _fetch(self, holder: NodeId, theirs: facts_pb2.AgentProfile, prompt: list[int]) -> tuple[int, bytes]:
        """How many of the prompt's first tokens, and their state. Raises `KithError`."""
        stub = self._stub(holder)
        if stub is None:
            raise not_reached()
        asked = mesh_pb2.FetchKvRequest(
            agent=theirs.agent, model_sha256=theirs.model_sha256, kv_layout=theirs.kv_layout, tokens=prompt
        )
        tokens = size = 0
        state = bytearray()
        with calling():
            call = stub.FetchKv(asked, timeout=MOVE_WITHIN_S_MAX)
            try:
                async for chunk in call:
                    if not state and not size:
                        tokens, size = chunk.tokens, chunk.size_bytes
                        if tokens > len(prompt) or size > KV_BYTES_MAX:
                            raise _bad("it announces more than was asked for")
                    state += chunk.data
                    if len(state) > size:
                        raise _bad("it sends more than it announced")
            finally:
                call.cancel()
        if len(state) != size:
            raise _bad("its end is missing")
        if not tokens:
            raise _bad("it is of no tokens")
        return tokens, bytes(state)

    # Another node needs it

    async def chunks(self, request: mesh_pb2.FetchKvRequest) -> AsyncGenerator[mesh_pb2.KvChunk, None]:
        """What this node's engine holds. Raises `KithError` (`kv-missing`, `busy`)."""
        own = [agent for agent in self._own().agents if agent.agent == request.agent and _exchanges(agent)]
        if not own or _kind(own[0]) != (request.model_sha256, request.kv_layout):
            raise _missing("no agent here has that model and layout")
        if own[0].context_tokens and len(request.tokens) > own[0].context_tokens:
            raise _missing("no prompt is that long")
        if self._exporting >= MOVES_AT_ONCE:
            raise KithError("busy", "others take KV from this node already", "Read it.", ExitCode.UNAVAILABLE, 0.5)
        self._exporting += 1
        try:
            held = await self._engine.export_kv(engine_pb2.ExportKvRequest(tokens=request.tokens))
            if not held.tokens or not held.state or len(held.state) > KV_BYTES_MAX:
                raise _missing("its engine holds nothing of it")
            state = held.state
            for start in range(0, len(state), CHUNK_BYTES):
                chunk = mesh_pb2.KvChunk(data=state[start : start + CHUNK_BYTES])
                if start == 0:
                    chunk.tokens, chunk.size_bytes = held.tokens, len(state)
                yield chunk
        finally:
            self._exporting -= 1


def kv_kind(agent: facts_pb2.AgentProfile) -> tuple[bytes, str] | None:
    """Agents of the same kind can exchange KV; None: with nobody."""
    return _kind(agent) if _exchanges(agent) else None


def _exchanges(agent: facts_pb2.AgentProfile) -> bool:
    """Of a node with several models only the first one's engine does: it is always loaded."""
    return agent.agent == FIRST and "kv" in agent.abilities and bool(agent.kv_layout) and bool(agent.model_sha256)


def _kind(agent: facts_pb2.AgentProfile) -> tuple[bytes, str]:
    return agent.model_sha256, agent.kv_layout


def _missing(why: str) -> KithError:
    return KithError(KV_MISSING, f"this node holds nothing of it: {why}", "Read it.", ExitCode.NOT_FOUND)


def _bad(why: str) -> KithError:
    return KithError("kv-damaged", f"the KV that came is not what was asked for: {why}", "It is read instead.")
