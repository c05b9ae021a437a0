"""The models that a node was told to host: their files found or fetched, and an engine for each.

Idea: what lies here is looked at before the doors open, so that a bad file ends the start. The rest comes beside the
node's work: what the Hub or the package index has, and the server that a node stands before. A machine may be up long
before its network, or before that server, and nobody sits at it; so what may pass is tried again, for ever, after
pauses that grow. What only the owner can mend (a file that is none, a licence to accept) is told once.

Does not: load or unload (engines.py), nor start again what ran and died (engine/process.py).
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from node import gguf, logs
from node.background import Background
from node.config import FILE_ENGINES, NodeConfig
from node.detached import detached
from node.engine.process import EngineProcess
from node.engines import Engines, engine_config, planned
from node.errors import KithError
from node.models.serving import Serving
from node.models.source import is_hub
from node.once import Once

#: The first pause, and the longest that it grows to by doubling, seconds: before a server is tried again, which costs a
#: short process and a question, and before a model is, which may start pip.
AGAIN_S, SERVER_AGAIN_MAX_S, FETCH_AGAIN_MAX_S = 2.0, 30.0, 600.0
#: What is tried again and fails in the same way is told again after this, seconds.
TOLD_AGAIN_S = 3600.0
#: Code of what is not fetched now, and may be later.
NO_NETWORK = "no-network"


class Hosting:
    """Belongs to one event loop."""

    def __init__(
        self,
        config: NodeConfig,
        engine: EngineProcess,
        engines: Engines,
        background: Background,
        changed: Callable[[], None],
    ) -> None:
        """Args: `changed`: called when more is known of a model's file, and after every change of a further engine."""
        self._config = config
        self._engine = engine
        self._engines = engines
        self._background = background
        self._changed = changed
        self._once = Once(TOLD_AGAIN_S)
        self.serving = Serving()
        self.model_path: Path | None = None  # of the first engine, once it is known

    @property
    def model_paths(self) -> list[Path]:
        first = [self.model_path] if self.model_path is not None else []
        return [*first, *(one.path for one in self._engines.further.values())]

    async def find_named(self) -> None:
        """What the owner named and lies here. Raises `KithError`, which ends the start."""
        config = self._config
        if config.engine in FILE_ENGINES and config.model and not is_hub(config.model):
            await self._find_model()
            await asyncio.to_thread(self._engine.check_model)
        for spec in config.more_models:
            if not is_hub(spec):
                await self._add_model(spec)

    async def bring_up(self) -> None:
        """Start the first engine and find what else is to be hosted; ends when nothing is left that may still come."""
        left: list[Callable[[], Awaitable[None]]] = [self._start_first]
        left += [partial(self._add_model, spec) for spec in self._config.more_models if is_hub(spec)]
        pause_s, most_s = AGAIN_S, SERVER_AGAIN_MAX_S if self._config.engine == "openai" else FETCH_AGAIN_MAX_S
        while left := [step for step in left if not await self._done(step)]:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, most_s)

    async def _done(self, step: Callable[[], Awaitable[None]]) -> bool:
        """Take a step; False where it is to be taken again."""
        try:
            await step()
        except KithError as error:
            again = error.code == NO_NETWORK or self._config.engine == "openai"
            if self._once.due((error.code, error.message)):
                logs.log("error", f"{error.message}. {error.remedy}" + " It is tried again by itself." * again)
            return not again
        return True

    async def _start_first(self) -> None:
        """Raises `KithError`."""
        try:
            if self._config.engine in FILE_ENGINES and self.model_path is None:
                await self._find_model()
        except KithError as error:
            self._engine.give_up(error.message + "; it is tried again by itself" * (error.code == NO_NETWORK))
            raise
        if self.model_path is not None:
            self._background.spawn(self._describe(self.model_path), "describe the model")
        await self._engine.start()

    async def _find_model(self) -> None:
        """Tell the engine the model's file; what is not here yet is fetched."""
        # Imported here: a node with another back end never needs it.
        from node.models.obtaining import obtained

        self.model_path = await obtained(self._config.model, logs.say)
        self.serving.mark(self.model_path)
        self._engine.use_model(self.model_path)
        if self._config.more_models:
            header = await asyncio.to_thread(gguf.read_header, self.model_path)
            self._engines.first_bytes = gguf.needed_bytes(header, self._config.ctx, self._config.slots)

    async def _add_model(self, spec: str) -> None:
        """A further agent. Raises `KithError` where its file can not be had or read."""
        from node.models.obtaining import obtained

        path = await obtained(spec, logs.say)
        header = await asyncio.to_thread(gguf.read_header, path)
        config = dataclasses.replace(engine_config(self._config), model_sha256="")
        process = EngineProcess(config, path, logs.say, self._changed)
        needs_bytes = gguf.needed_bytes(header, config.ctx, config.slots)
        self._engines.add(path, process, needs_bytes, planned(path, header, config))
        self._background.spawn(self._describe(path), "describe a model")

    async def _describe(self, path: Path) -> None:
        """The file's hash, for the profile and for peers; a large file that is not of the store takes a while."""
        try:
            await detached(lambda: self.serving.use(path), "describe a model")
        except KithError as error:
            logs.log("warning", f"the model file is not offered to other nodes: {error.message}")
            return
        self._changed()
