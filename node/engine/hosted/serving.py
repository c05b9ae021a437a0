"""Answers an engine's requests by a model server: places, streams, cancelling, figures. The same for every dialect.

One event loop in a thread of its own does all of it; the child's reader and worker only hand over. A request waits for
one of the places (`slots`), streams, and is over; cancelling it closes its connection, and the server stops working.
Whatever the server can not do, the request is refused with words, never quietly done without.
"""

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from mesh.wire import common_pb2, engine_pb2
from node.engine.backend import Request, cancelled, embeds_only, queue_full, unsupported
from node.engine.hosted.dialect import Dialect, Piece, TokenCount, estimate_prompt
from node.engine.hosted.places import Places
from node.errors import ExitCode, KithError

QUEUE_MAX = 128
#: What a calibration asks to be read, in words, and written, in tokens.
CALIBRATION_WORDS, CALIBRATION_TOKENS = 120, 32
CONTINUATIONS_MAX = 256
#: How often a server's progress is asked for while it works, seconds.
PROGRESS_EVERY_S = 0.5

T = TypeVar("T")

_WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


class Serving:
    """All of a `Backend` but `load`, which finds the server and says by `use` what it is.

    Args:
        name: of the back end, for messages.
        progress: asked in the loop while requests run: a figure that grows while the server works. Without it the
            server counts as moving; its silence has a limit of its own (client.SILENCE_SECONDS).
    """

    def __init__(self, name: str, progress: Callable[[], Awaitable[int]] | None = None) -> None:
        self._name = name
        self._progress = progress
        self._loop = asyncio.new_event_loop()
        self._stats = engine_pb2.EngineStats()
        self._running: dict[int, tuple[Request, asyncio.Task[None]]] = {}  # touched in the loop's thread only
        self._counting = 0  # of those: requests that count tokens, which is no work of the model
        self._places: Places
        self._dialect: Dialect
        self._abilities: frozenset[str] = frozenset()
        self._context_tokens = 0
        self._watching: asyncio.Task[None] | None = None
        threading.Thread(target=self._loop.run_forever, name=name, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """In the loop's thread, from another one; waits for the result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def use(self, dialect: Dialect, abilities: tuple[str, ...], slots: int, context_tokens: int) -> None:
        self._dialect = dialect
        self._abilities = frozenset(abilities)
        self._places = Places(slots)
        self._context_tokens = context_tokens

    def submit(self, request: Request) -> None:
        command = request.command
        kind = command.WhichOneof("command")
        if kind in ("generate", "score") and not self._writes:
            raise embeds_only("write" if kind == "generate" else "score texts")
        if kind == "generate":
            self._check_prompt(command.generate)
        elif kind == "score":
            self._check_score(command.score)
        elif kind == "embed" and "embed" not in self._abilities:
            raise unsupported(self._name, "make embeddings with this model")
        elif kind not in ("count_tokens", "calibrate", "embed"):
            raise unsupported(self._name, f"do {kind}")
        if len(self._running) >= QUEUE_MAX:
            raise queue_full(QUEUE_MAX)
        self._loop.call_soon_threadsafe(self._begin, request)

    @property
    def _writes(self) -> bool:
        return not self._abilities.isdisjoint({"chat", "generate"})

    def wake(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel_cancelled)

    def stats(self) -> engine_pb2.EngineStats:
        stats = engine_pb2.EngineStats()
        stats.CopyFrom(self._stats)
        stats.queue_length = max(0, len(self._running) - stats.slots_busy - self._counting)
        if self._progress is None:
            stats.steps = time.monotonic_ns() // 1_000_000
        return stats

    def _check_prompt(self, command: engine_pb2.GenerateRequest) -> None:
        if bool(command.messages) == bool(command.prompt):
            message = "a request holds either messages or a prompt"
            raise KithError("bad-request", message, "Send exactly one of the two.", ExitCode.BAD_INPUT)
        tokens = estimate_prompt(command)
        # An estimate may be half the truth; what the server finds too long it refuses itself.
        if self._context_tokens and tokens >= 2 * self._context_tokens:
            message = f"the prompt has about {tokens:,} tokens; the context holds {self._context_tokens:,}"
            raise KithError("prompt-too-long", message, "Send less text, or start the node with a larger --ctx.")

    def _fitting(self, command: engine_pb2.GenerateRequest) -> engine_pb2.GenerateRequest:
        """Without a limit on tokens that may not fit beside the prompt, where servers refuse it; it is held here."""
        fits = command.max_tokens + 2 * estimate_prompt(command) < self._context_tokens
        if fits or not self._dialect.refuses_long_limits:
            return command
        fitting = engine_pb2.GenerateRequest()
        fitting.CopyFrom(command)
        fitting.max_tokens = 0
        return fitting

    def _check_score(self, command: engine_pb2.ScoreRequest) -> None:
        if "score" not in self._abilities:
            raise unsupported(self._name, "score with this server")
        if bool(command.messages) == bool(command.prompt):
            message = "a request holds either messages or a prompt"
            raise KithError("bad-request", message, "Send exactly one of the two.", ExitCode.BAD_INPUT)
        if not 0 < len(command.continuations) <= CONTINUATIONS_MAX or not all(command.continuations):
            message = f"between 1 and {CONTINUATIONS_MAX} continuations that are not empty can be scored at once"
            raise KithError("bad-request", message, "Send other continuations.", ExitCode.BAD_INPUT)

    def _begin(self, request: Request) -> None:
        if request.cancelled:
            _say_cancelled(request)
            return
        task = self._loop.create_task(self._serve(request))
        self._running[request.id] = (request, task)
        # Not in the task: one that is cancelled before its first step runs none of its lines.
        task.add_done_callback(lambda _: self._ended(request))
        if self._progress is not None and (self._watching is None or self._watching.done()):
            self._watching = self._loop.create_task(self._watch(self._progress))

    def _cancel_cancelled(self) -> None:
        for request, task in self._running.values():
            if request.cancelled and not task.cancelling():
                task.cancel()

    def _ended(self, request: Request) -> None:
        del self._running[request.id]
        if not request.over:
            _say_cancelled(request)

    async def _watch(self, progress: Callable[[], Awaitable[int]]) -> None:
        """While requests run."""
        while self._running:
            try:
                self._stats.steps = await progress()
            except KithError:
                pass  # no sign of life is a sign
            await asyncio.sleep(PROGRESS_EVERY_S)

    async def _serve(self, request: Request) -> None:
        kind = request.command.WhichOneof("command")
        asked = request.asked
        arrived = time.monotonic()
        try:
            if kind == "count_tokens":  # takes no place: it is no work
                self._counting += 1
                try:
                    counts = await self._dialect.count_tokens(request.command.count_tokens.texts)
                finally:
                    self._counting -= 1
                request.answer(engine_pb2.EngineEvent(counts=engine_pb2.CountTokensReply(counts=counts)))
                return
            cost = max(1, asked.ByteSize())
            async with self._places.one(asked.priority, asked.useful_seconds, asked.owner, cost):
                self._stats.slots_busy += 1
                begun = time.monotonic()
                try:
                    await self._work(request, str(kind), begun - arrived)
                finally:
                    self._stats.slots_busy -= 1
                    self._stats.busy_seconds += time.monotonic() - begun
        except asyncio.CancelledError:
            _say_cancelled(request)
        except KithError as error:
            request.fail(error)
        except Exception as error:
            request.fail(KithError("engine-failed", f"the engine's client failed ({type(error).__name__})", ""))
        finally:
            request.flush()

    async def _work(self, request: Request, kind: str, queued_s: float) -> None:
        if kind == "calibrate":
            if self._writes:
                rates = await calibrate(self._dialect.generate)
            else:
                rates = await calibrate_embedding(self._dialect.embed, self._context_tokens)
            request.answer(engine_pb2.EngineEvent(calibrated=rates))
        elif kind == "embed":
            begun = time.monotonic()
            vectors, tokens = await self._dialect.embed(request.command.embed.texts)
            self._stats.prompt_tokens_processed += tokens
            reply = engine_pb2.EmbedReply(
                vectors=[engine_pb2.EmbedReply.Vector(values=values) for values in vectors],
                usage=common_pb2.Usage(
                    prompt_tokens=tokens, prefill_seconds=time.monotonic() - begun, queue_seconds=queued_s
                ),
            )
            request.answer(engine_pb2.EngineEvent(embedded=reply))
        elif kind == "score":
            score = await self._dialect.score(request.command.score)
            score.usage.queue_seconds = queued_s
            self._stats.prompt_tokens_processed += score.usage.prompt_tokens
            request.answer(engine_pb2.EngineEvent(score=score))
        else:
            await self._generate(request, queued_s)

    async def _generate(self, request: Request, queued_s: float) -> None:
        command = self._fitting(request.command.generate)
        limit = request.command.generate.max_tokens
        begun = time.monotonic()
        usage = common_pb2.Usage(prompt_tokens=estimate_prompt(command), queue_seconds=queued_s)
        request.started(usage.prompt_tokens, 0)
        request.flush()
        first = decode_s = 0.0
        reason = "stop"
        count, written = TokenCount(), 0  # tokens in deltas
        async with aclosing(self._dialect.generate(command)) as pieces:
            async for piece in pieces:
                usage.prompt_tokens = piece.prompt_tokens or usage.prompt_tokens
                usage.cached_tokens = piece.cached_tokens or usage.cached_tokens
                usage.completion_tokens = piece.completion_tokens or usage.completion_tokens
                decode_s = piece.decode_s or decode_s
                reason = piece.reason or reason
                if piece.text or piece.token_ids or piece.logprobs:
                    first = first or time.monotonic()
                    tokens = count.add(piece)
                    written += tokens
                    _say(request, piece, tokens)
                if 0 < limit <= written and not command.max_tokens:
                    reason = "length"
                    break
        now = time.monotonic()
        if decode_s and first and now - first < decode_s:  # an answer that came at once was written before
            first = max(begun, now - decode_s)
        usage.completion_tokens = usage.completion_tokens or written
        usage.prefill_seconds = (first or now) - begun
        usage.decode_seconds = now - (first or now)
        self._stats.tokens_generated += usage.completion_tokens
        self._stats.prompt_tokens_processed += usage.prompt_tokens
        self._stats.cached_tokens += usage.cached_tokens
        request.finished(reason, usage)


def _say(request: Request, piece: Piece, tokens: int) -> None:
    delta = engine_pb2.GenerateEvent.Delta(
        text=piece.text, tokens=tokens, token_ids=piece.token_ids, logprobs=piece.logprobs
    )
    request.put(engine_pb2.EngineEvent(generate=engine_pb2.GenerateEvent(delta=delta)))
    request.flush()


async def calibrate(
    generate: Callable[[engine_pb2.GenerateRequest], AsyncGenerator[Piece, None]],
) -> engine_pb2.Calibrated:
    """One short answer, as a client sees it: the way to the server and back is in it, as in every request.

    The prompt begins with the time, so that no server has read it before.
    """
    words = " ".join(_WORDS[number % len(_WORDS)] for number in range(CALIBRATION_WORDS))
    message = engine_pb2.ChatMessage(role="user", content=f"{time.time_ns()}: repeat these words: {words}")
    command = engine_pb2.GenerateRequest(messages=[message], max_tokens=CALIBRATION_TOKENS)
    begun = time.monotonic()
    prompt_tokens = estimate_prompt(command)
    arrivals: list[float] = []
    count, written, reported = TokenCount(), 0, 0
    async with aclosing(generate(command)) as pieces:
        async for piece in pieces:
            prompt_tokens = piece.prompt_tokens or prompt_tokens
            reported = piece.completion_tokens or reported
            if piece.text:
                arrivals.append(time.monotonic())
                written += count.add(piece)
    if not arrivals:
        raise KithError("engine-failed", "the model answers nothing", "Try another.")
    tokens = reported or written
    reading = max(arrivals[0] - begun, 1e-6)
    writing = arrivals[-1] - arrivals[0]
    # The first arrival ends the reading; a server that sends all at once has spent its time on both.
    decode = (tokens - 1) / writing if writing > 1e-3 and tokens > 1 else tokens / reading
    assert math.isfinite(decode)
    return engine_pb2.Calibrated(prefill_tokens_per_s=prompt_tokens / reading, decode_tokens_per_s=decode)


async def calibrate_embedding(
    embed: Callable[[list[str]], Awaitable[tuple[list[list[float]], int]]], context_tokens: int
) -> engine_pb2.Calibrated:
    """One text, as a client sees it. Nothing is written, so there is no such rate."""
    # Eight tokens a word are more than any vocabulary needs for these.
    text = " ".join(_WORDS[number % len(_WORDS)] for number in range(min(CALIBRATION_WORDS, context_tokens // 8)))
    begun = time.monotonic()
    _, tokens = await embed([text or _WORDS[0]])
    return engine_pb2.Calibrated(prefill_tokens_per_s=tokens / max(time.monotonic() - begun, 1e-6))


def _say_cancelled(request: Request) -> None:
    if request.command.WhichOneof("command") == "generate":
        request.finished("cancelled", common_pb2.Usage())
        request.flush()
    else:
        request.fail(cancelled())
