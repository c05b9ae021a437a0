"""The `llama` back end: GGUF models by llama.cpp, from loading to answers.

The worker thread renders, tokenizes and checks a request; the loop thread (`llama_loop.py`) does the rest. An error
that the library calls fatal ends the process: the daemon starts a new one.
"""

import hashlib
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from mesh.wire import engine_pb2
from node import gguf
from node.engine import llama, sampling
from node.engine.backend import Outbox, Request, unsupported
from node.engine.llama_loop import BATCH_TOKENS, FatalDecodeError, LlamaLoop
from node.engine.llama_work import CalibrateWork, GenerateWork, ScoreWork, Work
from node.engine.template import ChatTemplate
from node.engine.text_stream import STOP_CHARACTERS_MAX, STOPS_MAX
from node.errors import KithError

CONTINUATIONS_MAX = 256

#: Rows of the first batch: enough for the kernels that work on many rows.
WARM_UP_TOKENS = 16

#: Exit status of a process whose context broke (EX_SOFTWARE).
EXIT_BROKEN = 70


class LlamaBackend:
    """Implements `Backend`."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._model: llama.Model
        self._template: ChatTemplate
        self._loop: LlamaLoop | None = None
        self._context_tokens = 0

    def load(self, command: engine_pb2.LoadModel) -> engine_pb2.EngineLoaded:
        begun = time.monotonic()
        path = Path(command.path)
        header = gguf.read_header(path)
        llama.start(warn=_warn)
        threads = command.threads or _cores()
        slots = command.slots or 1
        self._model = model = llama.Model(path, command.gpu_layers, command.plain_kernels)
        wanted = command.context_tokens or min(model.trained_context_tokens, gguf.CONTEXT_TOKENS_DEFAULT)
        context = llama.Context(model, wanted, slots, threads, BATCH_TOKENS + slots)
        self._context_tokens = min(context.context_tokens, wanted)
        bos, eos = model.token_text("bos"), model.token_text("eos")
        self._bos = bos if model.adds_bos() else ""
        self._template = ChatTemplate(header.chat_template, bos, eos)
        _warm_up(context, min(WARM_UP_TOKENS, self._context_tokens))
        self._loop = LlamaLoop(context, slots, self._outbox.flush)
        threading.Thread(target=self._run, name="llama", daemon=True).start()
        return engine_pb2.EngineLoaded(
            model=path.stem,
            parameters=model.parameters,
            model_bytes=header.file_bytes,
            quantization=header.quantization,
            context_tokens=self._context_tokens,
            slots=slots,
            threads=threads,
            abilities=["generate", "chat", "score", "continue"],
            vocabulary_sha256=self._vocabulary_sha256(),
            load_seconds=time.monotonic() - begun,
            licence=header.licence,
            architecture=header.architecture,
            vocabulary_size=model.vocabulary_size,
            trained_context_tokens=model.trained_context_tokens,
            system_info=llama.system_info(),
            has_chat_template=self._template.given,
        )

    def submit(self, request: Request) -> None:
        kind = request.command.WhichOneof("command")
        if kind == "generate":
            self._submit_generate(request)
        elif kind == "score":
            self._submit_score(request)
        elif kind == "calibrate":
            self._add(CalibrateWork(request, self._model, self._context_tokens))
        elif kind != "count_tokens":
            raise unsupported("llama", f"do {kind}")
        else:
            count = request.command.count_tokens
            counts = [len(self._model.tokenize(text, special=False)) for text in count.texts]
            tokens = self._prompt_tokens(count.prompt_of) if count.HasField("prompt_of") else ()
            reply = engine_pb2.CountTokensReply(counts=counts, prompt_tokens=tokens)
            request.answer(engine_pb2.EngineEvent(counts=reply))

    def _vocabulary_sha256(self) -> bytes:
        """Of all pieces in order, each with its length."""
        digest = hashlib.sha256()
        for token in range(self._model.vocabulary_size):
            piece = self._model.piece(token)
            digest.update(len(piece).to_bytes(4) + piece)
        return digest.digest()

    def wake(self) -> None:
        if self._loop is not None:
            self._loop.wake()

    def stats(self) -> engine_pb2.EngineStats:
        return engine_pb2.EngineStats() if self._loop is None else self._loop.stats()

    def _submit_generate(self, request: Request) -> None:
        command = request.command.generate
        sampling.check(command.sampling)
        if len(command.stop) > STOPS_MAX or any(not 0 < len(stop) <= STOP_CHARACTERS_MAX for stop in command.stop):
            message = f"at most {STOPS_MAX} stop strings of 1 to {STOP_CHARACTERS_MAX} characters are possible"
            raise KithError("bad-request", message, "Send fewer or shorter stop strings.")
        tokens = self._checked(self._prompt_tokens(command), 0)
        self._add(GenerateWork(request, tokens, self._model, self._context_tokens))

    def _prompt_tokens(self, command: engine_pb2.GenerateRequest) -> list[int]:
        """Prompt and what of the answer is given. Raises `KithError` (`bad-request`)."""
        if not command.continue_tokens:
            return self._model.tokenize(self._prompt(command) + command.continue_from, special=True)
        if max(command.continue_tokens) >= self._model.vocabulary_size:
            raise KithError("bad-request", "a token to continue from is not in the vocabulary", "Send the text.")
        return [*self._model.tokenize(self._prompt(command), special=True), *command.continue_tokens]

    def _submit_score(self, request: Request) -> None:
        command = request.command.score
        if not 0 < len(command.continuations) <= CONTINUATIONS_MAX or not all(command.continuations):
            message = f"between 1 and {CONTINUATIONS_MAX} continuations that are not empty can be scored at once"
            raise KithError("bad-request", message, "Send other continuations.")
        prompt = self._prompt(command)
        tokens = self._model.tokenize(prompt, special=True)
        continuations = [self._continuation(prompt, tokens, text) for text in command.continuations]
        self._checked(tokens, max(map(len, continuations)))
        self._add(ScoreWork(request, tokens, continuations))

    def _continuation(self, prompt: str, prompt_tokens: list[int], text: str) -> list[int]:
        """Tokens of `text` as it reads after the prompt; on its own where the two would melt at the seam."""
        joined = self._model.tokenize(prompt + text, special=True)
        if len(joined) > len(prompt_tokens) and joined[: len(prompt_tokens)] == prompt_tokens:
            return joined[len(prompt_tokens) :]
        return self._model.tokenize(text, special=False)

    def _prompt(self, command: engine_pb2.GenerateRequest | engine_pb2.ScoreRequest) -> str:
        if bool(command.messages) == bool(command.prompt):
            message = "a request holds either messages or a prompt"
            raise KithError("bad-request", message, "Send exactly one of the two.")
        prompt = self._template.render(command.messages) if command.messages else command.prompt
        # The tokenizer adds the begin token; many templates write it as well.
        return prompt.removeprefix(self._bos)

    def _checked(self, tokens: list[int], more: int) -> list[int]:
        """Raises `KithError` (`prompt-too-long`) unless one more token than `more` has room after `tokens`."""
        if len(tokens) + more >= self._context_tokens:
            message = f"the prompt has {len(tokens) + more:,} tokens; the context holds {self._context_tokens:,}"
            raise KithError("prompt-too-long", message, "Send less text, or start the node with a larger --ctx.")
        if not tokens:
            raise KithError("bad-request", "the prompt is empty", "Send some text.")
        return tokens

    def _add(self, work: Work) -> None:
        assert self._loop is not None
        try:
            self._loop.add(work)
        except KithError:
            work.close()
            raise

    def _run(self) -> None:
        assert self._loop is not None
        try:
            self._loop.run()
        except FatalDecodeError as error:
            _warn(f"the engine broke: {error}")
        except BaseException as error:  # the thread must not die alone; no message: it could quote a prompt
            frames = "".join(traceback.format_tb(error.__traceback__))
            _warn(f"the engine broke: {type(error).__name__}\n{frames}")
        sys.stderr.flush()
        os._exit(EXIT_BROKEN)


def _cores() -> int:
    """Cores that this process may use; a container or cpuset often allows fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _warm_up(context: llama.Context, tokens: int) -> None:
    """Touch all weights once, so that the first request does not pay for it, and run the kernels for many rows, so
    that a CPU whose special units do not work (AMX in some virtual machines) crashes now and not under a request."""
    context.clear_batch()
    context.add(0, 0, [0] * tokens, tokens - 1)
    if (code := context.decode()) != 0:
        message = f"the model loads and then fails on its first token (llama_decode returned {code})"
        raise KithError("bad-model", message, "Try another GGUF file.")
    context.cut(0, 0)


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
