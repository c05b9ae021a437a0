"""The `openai` back end: any server that speaks the OpenAI chat API (Ollama, llama-server, vLLM, a hosted one).

Tokens are not this process's: counts are the server's where it reports them and otherwise estimated (four bytes a
token, one for a Chinese or Japanese character), and `system_info` says so. Scoring is not offered: the chat API's
log-probabilities cover the sampled answer only. `continue_from` is sent as a last assistant message, which servers
with prefill go on from; others may start anew.

The key is read from the environment variable that the configuration names, and goes nowhere but to that server.
"""

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from mesh.wire import common_pb2, engine_pb2
from node.engine.backend import Request, unsupported
from node.engine.sse import SseError, SseParser
from node.errors import KithError

CONTEXT_TOKENS_DEFAULT = 4096
QUEUE_MAX = 128
CONNECT_SECONDS = 10.0
#: Longest silence of a server, in seconds: it may have to load a model first.
SILENCE_SECONDS = 300.0
CALIBRATION_TOKENS = 32
ERROR_BYTES_MAX = 4096

_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]")


def estimate_tokens(text: str) -> int:
    """One for each Chinese, Japanese or Korean character, one for four bytes of anything else."""
    characters = len(_CJK.findall(text))
    return characters + -(-(len(text.encode("utf-8", "replace")) - 3 * characters) // 4)


class OpenaiBackend:
    """Implements `Backend`: an event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stats = engine_pb2.EngineStats()
        self._streams: dict[int, asyncio.Task[None]] = {}  # touched in the loop's thread only
        self._requests: dict[int, Request] = {}
        self._client: httpx2.AsyncClient
        self._slots: asyncio.Semaphore
        self._url = ""
        self._model = ""
        self._key_env = ""
        self._context_tokens = 0

    def load(self, command: engine_pb2.LoadModel) -> engine_pb2.EngineLoaded:
        self._url = command.base_url.rstrip("/")
        if not self._url.startswith(("http://", "https://")):
            message = f"the engine's URL {command.base_url!r} is none of http or https"
            raise KithError("bad-request", message, "Give it by --engine-url, for example http://127.0.0.1:11434/v1.")
        self._key_env = command.key_env
        key = os.environ.get(command.key_env, "") if command.key_env else ""
        self._context_tokens = command.context_tokens or CONTEXT_TOKENS_DEFAULT
        slots = max(1, command.slots)
        self._slots = asyncio.Semaphore(slots)
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=slots + 1),
        )
        threading.Thread(target=self._loop.run_forever, name="openai", daemon=True).start()
        begun = time.monotonic()
        self._model = asyncio.run_coroutine_threadsafe(self._find_model(command.model_name), self._loop).result()
        return engine_pb2.EngineLoaded(
            model=self._model,
            context_tokens=self._context_tokens,
            slots=slots,
            abilities=["generate", "chat"],
            load_seconds=time.monotonic() - begun,
            trained_context_tokens=self._context_tokens,
            architecture="hosted",
            system_info=f"served by {self._url}; token counts are estimated where the server gives none",
        )

    def submit(self, request: Request) -> None:
        kind = request.command.WhichOneof("command")
        if kind not in ("generate", "count_tokens", "calibrate"):
            raise unsupported("openai", f"do {kind}")
        if kind == "count_tokens":
            counts = [estimate_tokens(text) for text in request.command.count_tokens.texts]
            request.answer(engine_pb2.EngineEvent(counts=engine_pb2.CountTokensReply(counts=counts)))
            return
        if kind == "generate":
            self._check(request.command.generate)
        self._loop.call_soon_threadsafe(self._begin, request)

    def wake(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel_cancelled)

    def stats(self) -> engine_pb2.EngineStats:
        stats = engine_pb2.EngineStats()
        stats.CopyFrom(self._stats)
        stats.queue_length = max(0, len(self._requests) - stats.slots_busy)
        stats.steps = time.monotonic_ns() // 1_000_000  # silence has its own limit, SILENCE_SECONDS
        return stats

    def _check(self, command: engine_pb2.GenerateRequest) -> None:
        if bool(command.messages) == bool(command.prompt):
            message = "a request holds either messages or a prompt"
            raise KithError("bad-request", message, "Send exactly one of the two.")
        tokens = estimate_tokens(command.prompt) + sum(estimate_tokens(each.content) for each in command.messages)
        if tokens >= self._context_tokens:
            message = f"the prompt has about {tokens:,} tokens; the context holds {self._context_tokens:,}"
            raise KithError("prompt-too-long", message, "Send less text, or start the node with a larger --ctx.")
        if len(self._requests) >= QUEUE_MAX:
            raise KithError("busy", f"{QUEUE_MAX} requests already wait for this engine", "Try again later.")

    def _begin(self, request: Request) -> None:
        self._requests[request.id] = request
        self._streams[request.id] = self._loop.create_task(self._serve(request))

    def _cancel_cancelled(self) -> None:
        for request_id, request in self._requests.items():
            if request.cancelled:
                self._streams[request_id].cancel()

    async def _serve(self, request: Request) -> None:
        queued = time.monotonic()
        try:
            async with self._slots:
                self._stats.slots_busy += 1
                try:
                    if request.command.WhichOneof("command") == "calibrate":
                        await self._calibrate(request)
                    else:
                        await self._generate(request, queued)
                finally:
                    self._stats.slots_busy -= 1
        except asyncio.CancelledError:
            request.finished("cancelled", common_pb2.Usage())
        except KithError as error:
            request.fail(error)
        except Exception as error:
            request.fail(KithError("engine-failed", f"the engine's client failed ({type(error).__name__})", ""))
        finally:
            request.flush()
            del self._requests[request.id], self._streams[request.id]

    async def _generate(self, request: Request, queued: float) -> None:
        command = request.command.generate
        begun = time.monotonic()
        text = "".join(message.content for message in command.messages) or command.prompt
        usage = common_pb2.Usage(prompt_tokens=estimate_tokens(text), queue_seconds=begun - queued)
        request.started(usage.prompt_tokens, 0)
        request.flush()
        first = 0.0
        reason = "stop"
        answer_bytes = 0
        async for chunk in self._chunks(_body(command, self._model), bool(command.messages)):
            if reported := chunk.get("usage"):
                usage.prompt_tokens = int(reported.get("prompt_tokens") or usage.prompt_tokens)
                usage.completion_tokens = int(reported.get("completion_tokens") or usage.completion_tokens)
            piece, ended = _piece(chunk)
            if ended:
                reason = "length" if ended == "length" else "stop"
            if piece:
                first = first or time.monotonic()
                answer_bytes += len(piece)
                request.delta(piece, estimate_tokens(piece))
                request.flush()
        now = time.monotonic()
        usage.completion_tokens = usage.completion_tokens or -(-answer_bytes // 4)
        usage.prefill_seconds = (first or now) - begun
        usage.decode_seconds = now - (first or now)
        self._stats.tokens_generated += usage.completion_tokens
        self._stats.prompt_tokens_processed += usage.prompt_tokens
        self._stats.busy_seconds += now - begun
        request.finished(reason, usage)

    async def _calibrate(self, request: Request) -> None:
        """One short answer: includes the way to the server and back, as every request will."""
        words = "one two three four five six seven eight nine ten " * 10
        message = engine_pb2.ChatMessage(role="user", content=f"Repeat these words: {words}")
        command = engine_pb2.GenerateRequest(messages=[message], max_tokens=CALIBRATION_TOKENS)
        begun = time.monotonic()
        arrivals: list[float] = []
        tokens = 0
        async for chunk in self._chunks(_body(command, self._model), True):
            piece, _ = _piece(chunk)
            if piece:
                arrivals.append(time.monotonic())
                tokens += estimate_tokens(piece)
        if not arrivals:
            raise KithError("engine-failed", f"the model {self._model} at {self._url} answers nothing", "Try another.")
        reading = max(arrivals[0] - begun, 1e-6)
        writing = max(arrivals[-1] - arrivals[0], 1e-6) if len(arrivals) > 1 else reading
        rates = engine_pb2.Calibrated(
            prefill_tokens_per_s=estimate_tokens(message.content) / reading, decode_tokens_per_s=tokens / writing
        )
        request.answer(engine_pb2.EngineEvent(calibrated=rates))

    async def _chunks(self, body: dict[str, Any], chat: bool) -> AsyncIterator[dict[str, Any]]:
        """The stream's JSON objects. Raises `KithError`."""
        path = "/chat/completions" if chat else "/completions"
        parser = SseParser()
        async with self._reached(), self._client.stream("POST", self._url + path, json=body) as response:
            if response.status_code != 200:
                raise await self._refused(response)
            empty = True
            async for block in response.aiter_bytes():
                for data in parser.feed(block):
                    if data == "[DONE]":
                        return
                    chunk = json.loads(data)
                    if not isinstance(chunk, dict) or "error" in chunk:
                        raise self._nonsense()
                    empty = False
                    yield chunk
            if empty:
                raise self._nonsense()

    async def _find_model(self, wanted: str) -> str:
        """The model's name, checked against the server's list where it has one. Raises `KithError`."""
        async with self._reached():
            response = await self._client.get(self._url + "/models", timeout=CONNECT_SECONDS)
            if response.status_code in (401, 403):
                raise await self._refused(response)
            try:
                listed = [str(entry["id"]) for entry in response.json()["data"]] if response.is_success else []
            except (TypeError, KeyError):
                listed = []
        if wanted and (wanted in listed or not listed):
            return wanted
        known = ", ".join(listed[:10]) or "none that it would list"
        if wanted:
            raise KithError("bad-model", f"{self._url} has no model {wanted!r}; it has {known}", "Name one by --model.")
        if len(listed) == 1:
            return listed[0]
        raise KithError("bad-model", f"no model is named; {self._url} has {known}", "Name one by --model.")

    @asynccontextmanager
    async def _reached(self) -> AsyncIterator[None]:
        """Turns what can go wrong on the way into operating errors."""
        try:
            yield
        except httpx2.TimeoutException as error:
            message = f"the server at {self._url} did not answer in time"
            raise KithError("engine-failed", message, "See whether it is overloaded.") from error
        except httpx2.HTTPError as error:
            message = f"the server at {self._url} can not be reached ({type(error).__name__})"
            raise KithError("engine-failed", message, "Start it, or correct --engine-url.") from error
        except (json.JSONDecodeError, SseError, UnicodeDecodeError) as error:
            raise self._nonsense() from error

    def _nonsense(self) -> KithError:
        message = f"the server at {self._url} sends what is not the OpenAI API"
        return KithError("engine-failed", message, "Correct --engine-url; it ends with /v1 for most servers.")

    async def _refused(self, response: httpx2.Response) -> KithError:
        status = response.status_code
        if status in (401, 403):
            remedy = f"Put a valid key into the environment variable {self._key_env}."
            return KithError("engine-failed", f"the server at {self._url} refuses the key ({status})", remedy)
        if status == 429:
            return KithError("busy", f"the server at {self._url} is busy (429)", "Try again later.")
        return KithError("engine-failed", f"the server at {self._url} refuses the request ({status})", "See its log.")


def _body(command: engine_pb2.GenerateRequest, model: str) -> dict[str, Any]:
    """The request in the API's words: an allow-list, and only what differs from the server's defaults."""
    sampling = command.sampling
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "seed": sampling.seed & 0x7FFFFFFF,
    }
    if command.messages:
        body["messages"] = [{"role": message.role, "content": message.content} for message in command.messages]
        if command.continue_from:
            body["messages"].append({"role": "assistant", "content": command.continue_from})
    else:
        body["prompt"] = command.prompt + command.continue_from
    if command.max_tokens:
        body["max_tokens"] = command.max_tokens
    if 0 < sampling.top_p < 1:
        body["top_p"] = sampling.top_p
    if command.stop:
        body["stop"] = list(command.stop)
    return body


def _piece(chunk: dict[str, Any]) -> tuple[str, str]:
    """Text and finish reason of the first choice; empty where there is none."""
    choices = chunk.get("choices") or [{}]
    choice = choices[0] if isinstance(choices, list) and isinstance(choices[0], dict) else {}
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    reason = choice.get("finish_reason")
    return text if isinstance(text, str) else "", reason if isinstance(reason, str) else ""
