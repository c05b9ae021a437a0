"""The engines of one node: the first model's, always loaded, and further ones that are loaded when they are asked for.

Idea: every model is an agent of its own, with an engine process of its own. The first agent, "default", is the node's
engine as ever: it comes up at the start, and what the machines hear of the engine is about it. A further agent's
process is started at the first request for it; where memory would go beyond the budget, the further ones that nobody
uses now are ended first, the one that was used longest ago before the others. What was measured of a model is kept
when its process ends. Loading is one at a time, and goes on where the asker went away; requests for engines that are up
do not wait for it.

Not guaranteed: that memory suffices: the budget counts weights, caches and libraries by the files' headers. Nor turns
between models: one that is asked without a pause is not unloaded, and the other is told to come again.
"""

import asyncio
import contextlib
import dataclasses
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path

from mesh.wire import engine_pb2, facts_pb2
from node import gguf
from node.abilities import of_file
from node.config import NodeConfig
from node.engine.api import Engine
from node.engine.process import EngineProcess
from node.engine.threads import cores
from node.errors import ExitCode, KithError
from node.logs import log
from node.waited import answered, generated, too_late

FIRST = "default"
MODELS_MAX = 16
#: Of the machine's memory, without a setting.
MEMORY_SHARE = 0.8
#: A model that could not be loaded is not tried again at once, and not at all after so many times.
AGAIN_AFTER_S = 10.0
TRIES_MAX = 3
#: Where all memory is in use, a load waits so long for somebody to finish; then its asker is told to come again.
ROOM_WITHIN_S = 60.0
COME_AGAIN_S = 5.0
#: What loading takes until it was measured: the file at the rate at which the first model was read here, or this rate,
#: and starting a process that measures itself.
READ_BYTES_PER_S_PRIOR = 500e6
START_S = 2.0
#: A load that takes longer than was thought is thought to take so much longer, seconds.
LOAD_LEFT_MIN_S = 0.5


class Further:
    """An engine that is loaded on demand. Implements `api.Engine`; where it can not be: `engine-not-ready`."""

    def __init__(self, engines: "Engines", agent: str, path: Path, process: EngineProcess, needs_bytes: int) -> None:
        self._engines = engines
        self._process = process
        self.agent = agent
        self.path = path
        self.needs_bytes = needs_bytes
        self.users = 0
        self.used_at = 0.0  # time.monotonic()
        self.up = False
        self.failures = 0
        self.failed_at = 0.0
        self.took_s = 0.0  # when it was brought up last; 0: it never was
        self.planned: engine_pb2.EngineLoaded | None = None

    @property
    def state(self) -> str:
        return "failed" if self.failures >= TRIES_MAX else "ready"

    @property
    def problem(self) -> str:
        return self._process.problem

    @property
    def stalled(self) -> bool:
        return self._process.stalled

    @property
    def figures(self) -> engine_pb2.EngineStats:
        return self._process.figures

    @property
    def loaded(self) -> engine_pb2.EngineLoaded | None:
        """What was loaded last; until then what the file's header promises."""
        return self._process.loaded or self.planned

    @property
    def calibrated(self) -> engine_pb2.Calibrated | None:
        return self._process.calibrated

    @property
    def is_ready(self) -> bool:
        return self.up and self._process.state == "ready"

    @property
    def load_wait_s(self) -> float:
        """What a request waits until this is loaded, estimated; 0: it is."""
        if self.is_ready:
            return 0.0
        size = self.loaded.model_bytes if self.loaded is not None else 0
        return self.took_s or START_S + size / self._engines.read_bytes_per_s

    async def start(self) -> None:
        async with self._engines.using(self):
            pass

    async def generate(self, request: engine_pb2.GenerateRequest) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
        loaded = self._engines.using(self, request.useful_seconds)
        async with contextlib.aclosing(generated(loaded, self._process, request)) as events:
            async for event in events:
                yield event

    async def score(self, request: engine_pb2.ScoreRequest) -> engine_pb2.ScoreReply:
        return await answered(self._engines.using(self, request.useful_seconds), request, self._process.score)

    async def embed(self, request: engine_pb2.EmbedRequest) -> engine_pb2.EmbedReply:
        return await answered(self._engines.using(self, request.useful_seconds), request, self._process.embed)

    async def export_kv(self, request: engine_pb2.ExportKvRequest) -> engine_pb2.ExportKvReply:
        async with self._engines.using(self):
            return await self._process.export_kv(request)

    async def import_kv(self, request: engine_pb2.ImportKvRequest) -> None:
        async with self._engines.using(self):
            await self._process.import_kv(request)

    async def prompt_tokens(self, request: engine_pb2.GenerateRequest) -> list[int]:
        async with self._engines.using(self):
            return await self._process.prompt_tokens(request)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        async with self._engines.using(self):
            return await self._process.count_tokens(texts)

    async def stats(self) -> engine_pb2.EngineStats:
        async with self._engines.using(self):
            return await self._process.stats()

    def check_may_load(self) -> None:
        """Raises `KithError` (`engine-not-ready`) where it failed lately, or died and has to wait: its supervisor
        brings it up again."""
        if self.failures and (self.failures >= TRIES_MAX or time.monotonic() - self.failed_at < AGAIN_AFTER_S):
            raise _not_ready(self, self.problem)
        pause_s = self._process.pause_left_s
        if pause_s or self._process.state == "restarting":
            error = _not_ready(self, self.problem or "its engine died", "Ask again in a moment.")
            error.retry_after_s = pause_s + self.load_wait_s
            raise error

    async def bring_up(self) -> None:
        """Start the process, after the remains of one that failed."""
        await self._process.stop()
        began = time.monotonic()
        await self._process.start()
        self.took_s = time.monotonic() - began
        self.up = True

    async def stop(self) -> None:
        self.up = False
        await self._process.stop()


class Engines:
    """Belongs to one event loop."""

    def __init__(self, first: Engine, budget_bytes: int, changed: Callable[[], None]) -> None:
        """Args: `changed`: called when what is known of a further agent changed."""
        self.first = first
        self.first_bytes = 0  # what the first one needs; 0: not known, or no memory of this machine
        self.further: dict[str, Further] = {}
        self._budget_bytes = budget_bytes
        self._changed = changed
        self._loading = asyncio.Lock()
        self._loads: set[asyncio.Task[None]] = set()
        self._wanted: dict[Further, float] = {}  # in the order of loading, and when that began; 0: it waits
        self._released = asyncio.Event()  # somebody finished with an engine

    def add(self, path: Path, process: EngineProcess, needs_bytes: int, planned: engine_pb2.EngineLoaded) -> Further:
        """Take in a model. Raises `KithError` (`bad-model`) where there are too many."""
        if len(self.further) + 1 >= MODELS_MAX:
            message = f"a node serves at most {MODELS_MAX} models"
            raise KithError("bad-model", message, "Name fewer.", ExitCode.BAD_INPUT)
        agent = self._agent_name(path)
        one = self.further[agent] = Further(self, agent, path, process, needs_bytes)
        one.planned = planned
        self._changed()
        return one

    def of(self, agent: str) -> Engine:
        """Empty: the first. Raises `KithError` (`no-agent`)."""
        if agent in ("", FIRST):
            return self.first
        if (one := self.further.get(agent)) is not None:
            return one
        message = f"this node has no agent {agent[:64]!r}"
        raise KithError("no-agent", message, "`kith nodes` lists them.", ExitCode.UNAVAILABLE)

    @property
    def read_bytes_per_s(self) -> float:
        """At which model files are read here, as the first one was."""
        loaded = self.first.loaded
        if loaded is None or not loaded.model_bytes or loaded.load_seconds <= 0:
            return READ_BYTES_PER_S_PRIOR
        return loaded.model_bytes / loaded.load_seconds

    @property
    def steps(self) -> int:
        """Of all engines; it changes while any of them moves."""
        return self.first.figures.steps + sum(one.figures.steps for one in self.further.values())

    @property
    def slots_busy(self) -> int:
        return self.first.figures.slots_busy + sum(one.figures.slots_busy for one in self.further.values())

    def load_wait_s(self, agent: str) -> float:
        """What a request for it waits now until its model is loaded, with the loads before it; estimated. 0: it is
        loaded, or nothing is being loaded and its profile says what it takes."""
        one = self.further.get(agent)
        if one is None or one.is_ready or not self._wanted:
            return 0.0
        now, wait_s = time.monotonic(), 0.0
        for other, began in self._wanted.items():
            left_s = other.load_wait_s - (now - began if began else 0.0)
            wait_s += max(LOAD_LEFT_MIN_S, left_s)
            if other is one:
                return wait_s
        return wait_s + one.load_wait_s

    async def stop(self) -> None:
        for load in self._loads:
            load.cancel()
        await asyncio.gather(*self._loads, return_exceptions=True)
        await asyncio.gather(self.first.stop(), *(one.stop() for one in self.further.values()))

    @contextlib.asynccontextmanager
    async def using(self, one: Further, within_s: float = 0.0) -> AsyncIterator[float]:
        """While somebody uses it, a further engine is up and stays so; yields what that was waited for, seconds.
        Raises `KithError`, also `too-late` where it was not up `within_s` (0: wait for ever): it is loaded all the
        same."""
        asked = time.monotonic()
        one.users += 1
        try:
            if not one.is_ready:
                load = asyncio.create_task(self._bring_up(one), name=f"load {one.agent}")
                self._loads.add(load)
                load.add_done_callback(self._load_ended)
                await asyncio.wait({load}, timeout=within_s or None)
                if not load.done():
                    raise too_late(within_s, "its model was not loaded by then")
                load.result()
            yield time.monotonic() - asked
        finally:
            one.users -= 1
            one.used_at = time.monotonic()
            self._released.set()

    def _load_ended(self, load: "asyncio.Task[None]") -> None:
        self._loads.discard(load)
        if not load.cancelled():
            load.exception()  # whoever asked has heard it, if anybody still listens

    async def _bring_up(self, one: Further) -> None:
        one.check_may_load()  # before it waits: as a user it would keep the room that the load before it waits for
        self._wanted.setdefault(one, 0.0)
        try:
            async with self._loading:
                if not one.is_ready:  # else it came up while this waited
                    self._wanted[one] = time.monotonic()
                    await self._load(one)
        finally:
            self._wanted.pop(one, None)

    async def _load(self, one: Further) -> None:
        one.check_may_load()
        await self._make_room(one)
        try:
            await one.bring_up()
        except KithError as error:
            one.failures += 1
            one.failed_at = time.monotonic()
            log("warning", f"agent {one.agent} can not be loaded: {error.message}")
            if one.failures >= TRIES_MAX:
                self._changed()
            raise _not_ready(one, error.message) from error
        one.failures = 0
        log("info", f"agent {one.agent} is loaded")
        self._changed()

    async def _make_room(self, wanted: Further) -> None:
        """End engines that nobody uses, or wait for one, until `wanted` fits. Raises `KithError`."""
        if self.first_bytes + wanted.needs_bytes > self._budget_bytes:
            total = (self.first_bytes + wanted.needs_bytes) / 1e9
            why = f"with the first model it needs {total:.1f} GB, more than {self._budget_bytes / 1e9:.1f} GB"
            raise _not_ready(wanted, why, "Give the node a larger --memory-budget, or a node of its own.")
        while self._taken_beside(wanted) + wanted.needs_bytes > self._budget_bytes:
            idle = [one for one in self.further.values() if one.up and not one.users and one is not wanted]
            if not idle:
                await self._somebody_finished(wanted)
                continue
            oldest = min(idle, key=lambda one: one.used_at)
            log("info", f"agent {oldest.agent} is unloaded to make room for {wanted.agent}")
            await oldest.stop()
            self._changed()

    async def _somebody_finished(self, wanted: Further) -> None:
        self._released.clear()
        try:
            async with asyncio.timeout(ROOM_WITHIN_S):
                await self._released.wait()
        except TimeoutError:
            error = _not_ready(wanted, "all memory is in use by other models", "Ask again in a moment.")
            error.retry_after_s = COME_AGAIN_S
            raise error from None

    def _taken_beside(self, wanted: Further) -> int:
        """By all others: one that crashed is up until it is brought up again."""
        others = [one for one in self.further.values() if one.up and one is not wanted]
        return self.first_bytes + sum(one.needs_bytes for one in others)

    def _agent_name(self, path: Path) -> str:
        base = re.sub(r"[^a-z0-9._-]+", "-", path.name.lower().removesuffix(".gguf")).strip("-")[:48] or "model"
        name, number = base, 2
        while name in self.further or name == FIRST:
            name, number = f"{base}-{number}", number + 1
        return name


def _not_ready(one: Further, why: str, remedy: str = "Look at `kith logs`.") -> KithError:
    return KithError("engine-not-ready", f"{one.agent} can not be loaded now: {why}", remedy, ExitCode.UNAVAILABLE)


def planned(path: Path, header: gguf.GgufHeader, config: NodeConfig) -> engine_pb2.EngineLoaded:
    """What loading the file will give, as far as its header tells. Raises `KithError` (`bad-model`)."""
    header.vector_pooling()  # one that only ranks is of no use to anybody
    takes_adapters = config.engine == "llama" and not header.embeds_only
    return engine_pb2.EngineLoaded(
        model=path.stem,
        parameters=header.parameters,
        model_bytes=header.file_bytes,
        quantization=header.quantization,
        context_tokens=gguf.slot_tokens(header, config.ctx),
        slots=config.slots,
        abilities=of_file(config.engine, header),
        adapters=[text.partition("=")[0] for text in config.adapters] if takes_adapters else [],
        licence=header.licence,
        architecture=header.architecture,
        vocabulary_size=header.vocabulary_size,
        trained_context_tokens=header.context_tokens,
        has_chat_template=bool(header.chat_template),
    )


def agent_profile(agent: str, backend: str, engine: Engine, sha256: bytes) -> facts_pb2.AgentProfile:
    """What the mesh is told of an engine that knows what it has loaded, or will load."""
    loaded, calibrated = engine.loaded, engine.calibrated
    assert loaded is not None
    return facts_pb2.AgentProfile(
        agent=agent,
        backend=backend,
        model=loaded.model,
        model_sha256=sha256,
        model_bytes=loaded.model_bytes,
        parameters=loaded.parameters,
        quantization=loaded.quantization,
        context_tokens=loaded.context_tokens,
        slots=loaded.slots,
        prefill_tokens_per_s=calibrated.prefill_tokens_per_s if calibrated else 0.0,
        decode_tokens_per_s=calibrated.decode_tokens_per_s if calibrated else 0.0,
        load_seconds=loaded.load_seconds,
        abilities=loaded.abilities,
        licence=loaded.licence,
        vocabulary_sha256=loaded.vocabulary_sha256,
        embedding_size=loaded.embedding_size,
        adapters=loaded.adapters,
        kv_layout=loaded.kv_layout,
        load_wait_seconds=round(engine.load_wait_s, 1) if isinstance(engine, Further) else 0.0,
    )


def memory_budget_bytes(config: NodeConfig) -> int:
    """What all engines of the node may take together."""
    if config.memory_budget_mb:
        return config.memory_budget_mb << 20
    return int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def engine_config(config: NodeConfig) -> NodeConfig:
    """Settings of one of the node's engines: several share the cores, because they may run at the same time."""
    if config.threads or not config.more_models:
        return config
    return dataclasses.replace(config, threads=max(1, cores() // (1 + len(config.more_models))))
