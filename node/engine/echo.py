"""The `echo` back end: no model at all, for tests and for showing what the mesh does. It says so in its model's name.

It answers with the first sentences of the longest paragraph of what it was asked, verbatim, at a steady pace, so that
a summary made with it is made of real sentences of the document. Scores come from a hash, vectors from the hashes of
words: texts with the same words are close. Everything is a function of the request: the same on every node, so any of
them goes on where another was cut off. Tokens are words, and single characters of Chinese and Japanese.
"""

import hashlib
import math
import re
import threading
import time
import zlib
from dataclasses import dataclass, field

from mesh.wire import common_pb2, engine_pb2
from node.engine.backend import Request, queue_full, too_late, unsupported
from node.engine.waiting import Entry, Waiting
from node.errors import ExitCode, KithError

MODEL_NAME = "echo (no model)"
CONTEXT_TOKENS = 4096
SENTENCES = 2
QUEUE_MAX = 128
EMBEDDING_SIZE = 64
ABILITIES = ("generate", "chat", "score", "embed", "continue")

#: All echoes cut text the same way.
VOCABULARY_SHA256 = hashlib.sha256(b"echo: a token is the CRC-32 of a word").digest()

#: A prompt is "read" this many times faster than an answer is written.
PREFILL_FACTOR = 10

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
_TOKEN = re.compile(rf"\s*(?:[{_CJK}]|[^\s{_CJK}]+)")
#: Ends of sentences. Each run of marks is looked at once and as a whole: a search stays linear in the text.
_END = re.compile(r"(?<![.!?])[.!?]++[\"'”’)]*+(?=\s|\Z)|[。！？]+[”’」』]*")


def tokens_of(text: str) -> list[str]:
    """The tokens of `text`; joined they are the text without the white space at its end."""
    return _TOKEN.findall(text.rstrip())  # white space that nothing follows is no token, from wherever it is looked at


def answer_to(text: str) -> str:
    """The first sentences of the longest paragraph."""
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text)]
    longest = max(paragraphs, key=len)
    begin = sentences = 0
    for end in _END.finditer(longest):
        if end.start() > begin:  # something stands before it
            begin, sentences = end.end(), sentences + 1
        if sentences == SENTENCES:
            return longest[:begin].strip()
    return longest or "(nothing)"


def score_of(prompt: str, continuation: str) -> float:
    """A log-probability between -1 and -5 nats a token."""
    digest = hashlib.sha256(f"{prompt}\0{continuation}".encode("utf-8", "replace")).digest()
    return -(1.0 + 4.0 * int.from_bytes(digest[:4]) / 2**32) * max(1, len(tokens_of(continuation)))


def id_of(token: str) -> int:
    return zlib.crc32(token.strip().encode("utf-8", "replace"))


def vector_of(text: str) -> list[float]:
    """Each word moves one coordinate up or down; of length 1."""
    values = [0.0] * EMBEDDING_SIZE
    values[0] = 0.5  # a text without words has a direction too
    for token in tokens_of(text.lower()):
        number = id_of(token)
        values[number % EMBEDDING_SIZE] += 1.0 if number & 0x8000_0000 else -1.0
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / length for value in values]


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
        self._waiting: Waiting[_Running] = Waiting()
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
            abilities=ABILITIES,
            vocabulary_sha256=VOCABULARY_SHA256,
            embedding_size=EMBEDDING_SIZE,
            trained_context_tokens=self._context_tokens,
            architecture="echo",
            system_info="answers with sentences of its prompt; for tests and demonstrations of the mesh",
        )

    def submit(self, request: Request) -> None:
        kind = request.command.WhichOneof("command")
        if kind == "generate":
            self._enqueue(request)
        elif kind == "score":
            self._score(request)
        elif kind == "embed":
            self._embed(request)
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
        for what in ("grammar", "json_schema", "logprobs", "tools_json", "adapter"):
            if getattr(command, what):
                raise unsupported("echo", f"follow {what}")
        tokens = self._rest(command)
        limit = command.max_tokens or len(tokens)
        reason = "stop" if len(tokens) <= limit else "length"
        item = _Running(request, count, tokens[:limit], reason, 0.0, 0.0)
        with self._changed:
            if len(self._waiting) >= QUEUE_MAX:
                raise queue_full(QUEUE_MAX)
            self._waiting.add(Entry.of(item, command, max(1, count), item.queued))
            self._changed.notify()

    def _rest(self, command: engine_pb2.GenerateRequest) -> list[str]:
        """The tokens of the answer, without those that were said already."""
        whole = answer_to(command.messages[-1].content if command.messages else command.prompt)
        if not command.continue_tokens:
            return tokens_of(whole.removeprefix(command.continue_from))
        tokens, said = tokens_of(whole), list(command.continue_tokens)
        if [id_of(token) for token in tokens[: len(said)]] != said:
            message = "the answer so far is not what this engine says"
            raise KithError("bad-request", message, "Go on with the model that began.", ExitCode.BAD_INPUT)
        return tokens[len(said) :]

    def _embed(self, request: Request) -> None:
        texts = request.command.embed.texts
        if not texts or not all(texts):
            raise KithError("bad-request", "there is nothing to embed", "Send texts.", ExitCode.BAD_INPUT)
        counts = [len(tokens_of(text)) for text in texts]
        self._check_length(max(counts))
        reply = engine_pb2.EmbedReply(
            vectors=[engine_pb2.EmbedReply.Vector(values=vector_of(text)) for text in texts],
            usage=common_pb2.Usage(prompt_tokens=sum(counts)),
        )
        request.answer(engine_pb2.EngineEvent(embedded=reply))

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
        for late in self._waiting.too_late(time.monotonic()):
            late.request.fail(too_late())
        while len(self._running) < self._slots and (item := self._waiting.take()) is not None:
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
                ids = [id_of(token)] if item.request.command.generate.want_tokens else []
                item.request.put_delta(engine_pb2.GenerateEvent.Delta(text=token, tokens=1, token_ids=ids))
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
