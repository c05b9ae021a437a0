"""An engine in a child process, as the daemon uses it: spawned, watched, started again, ended.

Requests are told apart by id on one socket pair. A child that dies or hangs takes its requests with it (`engine-gone`;
`engine-gone-shared` where there were several). It is started again after a growing pause, so often in some time. Where
it does not come up many times in a row, or its model is bad, the state is "failed" and says why. The child is spawned,
never forked: gRPC does not survive a fork.

Memory is bounded without ever stopping the stream: deltas that nobody has read yet are joined to one, so a request
holds at most its text. Not guaranteed: the text of prompts stays out of the log only as far as llama.cpp's warnings
keep it out; they do today.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

from mesh.wire import engine_pb2
from node import gguf
from node.config import FILE_ENGINES, NodeConfig
from node.engine.link import Link
from node.engine.watchdog import Verdict, Watchdog
from node.errors import KithError

LOAD_SECONDS_MAX = 900.0
CALIBRATE_SECONDS_MAX = 120.0

#: Pause before restart number n, in seconds: FIRST * 2**n, at most LAST.
BACKOFF_FIRST = 0.2
BACKOFF_LAST = 10.0
#: Pause before a server that could not be used is tried again, seconds: doubled each time. A try is a short process.
SERVER_AGAIN_FIRST_S, SERVER_AGAIN_LAST_S = 2.0, 30.0

#: Tokens of the longest step of a back end (BATCH_TOKENS of llama_loop and of xllamacpp), for the watchdog.
STEP_TOKENS = {"xllamacpp": 512}
STEP_TOKENS_DEFAULT = 128

#: Memory of an engine for prefixes that fell out of the KV cache, and for those that other nodes send: at most this,
#: and at most this share of what is free when it starts.
SPILL_BYTES_MAX, SPILL_SHARE = 256 << 20, 1 / 16

#: No more restarts than this within the window: what comes up and dies again waits. What does not come up so many times
#: in a row is given up.
RESTARTS_MAX = 6
RESTARTS_WINDOW_S = 120.0


class _KernelCrash(KithError):
    """The child died of an instruction or address while it loaded."""


class EngineProcess:
    """Implements `api.Engine`. Belongs to one event loop.

    Args:
        model_path: the GGUF file of the back ends that load one (`FILE_ENGINES`); None for the others.
        log: gets the lines of the child's stderr and of this class.
        on_state: called after every change of `state` or `stalled`.
        memory_limit_bytes: of the child's private memory; 0: as the model's header says, none where a GPU is used.
        frozen_seconds: a child that answers nothing for so long is killed.
        hang_seconds: a busy child without progress for so long is killed; later where its steps take long.
    """

    def __init__(
        self,
        config: NodeConfig,
        model_path: Path | None,
        log: Callable[[str], None],
        on_state: Callable[[], None] | None = None,
        memory_limit_bytes: int = 0,
        frozen_seconds: float = 20.0,
        hang_seconds: float = 60.0,
    ) -> None:
        self._config = config
        self._model_path = model_path
        self._log = log
        self._on_state = on_state
        self._memory_limit_bytes = memory_limit_bytes
        self._model_limit_bytes = 0
        self._frozen_seconds = frozen_seconds
        self._hang_seconds = hang_seconds
        self._stalled = False
        self._figures = engine_pb2.EngineStats()
        self._state = "starting"
        self._problem = ""
        self._loaded: engine_pb2.EngineLoaded | None = None
        self._calibrated: engine_pb2.Calibrated | None = None
        self._link: Link | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._plain_kernels = False
        self._restarts: deque[float] = deque()  # when they were due; the last one may be yet

    @property
    def state(self) -> str:
        return self._state

    @property
    def problem(self) -> str:
        return self._problem

    @property
    def stalled(self) -> bool:
        return self._stalled

    @property
    def figures(self) -> engine_pb2.EngineStats:
        return self._figures

    @property
    def loaded(self) -> engine_pb2.EngineLoaded | None:
        return self._loaded

    @property
    def calibrated(self) -> engine_pb2.Calibrated | None:
        return self._calibrated

    @property
    def pause_left_s(self) -> float:
        """Until the next restart is due, seconds; 0: none is waited for. It outlives `stop`: whoever starts it before
        that breaks the limit of restarts."""
        return max(0.0, self._restarts[-1] - asyncio.get_running_loop().time()) if self._restarts else 0.0

    @property
    def pid(self) -> int | None:
        """Of the child; None while there is none."""
        return None if self._link is None else self._link.pid

    def use_model(self, path: Path) -> None:
        """Say which file to load, where it was not known at first (a model that is still being fetched)."""
        assert self._supervisor is None
        self._model_path = path

    def give_up(self, problem: str) -> None:
        """There is nothing to start: say why."""
        if self._state != "failed":
            self._enter("failed", problem)

    async def start(self) -> None:
        """Spawn, load and calibrate. Raises `KithError`; nothing is left running then."""
        assert self._supervisor is None, "started twice"
        try:
            if self._config.engine in FILE_ENGINES:
                await asyncio.to_thread(self.check_model)
            await self._bring_up()
        except KithError as error:
            self._enter("failed", error.message)
            raise
        except BaseException:
            self._enter("stopped")
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")

    async def start_or_wait(self) -> None:
        """As `start`; but a server that is not there, or does not serve what it should, is tried again for ever."""
        pause_s, said = SERVER_AGAIN_FIRST_S, ""
        while True:
            try:
                return await self.start()
            except KithError as error:
                if self._config.engine != "openai":
                    raise
                if error.message != said:
                    said = error.message
                    self._log(f"{said}. {error.remedy} It is tried again by itself.")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, SERVER_AGAIN_LAST_S)

    async def stop(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        link, self._link = self._link, None
        if link is not None:
            await link.end()
        self._figures = engine_pb2.EngineStats()  # nothing is left in it
        self._enter("stopped")

    async def generate(self, request: engine_pb2.GenerateRequest) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
        link = self._ready()
        with link.open(engine_pb2.EngineCommand(generate=request)) as inbox:
            while True:
                event = await inbox.get()
                yield event.generate
                if event.generate.WhichOneof("event") == "finished":
                    return

    async def score(self, request: engine_pb2.ScoreRequest) -> engine_pb2.ScoreReply:
        return (await self._ready().ask(engine_pb2.EngineCommand(score=request))).score

    async def embed(self, request: engine_pb2.EmbedRequest) -> engine_pb2.EmbedReply:
        return (await self._ready().ask(engine_pb2.EngineCommand(embed=request))).embedded

    async def export_kv(self, request: engine_pb2.ExportKvRequest) -> engine_pb2.ExportKvReply:
        return (await self._ready().ask(engine_pb2.EngineCommand(export_kv=request))).exported_kv

    async def import_kv(self, request: engine_pb2.ImportKvRequest) -> None:
        await self._ready().ask(engine_pb2.EngineCommand(import_kv=request))

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        command = engine_pb2.EngineCommand(count_tokens=engine_pb2.CountTokensRequest(texts=texts))
        return list((await self._ready().ask(command)).counts.counts)

    async def prompt_tokens(self, request: engine_pb2.GenerateRequest) -> list[int]:
        command = engine_pb2.EngineCommand(count_tokens=engine_pb2.CountTokensRequest(prompt_of=request))
        return list((await self._ready().ask(command)).counts.prompt_tokens)

    async def stats(self) -> engine_pb2.EngineStats:
        return (await self._ready().ask(engine_pb2.EngineCommand(stats=engine_pb2.StatsRequest()))).stats

    def _ready(self) -> Link:
        if self._link is None or self._state != "ready":
            message = f"the engine is {self._state}" + (f": {self._problem}" if self._problem else "")
            remedy = "" if self._state in ("failed", "stopped") else "Try again in a moment."
            raise KithError("engine-not-ready", message, remedy)
        return self._link

    def _enter(self, state: str, problem: str = "") -> None:
        if (state, problem) == (self._state, self._problem):
            return
        self._state, self._problem = state, problem
        self._stalled = False
        if self._on_state is not None:
            self._on_state()

    def check_model(self) -> None:
        """Whether the file can be loaded here, as far as its header tells. Raises `KithError` (`bad-model`)."""
        if self._model_path is None:
            raise KithError("bad-model", "no model file is given", "Give one by --model, or `kith model pull`.")
        header = gguf.read_header(self._model_path)
        header.vector_pooling()  # one that only ranks is of no use to anybody
        if self._config.model_sha256:
            gguf.check_sha256(self._model_path, self._config.model_sha256)
        if self._config.gpu_layers == 0:
            config = self._config
            gguf.check_memory(header, config.ctx, config.slots)
            limit = gguf.memory_limit_bytes(header, config.ctx, config.slots, os.cpu_count() or 1)
            self._model_limit_bytes = limit + SPILL_BYTES_MAX if limit else 0

    async def _bring_up(self) -> None:
        """A child that is ready, on the second attempt where the CPU's special units crash the first."""
        try:
            await self._attempt()
        except _KernelCrash as crash:
            if self._plain_kernels or self._config.engine != "llama":
                raise
            self._log(f"{crash.message} Trying again without the CPU's special matrix units.")
            self._plain_kernels = True
            await self._attempt()

    async def _attempt(self) -> None:
        """One child, spawned, loaded and measured. Raises `KithError` and leaves none behind."""
        link = await Link.spawn(self._config, self._log)
        try:
            command = engine_pb2.EngineCommand(load=self._load_command())
            async with asyncio.timeout(LOAD_SECONDS_MAX):
                self._loaded = (await link.ask(command)).loaded
            if self._calibrated is None:
                async with asyncio.timeout(CALIBRATE_SECONDS_MAX):
                    command = engine_pb2.EngineCommand(calibrate=engine_pb2.CalibrateRequest())
                    self._calibrated = (await link.ask(command)).calibrated
        except TimeoutError as error:
            await link.end()
            message = "the engine did not become ready in time"
            raise KithError("engine-failed", message, "Try a smaller model or fewer --threads.") from error
        except KithError as error:
            gone = await link.end()
            if error.code == "engine-gone":  # it died while loading: the cause is the model or the machine
                kind = _KernelCrash if link.crashed_in_kernel else KithError
                raise kind("engine-failed", gone.message, "The node's log may say more.") from error
            raise
        except BaseException:
            await link.end()
            raise
        self._link = link
        self._enter("ready")

    def _load_command(self) -> engine_pb2.LoadModel:
        config = self._config
        return engine_pb2.LoadModel(
            backend=config.engine,
            path=str(self._model_path or ""),
            context_tokens=config.ctx,
            slots=config.slots,
            threads=config.threads,
            gpu_layers=config.gpu_layers,
            base_url=config.engine_url,
            model_name=config.model if config.engine == "openai" else "",
            memory_limit_bytes=self._memory_limit_bytes or self._model_limit_bytes,
            echo_tokens_per_s=config.echo_tokens_per_s,
            key_env=config.engine_key_env,
            plain_kernels=self._plain_kernels,
            spill_bytes=_spill_bytes(),
            kv_unified=config.kv_cache == "unified",
            kv_auto=config.kv_cache == "auto",
            adapters=[_adapter(text) for text in config.adapters] if config.engine == "llama" else [],
        )

    async def _supervise(self) -> None:
        """Watch the child; when it is gone, say so, wait, start another. Ends in "failed"."""
        while True:
            assert self._link is not None
            await self._link.watch(self._watchdog(), self._judged)
            link, self._link = self._link, None
            self._figures = engine_pb2.EngineStats()
            error = await link.end()
            self._log(error.message)
            failures = 0
            while self._link is None:
                if failures >= RESTARTS_MAX:
                    self._enter("failed", f"{error.message.rstrip('.')}; it failed {RESTARTS_MAX} times in a row.")
                    return
                self._enter("restarting", error.message)
                pause_s = self._pause()
                self._restarts.append(asyncio.get_running_loop().time() + pause_s)
                await asyncio.sleep(pause_s)
                try:
                    await self._bring_up()
                except KithError as failure:
                    failures += 1
                    error = failure
                    self._log(failure.message)
                    if failure.code == "bad-model":
                        self._enter("failed", failure.message)
                        return

    def _watchdog(self) -> Watchdog:
        rate = self._calibrated.prefill_tokens_per_s if self._calibrated is not None else 0.0
        return Watchdog(
            asyncio.get_running_loop().time(),
            self._frozen_seconds,
            self._hang_seconds,
            step_s=STEP_TOKENS.get(self._config.engine, STEP_TOKENS_DEFAULT) / rate if rate > 0 else 0.0,
        )

    def _judged(self, verdict: Verdict, stats: engine_pb2.EngineStats) -> None:
        self._figures = stats
        stalled = verdict is not Verdict.MOVES
        if stalled != self._stalled:
            self._stalled = stalled
            self._log("engine: it does not move" if stalled else "engine: it moves again")
            if self._on_state is not None:
                self._on_state()

    def _pause(self) -> float:
        """Seconds until the next restart."""
        now = asyncio.get_running_loop().time()
        while self._restarts and now - self._restarts[0] > RESTARTS_WINDOW_S:
            self._restarts.popleft()
        if len(self._restarts) >= RESTARTS_MAX:
            return self._restarts[0] + RESTARTS_WINDOW_S - now
        return min(BACKOFF_LAST, BACKOFF_FIRST * 2.0 ** len(self._restarts))


def _adapter(text: str) -> engine_pb2.Adapter:
    name, _, path = text.partition("=")
    return engine_pb2.Adapter(name=name, path=str(Path(path).expanduser()))


def _spill_bytes() -> int:
    free = gguf.memory_available_bytes()
    return SPILL_BYTES_MAX if free is None else min(SPILL_BYTES_MAX, int(free * SPILL_SHARE))
