"""One engine without any mesh computes a text in two ways: what a move changes, and nothing else; a part of `serve`.

An answer that nobody interrupts is computed as one batch of the prompt, then row by row. One that moved is computed as
one batch of the prompt with the tokens that were sent, then row by row. The tokens that go in are the same up to where
the two answers part; if then each way gives the token that its answer has there, and every token before it, the two
answers differ by how the batches were cut, which is rounding, and by nothing that the mesh did.

The library and its context are used as the engine's process uses them: same size of batch, one thread, nothing held.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mesh.wire import engine_pb2
from node.engine import llama
from node.engine.adapters import Adapters
from node.engine.embedding import Embedder
from node.engine.llama_loop import BATCH_TOKENS
from node.engine.llama_requests import LlamaRequests
from node.engine.template import ChatTemplate
from node.gguf import read_header

Row = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

END = -1  # stands for any token that ends an answer


@dataclass(frozen=True)
class Shown:
    """`first`, `second`: whether that way gives exactly the text, up to and with the first token that differs."""

    first: bool
    second: bool
    gap_nats: float  # how much likelier the uninterrupted answer's token is where it was computed row by row
    noise_nats: float  # the most that a token which both have differs between the two ways


class Replay:
    """The model, and a context as the engine of a node with one slot has it."""

    def __init__(self, path: Path, context_tokens: int) -> None:
        llama.start(warn=lambda _: None)
        self._model = llama.Model(path, 0)
        rows = -(-(BATCH_TOKENS + 1) // 4) * 4
        header = read_header(path)
        template = ChatTemplate(header.chat_template, self._model.token_text("bos"), self._model.token_text("eos"))
        embedder = Embedder(self._model, context_tokens, 1, header.vector_pooling())
        self._requests = LlamaRequests(self._model, template, Adapters(self._model, ()), embedder, context_tokens)
        self._context = llama.Context(self._model, context_tokens, 1, 1, rows, flash_attention=False)

    def prompt_tokens(self, request: engine_pb2.GenerateRequest) -> list[int]:
        return self._requests.prompt_tokens(request)

    def compare(self, prompt: Sequence[int], whole: Sequence[int], moved: Sequence[int], sent: int) -> Shown:
        """`whole`, `moved`: tokens of the two answers, `END` last where one ended; `sent`: of the second answer, so
        many were given to the engine that went on."""
        at = next(n for n, (one, other) in enumerate(zip(whole, moved, strict=False)) if one != other)
        assert at >= sent, "they part before the move"
        one_by_one = self._rows(prompt, whole[:at], 0)
        at_once = self._rows(prompt, moved[:at], sent)
        first = [self._choice(row) for row in one_by_one] == list(whole[: at + 1])
        second = [self._choice(row) for row in at_once] == list(moved[sent : at + 1])
        gap = _log_probability(one_by_one[-1], whole[at]) - _log_probability(one_by_one[-1], moved[at])
        common = zip(one_by_one[sent:-1], at_once[:-1], whole[sent:at], strict=True)
        noise = [abs(_log_probability(a, token) - _log_probability(b, token)) for a, b, token in common]
        return Shown(first, second, gap, max(noise, default=0.0))

    def _choice(self, row: Row) -> int:
        token = int(row.argmax())
        return END if self._model.is_end(token) else token

    def _rows(self, prompt: Sequence[int], said: Sequence[int], at_once: int) -> list[Row]:
        """Logits after the prompt and the first `at_once` tokens, read together, and after each further token."""
        context = self._context
        context.cut(0, 0)
        feed, position = [*prompt, *said[:at_once]], 0
        found = []
        for token in [*said[at_once:], None]:
            while feed:
                part, feed = feed[: context.batch_tokens], feed[context.batch_tokens :]
                context.clear_batch()
                context.add(0, position, part, len(part) if feed else len(part) - 1)
                assert context.decode() == 0
                position += len(part)
            found.append(np.array(context.logits()[-1]))
            feed = [] if token is None else [token]
        return found

    def close(self) -> None:
        self._context.close()
        self._model.close()


def _log_probability(row: Row, token: int) -> float:
    highest = float(row.max())
    return float(row[token]) - highest - float(np.log(np.exp(row - highest).sum(dtype=np.float64)))
