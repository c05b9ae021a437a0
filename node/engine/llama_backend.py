"""The `llama` back end of models that write: GGUF files by llama.cpp, from loading to answers.

The worker thread renders, tokenizes and checks a request (`llama_requests.py`); the loop thread (`llama_loop.py`) does
the rest. Models that are made for vectors: `embedder_backend.py`.
"""

from mesh.wire import engine_pb2
from node import gguf
from node.abilities import FILE_ABILITIES
from node.engine import llama
from node.engine.adapters import Adapters
from node.engine.backend import Outbox, Request, unsupported
from node.engine.calibrate_work import CalibrateWork
from node.engine.embedding import Embedder
from node.engine.kv_exchange import KvExchange
from node.engine.llama_loop import BATCH_TOKENS, LlamaLoop
from node.engine.llama_opening import WARM_UP_TOKENS, opened, start_loop
from node.engine.llama_requests import LlamaRequests
from node.engine.llama_work import Work
from node.engine.template import ChatTemplate
from node.errors import KithError


class LlamaBackend:
    """Implements `Backend`."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._model: llama.Model
        self._requests: LlamaRequests
        self._loop: LlamaLoop | None = None
        self._context_tokens = 0

    def load(self, command: engine_pb2.LoadModel) -> engine_pb2.EngineLoaded:
        file = opened(command)
        header, threads = file.header, file.threads
        slots = command.slots or 1
        self._model = model = file.model
        wanted = command.context_tokens or min(model.trained_context_tokens, gguf.CONTEXT_TOKENS_DEFAULT)
        # On a CPU flash attention is slower than plain one, by far for several sequences; see docs/engine.md.
        flash_attention = None if command.gpu_layers else False
        rows = -(-(BATCH_TOKENS + slots) // 4) * 4  # many kernels work on four rows at a time
        context = llama.Context(model, wanted, slots, threads, rows, command.kv_unified, flash_attention)
        self._context_tokens = context.context_tokens
        template = ChatTemplate(header.chat_template, model.token_text("bos"), model.token_text("eos"))
        adapters = Adapters(model, command.adapters)
        embedder = Embedder(model, self._context_tokens, threads, header.vector_pooling())
        self._requests = LlamaRequests(model, template, adapters, embedder, self._context_tokens)
        state = _warm_up(context, min(WARM_UP_TOKENS, self._context_tokens))
        self._kv = KvExchange(context, header.paths, state, command.spill_bytes)
        self._kv_fixed = _kv_fixed(command, slots, movable=bool(self._kv.name))
        token_bytes = 0 if self._kv_fixed else self._kv.token_bytes
        self._loop = LlamaLoop(context, slots, self._outbox.flush, adapters, command.spill_bytes, token_bytes)
        self._kv_kind = context.kind
        start_loop(self._loop.run)
        loaded = file.loaded(self._context_tokens, slots)
        loaded.abilities.extend(FILE_ABILITIES["llama"])
        loaded.abilities.extend(["tools"] if template.knows_tools else [])
        loaded.abilities.extend(["kv"] if self._kv.name else [])
        loaded.kv_layout = self._kv.name
        loaded.vocabulary_sha256 = self._requests.vocabulary.sha256()
        loaded.adapters.extend(adapters.names)
        return loaded

    def submit(self, request: Request) -> None:
        kind = request.command.WhichOneof("command")
        if kind == "generate":
            self._generate(request)
        elif kind == "score":
            self._add(self._requests.score(request))
        elif kind == "embed":
            assert self._loop is not None
            self._loop.add_embed(self._requests.embed(request))
        elif kind == "calibrate":
            self._add(CalibrateWork(request, self._model, self._context_tokens))
        elif kind == "export_kv":
            assert self._loop is not None
            self._kv.send(request, self._loop)
        elif kind == "import_kv":
            assert self._loop is not None
            self._kv.receive(request, self._loop)
        elif kind != "count_tokens":
            raise unsupported("llama", f"do {kind}")
        else:
            count = request.command.count_tokens
            counts = [len(self._model.tokenize(text, special=False)) for text in count.texts]
            tokens = self._requests.prompt_tokens(count.prompt_of) if count.HasField("prompt_of") else ()
            reply = engine_pb2.CountTokensReply(counts=counts, prompt_tokens=tokens)
            request.answer(engine_pb2.EngineEvent(counts=reply))

    def wake(self) -> None:
        if self._loop is not None:
            self._loop.wake()

    def stats(self) -> engine_pb2.EngineStats:
        if self._loop is None:
            return engine_pb2.EngineStats()
        stats = self._loop.stats()
        changing = self._loop.changing
        kind, why = changing.told if changing is not None else (self._kv_kind, self._kv_fixed)
        stats.kv_cache, stats.kv_cache_why = kind, why
        return stats

    def _generate(self, request: Request) -> None:
        work = self._requests.generate(request)
        if work.over_before_begun:
            work.began(0)
            work.finish("stop")
            work.close()
            request.flush()
        else:
            self._add(work)

    def _add(self, work: Work) -> None:
        assert self._loop is not None
        try:
            self._loop.add(work)
        except KithError:
            work.close()
            raise


def _kv_fixed(command: engine_pb2.LoadModel, slots: int, movable: bool) -> str:
    """Why the kind of the KV cache stays as it is; empty: it changes as the work is."""
    if not command.kv_auto:
        return "set so"
    if slots == 1:
        return "auto: with one slot both are the same"
    if command.gpu_layers:
        return "auto: with layers on a GPU it stays so"
    return "" if movable else "auto: what this model holds can not be moved, or there is no memory to move it"


def _warm_up(context: llama.Context, tokens: int) -> bytearray:
    """A first batch; returns the state of its sequence. It touches all weights, so that the first request does not pay
    for it, and runs the kernels for many rows, so that a CPU whose special units do not work (AMX in some virtual
    machines) crashes now and not under a request."""
    context.clear_batch()
    context.add(0, 0, [0] * tokens, tokens - 1)
    if (code := context.decode()) != 0:
        message = f"the model loads and then fails on its first token (llama_decode returned {code})"
        raise KithError("bad-model", message, "Try another GGUF file.")
    state = context.state(0)
    context.cut(0, 0)
    return state
