"""Every kind of memory, with tiny random models: whatever is shared, spilled or cut, logits are a fresh reading's."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesh.wire import engine_pb2
from node.engine import kv_state, llama
from node.engine.adapters import Adapters
from node.engine.backend import Outbox, Request
from node.engine.llama_loop import LlamaLoop
from node.engine.llama_work import Work
from tests.node.engine import tiny_models

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Rounding of 32-bit sums; keys and values are kept in 16 bits. A wrong token moves logits by whole units.
ROUNDING = 0.05


class Reader(Work):
    """Reads a prompt, writes some tokens, and keeps all logits; in the end it may rewind and read another ending."""

    def __init__(self, prompt: list[int], write: int = 1, endings: tuple[list[int], ...] = ()) -> None:
        command = engine_pb2.EngineCommand(generate=engine_pb2.GenerateRequest())
        super().__init__(Request(command, Outbox(lambda _: None), lambda _: None), list(prompt))
        self.write = write
        self.endings = [*endings]
        self.seen: list[tuple[list[int], NDArray[np.float32]]] = []  # tokens, and logits after them

    def take(self, logits: "NDArray[np.float32]", context: llama.Context, batch_row: int) -> None:
        del context, batch_row
        self.seen.append((list(self.target), logits[-1].copy()))
        self.decoding = True
        self.write -= 1
        if self.write > 0:
            self.target.append(int(logits[-1].argmax()))
            self.outputs_from = len(self.target) - 1
        elif self.endings:
            self.rewind = self.prompt_tokens
            self.target = self.target[: self.prompt_tokens] + self.endings.pop()
            self.outputs_from = len(self.target) - 1
        else:
            self.done = True

    def cancel(self) -> None:
        self.done = True


@pytest.fixture(scope="module", params=tiny_models.KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[llama.Model]:
    path: Path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    tiny_models.write(request.param, path)
    llama.start(warn=lambda _: None)
    model = llama.Model(path, 0)
    yield model
    model.close()


class Fresh:
    """Logits after tokens, read at one stroke by a sequence that held nothing."""

    def __init__(self, model: llama.Model) -> None:
        self._context = llama.Context(model, 256, 1, 1, 256, flash_attention=False)

    def after(self, tokens: list[int]) -> "NDArray[np.float32]":
        self._context.cut(0, 0)
        self._context.clear_batch()
        self._context.add(0, 0, tokens, len(tokens) - 1)
        assert self._context.decode() == 0
        logits: NDArray[np.float32] = self._context.logits()[-1].copy()
        return logits

    def close(self) -> None:
        self._context.close()


@pytest.mark.parametrize("unified", [False, True], ids=["split", "unified"])
@pytest.mark.parametrize("spill_bytes", [0, 1 << 20])
def test_logits_are_those_of_a_fresh_reading(model: llama.Model, unified: bool, spill_bytes: int) -> None:
    draw = np.random.default_rng(11)
    context = llama.Context(model, 128, 3, 1, 32, unified, flash_attention=False)
    loop = LlamaLoop(context, 3, lambda: None, Adapters(model, ()), spill_bytes)
    fresh = Fresh(model)
    base = draw.integers(0, 64, 60).tolist()
    readers: list[Reader] = []
    for number in range(40):
        tail = draw.integers(0, 64, int(draw.integers(1, 12))).tolist()
        finished = [reader for reader in readers if reader.done and len(reader.target) < 80]
        if number % 3 == 0 and finished:  # a conversation goes on
            prompt = finished[int(draw.integers(len(finished)))].target + tail
        else:
            prompt = base[: int(draw.choice([0, 20, 40, 60]))] + tail
        endings = tuple(draw.integers(0, 64, 3).tolist() for _ in range(number % 4 // 2))
        readers.append(Reader(prompt, int(draw.integers(1, 6)), endings))
        loop.add(readers[-1])
        if number % 7 == 6:
            readers[-1].request.cancelled = True
        for _ in range(int(draw.integers(0, 5))):
            loop.step()
    while not all(reader.done for reader in readers):
        loop.step()
    for reader in readers:
        for tokens, logits in reader.seen:
            assert float(np.abs(logits - fresh.after(tokens)).max()) < ROUNDING
    assert sum(len(reader.seen) for reader in readers) > 80
    assert loop.stats().cached_tokens > 0
    context.close()
    fresh.close()


def test_a_wrong_token_would_be_seen(model: llama.Model) -> None:
    fresh = Fresh(model)
    tokens = list(range(1, 12))
    assert float(np.abs(fresh.after(tokens) - fresh.after([*tokens[:8], 60, *tokens[9:]])).max()) > 2 * ROUNDING
    fresh.close()


def test_state_that_was_packed_goes_into_another_context(model: llama.Model) -> None:
    tokens = [(7 * i) % 64 for i in range(30)]
    one = llama.Context(model, 64, 2, 1, 64, flash_attention=False)
    other = llama.Context(model, 128, 3, 1, 64, flash_attention=False)
    one.add(1, 0, tokens, len(tokens))
    assert one.decode() == 0
    state = one.state(1)
    if not one.divisible:
        with pytest.raises(kv_state.NotPlainError):
            kv_state.layout_of(state)
    else:
        layout = kv_state.layout_of(state)
        packed = kv_state.pack(state, layout, "0" * 64, tokens[:20])
        assert other.restore(2, kv_state.unpack(packed, layout, "0" * 64, tokens[:20], 3))
        other.add(2, 20, tokens[20:], 9)
        assert other.decode() == 0
        fresh = Fresh(model)
        assert float(np.abs(other.logits()[-1] - fresh.after(tokens)).max()) < ROUNDING
        fresh.close()
    one.close()
    other.close()
