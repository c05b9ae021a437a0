"""A calibration: how fast this machine reads and writes with this model, measured through the loop that serves."""

import time
from statistics import median
from typing import TYPE_CHECKING

from mesh.wire import engine_pb2
from node.engine import llama
from node.engine.backend import Request
from node.engine.llama_work import Work

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class CalibrateWork(Work):
    """Measures the rates that a cost model reads: the median over batches of prefill, and over decode steps.

    It runs as any other work does, so it measures the loop, not the library alone. Bounded in time: at most about
    `PREFILL_SECONDS` + `DECODE_SECONDS`, if a single batch does not take longer.
    """

    PREFILL_TOKENS = 256
    DECODE_TOKENS = 32
    PREFILL_SECONDS = 2.0
    DECODE_SECONDS = 0.8

    def __init__(self, request: Request, model: llama.Model, context_tokens: int) -> None:
        length = min(self.PREFILL_TOKENS, context_tokens // 2)
        # Any tokens do: the time does not depend on them. These are ordinary ones of every vocabulary.
        super().__init__(request, [(7919 * i) % (model.vocabulary_size // 2) + 100 for i in range(length)])
        self.reuse_max = 0
        self._fed = 0
        self._prefill_rates: list[float] = []
        self._decode_rates: list[float] = []

    def fed(self, tokens: int, seconds: float) -> None:
        rate = tokens / max(seconds, 1e-9)
        self._fed += tokens
        if self.decoding:
            self._decode_rates.append(rate)
            return
        if tokens > 1 or not self._prefill_rates:
            self._prefill_rates.append(rate)
        late = time.monotonic() - self.began_at + seconds > self.PREFILL_SECONDS
        if late and self._fed < len(self.target):
            self.target = self.target[: self._fed + 1]
            self.outputs_from = self._fed

    def take(self, logits: "NDArray[np.float32]", context: llama.Context, batch_row: int) -> None:
        del context, batch_row
        self.decoding = True
        self.first_token_at = self.first_token_at or time.monotonic()
        late = time.monotonic() - self.first_token_at > self.DECODE_SECONDS
        if len(self._decode_rates) >= self.DECODE_TOKENS or (late and self._decode_rates):
            self._finish()
            return
        self.outputs_from = len(self.target)
        self.target.append(int(logits[-1].argmax()))

    def _finish(self) -> None:
        rates = engine_pb2.Calibrated(
            prefill_tokens_per_s=median(self._prefill_rates), decode_tokens_per_s=median(self._decode_rates)
        )
        self.request.put(engine_pb2.EngineEvent(calibrated=rates), last=True)
        self.done = True
