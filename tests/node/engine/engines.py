"""Engines for tests: started, watched through `on_state`, and always stopped."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mesh.wire import engine_pb2
from node.config import NodeConfig
from node.engine.api import Engine
from node.engine.process import EngineProcess

#: Longest wait for anything that must happen, in seconds.
PATIENCE = 60.0


class Watched:
    """An engine, the states it went through and the lines it logged."""

    def __init__(self, config: NodeConfig, model_path: Path | None, **options: Any) -> None:
        self.states: list[str] = []
        self.lines: list[str] = []
        self._changed = asyncio.Condition()
        self.engine = EngineProcess(config, model_path, self.lines.append, on_state=self._on_state, **options)
        as_the_daemon_sees_it: Engine = self.engine  # mypy checks the protocol here
        assert as_the_daemon_sees_it.state == "starting"
        self._notifying: set[asyncio.Task[None]] = set()

    def _on_state(self) -> None:
        self.states.append(self.engine.state)
        task = asyncio.ensure_future(self._notify())
        self._notifying.add(task)
        task.add_done_callback(self._notifying.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a change of state after which `condition` holds."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(condition)

    async def until_slots_busy(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while not (await self.engine.stats()).slots_busy:
                pass


@asynccontextmanager
async def running(model_path: Path | None = None, **settings: Any) -> AsyncIterator[Watched]:
    """A started engine: echo, or llama where a model is given. `settings` are NodeConfig's or EngineProcess's."""
    of_process = ("frozen_seconds", "hang_seconds", "memory_limit_bytes")
    options = {name: settings.pop(name) for name in of_process if name in settings}
    kind = "llama" if model_path else "echo"
    config = replace(NodeConfig(data_dir=Path("unused"), engine=kind, threads=1), **settings)
    watched = Watched(config, model_path, **options)
    try:
        await watched.engine.start()
        yield watched
    finally:
        await watched.engine.stop()


def ask(text: str, max_tokens: int = 0, **sampling: Any) -> engine_pb2.GenerateRequest:
    return engine_pb2.GenerateRequest(
        messages=[engine_pb2.ChatMessage(role="user", content=text)],
        max_tokens=max_tokens,
        sampling=engine_pb2.Sampling(**sampling),
    )


async def answer(engine: EngineProcess, request: engine_pb2.GenerateRequest) -> tuple[str, str, int]:
    """Text, finish reason and cached prompt tokens."""
    parts: list[str] = []
    async for event in engine.generate(request):
        if event.WhichOneof("event") == "delta":
            parts.append(event.delta.text)
    return "".join(parts), event.finished.reason, event.finished.usage.cached_tokens


async def idle(engine: EngineProcess) -> engine_pb2.EngineStats:
    """Wait until no slot is busy."""
    async with asyncio.timeout(PATIENCE):
        while True:
            stats = await engine.stats()
            if not stats.slots_busy and not stats.queue_length:
                return stats
