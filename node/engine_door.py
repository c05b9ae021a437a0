"""The engine as others reach it: peers, the local door and the HTTP door, each caller in its turn and within bounds.

Idea: what comes from outside goes through here before the engine sees it: its size is bounded, and it waits with the
others of its caller (turns.py). Tasks that the leader assigned do not: the machines count their slots. What waits here
is part of the request's time: of its usefulness, of its usage, and of the load that others are told.

Does not: count requests a second (callers.py, http/guard.py), or choose a node (router.py).
"""

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence

from mesh.wire import engine_pb2
from node.engine.api import Asked, Engine
from node.limits import NAME_CHARACTERS_MAX, bounded, check_prompt, check_texts, urgent
from node.turns import Turns
from node.waited import Wait, answered, generated


class EngineDoor:
    """All methods raise `KithError`, also `busy`, `prompt-too-long`, `too-late`. `who`: whose turn it is."""

    def __init__(self, engine: Engine, pick: Callable[[str], Engine] | None = None) -> None:
        """`pick`: the engine of an agent of this node, where it has several; else `engine` is everybody's."""
        self._engine = engine
        self._pick = pick
        self._doors: dict[str, EngineDoor] = {}
        self.turns = Turns(self._places, time.monotonic)
        self._counting = Turns(lambda: 1, time.monotonic)

    def of(self, agent: str) -> "EngineDoor":
        """The door of an agent, with a queue of its own. Raises `KithError` (`no-agent`)."""
        if self._is_mine(agent):
            return self
        if agent not in self._doors:
            assert self._pick is not None
            self._doors[agent] = EngineDoor(self._pick(agent))
        return self._doors[agent]

    def turns_of(self, agent: str) -> tuple[int, int]:
        """Requests for this agent that have their turn, and those that wait for one."""
        door = self if self._is_mine(agent) else self._doors.get(agent)
        return (door.turns.running, door.turns.waiting) if door is not None else (0, 0)

    async def generate(
        self, who: Hashable, request: engine_pb2.GenerateRequest
    ) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
        """As `Engine.generate`, when it is `who`'s turn."""
        request = bounded(request, self._context_tokens())
        async with contextlib.aclosing(generated(self._turn(who, request), self._engine, request)) as events:
            async for event in events:
                yield event

    async def score(self, who: Hashable, request: engine_pb2.ScoreRequest) -> engine_pb2.ScoreReply:
        check_prompt(request, self._context_tokens())
        request = urgent(request)
        return await answered(self._turn(who, request), request, self._engine.score)

    async def embed(self, who: Hashable, request: engine_pb2.EmbedRequest) -> engine_pb2.EmbedReply:
        check_texts(request.texts)
        request = urgent(request)
        return await answered(self._turn(who, request), request, self._engine.embed)

    async def count_tokens(self, who: Hashable, texts: Sequence[str]) -> list[int]:
        """It takes no slot, and the time of the engine's process: one at a time. Its size is that of one message."""
        check_texts(texts)
        async with self._counting.of(who, cost=max(1, sum(map(len, texts)))):
            return await self._engine.count_tokens(texts)

    async def prompt_tokens(self, request: engine_pb2.GenerateRequest) -> list[int]:
        check_prompt(request, self._context_tokens())
        return await self._engine.prompt_tokens(request)

    async def export_kv(self, request: engine_pb2.ExportKvRequest) -> engine_pb2.ExportKvReply:
        """Without a turn: it takes no slot."""
        return await self._engine.export_kv(request)

    async def import_kv(self, request: engine_pb2.ImportKvRequest) -> None:
        await self._engine.import_kv(request)

    def _turn(self, who: Hashable, request: Asked) -> Wait:
        """Its turn, which it waits for in its caller's name, also in the engine's own queue: what a caller says of
        itself would buy it another share."""
        request.owner = f"{who}"[:NAME_CHARACTERS_MAX]
        return self.turns.of(who, request.useful_seconds, request.priority, max(1, request.ByteSize()))

    def _is_mine(self, agent: str) -> bool:
        return self._pick is None or self._pick(agent) is self._engine

    def _places(self) -> int:
        return self._engine.loaded.slots if self._engine.loaded is not None else 1

    def _context_tokens(self) -> int:
        return self._engine.loaded.context_tokens if self._engine.loaded is not None else 0
