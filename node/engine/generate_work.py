"""A generation: token after token, each shown as text when its characters and possible stop strings are complete.

It may begin in the middle of an answer: `Said` is what was said so far, by whichever node, and everything that depends
on it (penalties, the grammar, draws, half a character, half a stop string) goes on as if there had been no cut.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mesh.wire import engine_pb2
from node.engine import llama
from node.engine.backend import Request
from node.engine.llama_work import Work
from node.engine.sampling import Sampler
from node.engine.text_stream import TextStream
from node.errors import KithError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Said:
    """The answer so far, as the prompt's last tokens."""

    tokens: list[int] = field(default_factory=list)
    text: str | None = None  # where the client gave it as text: all of that was shown


class GenerateWork(Work):
    """`sampler` knows what was said; the work closes it."""

    def __init__(
        self,
        request: Request,
        target: list[int],
        model: llama.Model,
        context_tokens: int,
        sampler: Sampler,
        said: Said,
    ) -> None:
        super().__init__(request, target)
        command = request.command.generate
        assert len(target) < context_tokens
        self._model = model
        # A sampled token needs no room of its own: the last one is never fed back.
        room = context_tokens - len(target) + 1
        self._tokens_max = min(command.max_tokens or room, room)
        self._sampler = sampler
        self._stream = TextStream(command.stop)
        if said.text is not None:
            self._stream.resume(said.text)
        else:
            for token in said.tokens:
                self._stream.feed(model.piece(token))
        self._tops = min(command.top_logprobs, model.vocabulary_size) if command.logprobs else 0
        self._delta = engine_pb2.GenerateEvent.Delta()  # what was not sent yet

    def began(self, cached_tokens: int) -> None:
        super().began(cached_tokens)
        self.request.started(self.prompt_tokens, cached_tokens)

    @property
    def over_before_begun(self) -> bool:
        """What was said is a whole answer already."""
        return self._stream.stopped or self._sampler.complete

    def take(self, logits: "NDArray[np.float32]", context: llama.Context, batch_row: int) -> None:
        del context, batch_row
        try:
            token = self._sampler.take(logits[-1])
        except KithError as error:
            self.fail(error)
            return
        if not self.decoding:
            self.first_token_at = time.monotonic()
            self.decoding = True
        self.completion_tokens += 1
        if self._model.is_end(token):
            self.finish("stop")
            return
        self._say(token, logits[-1])
        if self._stream.stopped or self._sampler.complete:
            self.finish("stop")
        elif self.completion_tokens >= self._tokens_max:
            self.finish("length")
        else:
            self.outputs_from = len(self.target)
            self.target.append(token)

    def _say(self, token: int, row: "NDArray[np.float32]") -> None:
        command = self.request.command.generate
        self._delta.tokens += 1
        if command.want_tokens:
            self._delta.token_ids.append(token)
        if command.logprobs:
            self._delta.logprobs.append(token_logprob(row, token, self._tops, self._model))
        self._delta.text = self._stream.feed(self._model.piece(token))
        if self._delta.text:
            self._send()

    def _send(self) -> None:
        self.request.put_delta(self._delta)
        self._delta = engine_pb2.GenerateEvent.Delta()

    def finish(self, reason: str) -> None:
        self._delta.text = self._stream.finish()
        if self._delta.text or self._delta.tokens:
            self._send()
        self.request.finished(reason, self.usage())
        self.done = True

    def cancel(self) -> None:
        self.finish("cancelled")

    def close(self) -> None:
        self._sampler.close()


def token_logprob(row: "NDArray[np.float32]", token: int, tops: int, model: llama.Model) -> engine_pb2.TokenLogprob:
    """The log-probability of a token by the model's own distribution, and of the likeliest."""
    highest = row.max()
    total = float(highest) + float(np.log(np.exp(row - highest).sum(dtype=np.float64)))

    def one(of: int, top: Iterable[engine_pb2.TokenLogprob] = ()) -> engine_pb2.TokenLogprob:
        return engine_pb2.TokenLogprob(token=of, piece=model.piece(of), logprob=float(row[of]) - total, top=top)

    if not tops:
        return one(token)
    likeliest = np.argpartition(row, len(row) - tops)[len(row) - tops :]
    # The lower token first where two are equally likely, as greedy decoding has it.
    ordered = sorted((int(of) for of in likeliest), key=lambda of: (-float(row[of]), of))
    return one(token, [one(of) for of in ordered])
