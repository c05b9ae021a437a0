"""The `echo` back end: no model at all, for tests and for showing what the mesh does. It says so in its model's name.

It answers with the first sentences of the longest paragraph of what it was asked, verbatim, at a steady pace, so that
a summary made with it is made of real sentences of the document. Scores come from a hash. Everything is a function of
the request: the same on every node. Tokens are words, and single characters of Chinese and Japanese; their ids are
checksums, good for going on from an answer that was begun elsewhere.
"""

import hashlib
import re
import threading
import time
import zlib
from dataclasses import dataclass, field

from mesh.wire import common_pb2, engine_pb2
from node.engine.backend import Request, unsupported
from node.errors import KithError

MODEL_NAME = "echo (no model)"
CONTEXT_TOKENS = 4096
SENTENCES = 2
VOCABULARY = hashlib.sha256(b"kith echo: words").digest()
QUEUE_MAX = 128

#: A prompt is "read" this many times faster than an answer is written.
PREFILL_FACTOR = 10

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
_TOKEN = re.compile(rf"\s*(?:[{_CJK}]|[^\s{_CJK}]+)")
_SENTENCE = re.compile(r".+?(?:[.!?]+[\"'”’)]*(?=\s|$)|[。！？]+[”’」』]*|$)", re.DOTALL)


def tokens_of(text: str) -> list[str]:
    """The tokens of `text`; joined they are the text without the white space at its end."""
    return _TOKEN.findall(text)


def answer_to(text: str) -> str:
    """The first sentences of the longest paragraph."""
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text)]
    longest = max(paragraphs, key=len)
    sentences = [match.group() for match in _SENTENCE.finditer(longest)]
    return "".join(sentences[:SENTENCES]).strip() or "(nothing)"


def token_id(token: str) -> int:
    return zlib.crc32(token.encode("utf-8", "replace"))


def rest_of(whole: list[str], begun: engine_pb2.GenerateRequest) -> list[str]:
    """The tokens of an answer after those that `begun` says were given already; all where it says something else."""
    if begun.continue_tokens:
        said = len(begun.continue_tokens)
        same = [token_id(token) for token in whole[:said]] == list(begun.continue_tokens)
        return whole[said:] if same else whole
    text = "".join(whole)
    return tokens_of(text.removeprefix(begun.continue_from)) if begun.continue_from else whole


def score_of(prompt: str, continuation: str) -> float:
    """A log-probability between -1 and -5 nats a token."""
    digest = hashlib.sha256(f"{prompt}\0{continuation}".encode("utf-8", "replace")).digest()
    return -(1.0 + 4.0 * int.from_bytes(digest[:4]) / 2**32) * max(1, len(tokens_of(continuation)))


@dataclass
class _Running:
    request: Request
    prompt_tokens: int
    tokens: list[str]
    reason: str
    began: float
    due: float  # monotonic seconds of the next token
    sent: int = 0
    queued: float = field(default_factory=time.monotonic)


class EchoBackend:
    """Implements `Backend`: one thread that sends every token when it is due."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[_Running] = []
        self._running: list[_Running] = []
        self._stats = engine_pb2.EngineStats()
        self._pace = 0.0
        self._slots = 1
        self._context_tokens = CONTEXT_TOKENS

    def load(self, command: engine_pb2.LoadModel) -> engine_pb2.EngineLoaded:
        self._pace = command.echo_tokens_per_s
        if self._pace <= 0:
            raise KithError("bad-request", "the echo engine's pace must be above 0 tokens/s", "Give another pace.")
        self._slots = max(1, command.slots)
        self._context_tokens = command.context_tokens or CONTEXT_TOKENS
        threading.Thread(target=self._run, name="echo", daemon=True).start()
        return engine_pb2.EngineLoaded(
            model=MODEL_NAME,
            context_tokens=self._context_tokens,
            slots=self._slots,
            threads=1,
            abilities=["generate", "chat", "score", "continue"],
            trained_context_tokens=self._context_tokens,
            architecture="echo",
            vocabulary_sha256=VOCABULARY,
            system_info="answers with sentences of its prompt; for tests and demonstrations of the mesh",
        )

    def submit(self, request: Request) -> None:
        kind = request.command.WhichOneof("command")
        if kind == "generate":
            self._enqueue(request)
        elif kind == "score":
            self._score(request)
        elif kind == "count_tokens":
            counts = [len(tokens_of(text)) for text in request.command.count_tokens.texts]
            request.answer(engine_pb2.EngineEvent(counts=engine_pb2.CountTokensReply(counts=counts)))
        elif kind != "calibrate":
            raise unsupported("echo", f"do {kind}")
        else:
            rates = engine_pb2.Calibrated(
                prefill_tokens_per_s=PREFILL_FACTOR * self._pace, decode_tokens_per_s=self._pace
            )
            request.answer(engine_pb2.EngineEvent(calibrated=rates))

    def wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def stats(self) -> engine_pb2.EngineStats:
        stats = engine_pb2.EngineStats()
        stats.CopyFrom(self._stats)
        stats.slots_busy = len(self._running)
        stats.queue_length = len(self._waiting)
        stats.steps = time.monotonic_ns() // 1_000_000  # always moving: there is nothing here that could hang
        return stats

    def _enqueue(self, request: Request) -> None:
        command = request.command.generate
        prompt = _prompt(command)
        count = len(tokens_of(prompt))
        self._check_length(count)
        asked = command.messages[-1].content if command.messages else command.prompt
        tokens = rest_of(tokens_of(answer_to(asked)), command)
        limit = command.max_tokens or len(tokens)
        reason = "stop" if len(tokens) <= limit else "length"
        with self._changed:
            if len(self._waiting) >= QUEUE_MAX:
                raise KithError("busy", f"{QUEUE_MAX} requests already wait for this engine", "Try again later.")
            self._waiting.append(_Running(request, count, tokens[:limit], reason, 0.0, 0.0))
            self._changed.notify()

    def _score(self, request: Request) -> None:
        command = request.command.score
        prompt = _prompt(command)
        self._check_length(len(tokens_of(prompt)))
        if not command.continuations or not all(command.continuations):
            raise KithError("bad-request", "there is nothing to score", "Send continuations that are not empty.")
        reply = engine_pb2.ScoreReply(
            log_probabilities=[score_of(prompt, text) for text in command.continuations],
            token_counts=[max(1, len(tokens_of(text))) for text in command.continuations],
            usage=common_pb2.Usage(prompt_tokens=len(tokens_of(prompt))),
        )
        request.answer(engine_pb2.EngineEvent(score=reply))

    def _check_length(self, tokens: int) -> None:
        if tokens >= self._context_tokens:
            message = f"the prompt has {tokens:,} tokens; the context holds {self._context_tokens:,}"
            raise KithError("prompt-too-long", message, "Send less text, or start the node with a larger --ctx.")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._admit()
                if not self._running:
                    self._changed.wait()
                    continue
                soonest = min(item.due for item in self._running)
                if not any(item.request.cancelled for item in self._running):
                    self._changed.wait(max(0.0, soonest - time.monotonic()))
            self._step()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            item = max(self._waiting, key=lambda item: item.request.command.generate.priority)
            self._waiting.remove(item)
            item.began = time.monotonic()
            item.due = item.began + item.prompt_tokens / (PREFILL_FACTOR * self._pace)
            item.request.started(item.prompt_tokens, 0)
            item.request.flush()
            self._running.append(item)

    def _step(self) -> None:
        now = time.monotonic()
        for item in list(self._running):
            if item.request.cancelled:
                self._finish(item, "cancelled")
                continue
            while item.due <= now and item.sent < len(item.tokens):
                token = item.tokens[item.sent]
                item.request.delta(token, 1, [token_id(token)] if item.request.command.generate.want_tokens else ())
                item.sent += 1
                item.due += 1 / self._pace
                self._stats.tokens_generated += 1
            if item.sent == len(item.tokens):
                self._finish(item, item.reason)
            item.request.flush()

    def _finish(self, item: _Running, reason: str) -> None:
        now = time.monotonic()
        prefill = item.prompt_tokens / (PREFILL_FACTOR * self._pace)
        usage = common_pb2.Usage(
            prompt_tokens=item.prompt_tokens,
            completion_tokens=item.sent,
            prefill_seconds=prefill,
            decode_seconds=max(0.0, now - item.began - prefill),
            queue_seconds=item.began - item.queued,
        )
        self._stats.prompt_tokens_processed += item.prompt_tokens
        self._stats.busy_seconds += now - item.began
        item.request.finished(reason, usage)
        item.request.flush()
        self._running.remove(item)


def _prompt(command: engine_pb2.GenerateRequest | engine_pb2.ScoreRequest) -> str:
    if bool(command.messages) == bool(command.prompt):
        message = "a request holds either messages or a prompt"
        raise KithError("bad-request", message, "Send exactly one of the two.")
    return "\n".join(message.content for message in command.messages) or command.prompt
