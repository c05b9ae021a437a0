"""The batching loop on the real model, stepped by hand: what is shared, and that sharing does not change the logits."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mesh.wire import common_pb2, engine_pb2
from node.engine import kv_state, llama
from node.engine.adapters import Adapters
from node.engine.backend import Outbox, Request
from node.engine.embedding import Embedder, EmbedWork
from node.engine.llama_loop import LlamaLoop
from node.engine.llama_work import Work
from node.errors import KithError
from node.gguf import POOLING_MEAN

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.model

CONTEXT_TOKENS = 256
#: Kernels for a batch of one row round differently from those for many: logits move by 0.1 in the mean.
ROUNDING = 0.25
PREFIX = [(7919 * i) % 40_000 + 100 for i in range(120)]


class Probe(Work):
    """Reads a prompt, then writes greedily; keeps the logits after the prompt."""

    def __init__(self, prompt: list[int], tokens: int = 1) -> None:
        command = engine_pb2.EngineCommand(generate=engine_pb2.GenerateRequest())
        super().__init__(Request(command, Outbox(lambda _: None), lambda _: None), list(prompt))
        self.tokens = tokens
        self.after_prompt: NDArray[np.float32] | None = None

    def take(self, logits: "NDArray[np.float32]", context: llama.Context, batch_row: int) -> None:
        del context, batch_row
        if self.after_prompt is None:
            self.after_prompt = logits[-1].copy()
        self.decoding = True
        self.tokens -= 1
        self.done = self.tokens <= 0
        if not self.done:
            self.outputs_from = len(self.target)
            self.target.append(int(logits[-1].argmax()))

    def cancel(self) -> None:
        self.done = True


def kv_token_bytes(context: llama.Context) -> int:
    """What a token takes in the states of an empty context."""
    context.clear_batch()
    context.add(0, 0, [5, 6], 2)
    assert context.decode() == 0
    layout = kv_state.layout_of(context.state(0))
    context.cut(0, 0)
    return layout.state_bytes_per_token


class Engine:
    def __init__(
        self, model: llama.Model, slots: int, unified: bool = False, spill_bytes: int = 0, kv_auto: bool = False
    ) -> None:
        self.context = llama.Context(model, CONTEXT_TOKENS, slots, 1, 128, unified, flash_attention=False)
        token_bytes = kv_token_bytes(self.context) if kv_auto else 0
        self.loop = LlamaLoop(self.context, slots, lambda: None, Adapters(model, ()), spill_bytes, token_bytes)

    def run(self, *works: Work) -> None:
        for work in works:
            self.loop.add(work)
        while not all(work.done for work in works):
            self.loop.step()

    @property
    def read(self) -> int:
        return self.loop.stats().prompt_tokens_processed

    @property
    def cached(self) -> int:
        return self.loop.stats().cached_tokens


@pytest.fixture(params=["split", "unified"])
def engine(model: llama.Model, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(model, slots=4, unified=request.param == "unified", spill_bytes=64 << 20)
    yield engine
    engine.context.close()


@pytest.fixture(scope="module")
def alone(model: llama.Model) -> Iterator[dict[tuple[int, ...], "NDArray[np.float32]"]]:
    """Logits after a prompt that nobody shared: a fresh sequence each."""
    engine = Engine(model, slots=1)

    class Fresh(dict[tuple[int, ...], "NDArray[np.float32]"]):
        def __missing__(self, prompt: tuple[int, ...]) -> "NDArray[np.float32]":
            probe = Probe(list(prompt))
            probe.reuse_max = 0
            engine.run(probe)
            assert probe.after_prompt is not None
            self[prompt] = probe.after_prompt
            return probe.after_prompt

    yield Fresh()
    engine.context.close()


Alone = dict[tuple[int, ...], "NDArray[np.float32]"]


def same(probe: Probe, alone: Alone) -> bool:
    prompt = tuple(probe.target[: probe.prompt_tokens])
    assert probe.after_prompt is not None
    return apart(probe.after_prompt, alone[prompt]) < ROUNDING


def apart(left: "NDArray[np.float32]", right: "NDArray[np.float32]") -> float:
    return float(np.abs(left - right).mean())


def prompt(tail: int, length: int = 8) -> list[int]:
    return [*PREFIX, *(1000 * tail + i for i in range(length))]


def test_wrong_prefix_would_be_seen(alone: Alone) -> None:
    right = prompt(1)
    others = (
        [*right[8:16], *right[8:]],
        right[8:],
        [*right[:112], *right[120:]],
        [*right[:112], *right[:8], *right[120:]],
    )
    assert [apart(alone[tuple(right)], alone[tuple(wrong)]) > ROUNDING for wrong in others] == [True] * 4


def test_requests_that_come_together_read_a_common_beginning_once(engine: Engine, alone: Alone) -> None:
    probes = [Probe(prompt(tail), 6) for tail in range(1, 9)]
    engine.run(*probes)
    assert engine.read == len(PREFIX) + 8 * 8
    assert engine.cached == 7 * len(PREFIX)
    assert all(same(probe, alone) for probe in probes)


def test_conversation_goes_on_in_its_own_slot(engine: Engine, alone: Alone) -> None:
    first = Probe(prompt(1), 5)
    engine.run(first)
    turn = [*first.target, 300, 301, 302]
    second = Probe(turn)
    engine.run(second)
    assert second.cached_tokens == len(first.target)
    assert same(second, alone)


def test_side_question_does_not_cost_the_conversation(engine: Engine, alone: Alone) -> None:
    engine.run(Probe([*prompt(1), *range(500, 560)]))
    aside = Probe(prompt(2))
    engine.run(aside)
    again = Probe([*prompt(1), *range(500, 560), 77])
    engine.run(again)
    assert aside.cached_tokens == len(PREFIX)
    assert again.cached_tokens == len(PREFIX) + 68
    assert same(aside, alone)
    assert same(again, alone)


def test_running_request_is_shared_from_as_well(engine: Engine, alone: Alone) -> None:
    writing = Probe(prompt(1), 60)
    engine.loop.add(writing)
    while not writing.decoding:
        engine.loop.step()
    joining = Probe(prompt(2))
    engine.run(joining)
    assert not writing.done
    assert joining.cached_tokens == len(PREFIX)
    assert same(joining, alone)


def test_prefix_that_was_spilled_comes_back(model: llama.Model, alone: Alone) -> None:
    engine = Engine(model, slots=1, spill_bytes=16 << 20)
    other = [token + 7 for token in PREFIX]
    for tokens in (prompt(1), other, prompt(2), [*other, 5, 6]):
        probe = Probe(tokens)
        engine.run(probe)
        assert same(probe, alone)
    assert engine.cached == 2 * len(PREFIX)
    engine.context.close()


def test_nothing_is_kept_without_room_for_it(model: llama.Model) -> None:
    engine = Engine(model, slots=1)
    for tokens in (prompt(1), [token + 7 for token in PREFIX], prompt(2)):
        engine.run(Probe(tokens))
    assert engine.cached == 0
    engine.context.close()


def test_who_waits_for_a_cancelled_reader_goes_on_alone(engine: Engine, alone: Alone) -> None:
    reader, waiting, third = Probe(prompt(1)), Probe(prompt(2)), Probe(prompt(3))
    for probe in (reader, waiting, third):
        engine.loop.add(probe)
    reader.request.cancelled = True
    engine.loop.step()
    engine.run()
    while not (waiting.done and third.done):
        engine.loop.step()
    assert reader.after_prompt is None
    assert engine.read == len(PREFIX) + 2 * 8
    assert same(waiting, alone)
    assert same(third, alone)


def test_reader_cancelled_half_way_leaves_what_it_read(engine: Engine, alone: Alone) -> None:
    long = [(7907 * i) % 40_000 + 100 for i in range(200)]
    reader, waiting = Probe([*long, 1, 2]), Probe([*long, 3, 4])
    engine.loop.add(reader)
    engine.loop.add(waiting)
    engine.loop.step()
    reader.request.cancelled = True
    engine.run(waiting)
    assert waiting.cached_tokens == 128
    assert same(waiting, alone)


def test_of_all_who_waited_for_a_cancelled_reader_one_reads_the_rest(engine: Engine, alone: Alone) -> None:
    long = [(7907 * i) % 40_000 + 100 for i in range(200)]
    reader, *waiting = [Probe([*long, number, 4]) for number in range(1, 4)]
    for probe in (reader, *waiting):
        engine.loop.add(probe)
    engine.loop.step()
    reader.request.cancelled = True
    while not all(probe.done for probe in waiting):
        engine.loop.step()
    # Both had what the reader had; the rest of the common beginning is read once.
    assert [probe.cached_tokens for probe in waiting] == [128, 200]
    assert all(same(probe, alone) for probe in waiting)


def test_random_traffic_gets_right_logits(model: llama.Model, alone: Alone) -> None:
    """Few slots, a small spill, prompts that share beginnings of many lengths, some cancelled: always as if alone."""
    draw = np.random.default_rng(7)
    for unified in (False, True):
        engine = Engine(model, slots=3, unified=unified, spill_bytes=6 << 20)
        probes: list[Probe] = []
        for number in range(16):
            shared = PREFIX[: int(draw.choice([0, 20, 60, 120]))]
            probe = Probe([*shared, *(200 * int(draw.integers(1, 4)) + i for i in range(int(draw.integers(1, 30))))], 3)
            engine.loop.add(probe)
            probes.append(probe)
            if number % 5 == 4:
                probe.request.cancelled = True
            for _ in range(int(draw.integers(0, 4))):
                engine.loop.step()
        while not all(probe.done for probe in probes):
            engine.loop.step()
        assert engine.cached > 0
        assert all(same(probe, alone) for probe in probes if probe.after_prompt is not None)
        engine.context.close()


class Broken(Probe):
    """Fails in one of the places where the loop calls a work."""

    def __init__(self, where: str, error: Exception, prompt: list[int]) -> None:
        super().__init__(prompt, 20)
        self.where = where
        self.error = error
        self.events: list[bytes] = []
        self.ended: list[int] = []
        self.closed = 0
        self.request = Request(self.request.command, Outbox(self.events.append), self.ended.append)

    def _maybe(self, where: str) -> None:
        if where == self.where:
            raise self.error

    def began(self, cached_tokens: int) -> None:
        super().began(cached_tokens)
        self._maybe("began")

    def fed(self, tokens: int, seconds: float) -> None:
        self._maybe("fed")

    def take(self, logits: "NDArray[np.float32]", context: llama.Context, batch_row: int) -> None:
        if self.tokens < 18:
            self._maybe("take")
        super().take(logits, context, batch_row)

    def cancel(self) -> None:
        self._maybe("cancel")
        super().cancel()

    def close(self) -> None:
        self.closed += 1
        self._maybe("close")

    @property
    def problem(self) -> common_pb2.Problem:
        self.request.flush()
        return engine_pb2.EngineEvent.FromString(self.events[0][4:]).problem


@pytest.mark.parametrize("where", ["began", "fed", "take", "cancel", "close"])
def test_an_error_in_one_request_ends_that_one_alone(
    engine: Engine, alone: Alone, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    others = [Probe(prompt(tail), 30) for tail in range(1, 4)]
    broken = Broken(where, IndexError("a secret of the prompt"), prompt(7))
    for work in (*others, broken):
        engine.loop.add(work)
    for _ in range(8):
        engine.loop.step()
    if where == "cancel":
        broken.request.cancelled = True
    engine.run(Probe(prompt(5)))  # admitted when one is gone
    while not all(probe.done for probe in others):
        engine.loop.step()
    assert all(same(probe, alone) for probe in others)
    assert broken.closed == 1
    assert engine.loop.stats().slots_busy == 0
    told = capfd.readouterr().err
    assert "IndexError" in told
    assert "test_llama_loop.py" in told
    assert "secret" not in told
    if where != "close":  # the answer was complete by then
        assert broken.ended
        assert broken.problem.code == "engine-failed"
        assert "IndexError" in broken.problem.message
        assert "log" in broken.problem.remedy


def request_of(events: list[bytes] | None = None, **command: Any) -> Request:
    sent = Outbox((events if events is not None else []).append)
    return Request(engine_pb2.EngineCommand(**command), sent, lambda _: None)


def test_embeddings_and_calls_under_way_count_as_work(model: llama.Model) -> None:
    """Otherwise the watchdog takes an engine that hangs in one of them for an idle one."""
    engine = Engine(model, slots=1)
    seen: list[int] = []

    class Looking(Embedder):
        def embed(self, texts: Sequence[list[int]]) -> list[list[float]]:
            seen.append(engine.loop.stats().queue_length)
            return super().embed(texts)

    request = Request(engine_pb2.EngineCommand(embed=engine_pb2.EmbedRequest()), Outbox(lambda _: None), lambda _: None)
    work = EmbedWork(request, [[5, 6, 7]] * 20, Looking(model, CONTEXT_TOKENS, 1, POOLING_MEAN))
    engine.loop.add_embed(work)
    engine.loop.call(lambda _: seen.append(engine.loop.stats().queue_length))
    assert engine.loop.stats().queue_length == 2
    while not work.done:
        engine.loop.step()
    assert seen == [2, 1, 1]
    assert engine.loop.stats().queue_length == 0
    engine.context.close()


def test_an_operating_error_of_a_request_is_told_as_it_is(engine: Engine) -> None:
    broken = Broken("take", KithError("bad-grammar", "too hard", "Simplify it."), prompt(7))
    engine.run(broken)
    assert broken.problem.code == "bad-grammar"


def test_an_error_in_embeddings_ends_that_request_alone(model: llama.Model, capfd: pytest.CaptureFixture[str]) -> None:
    class BrokenEmbedder(Embedder):
        def embed(self, texts: Sequence[list[int]]) -> list[list[float]]:
            if len(texts[0]) == 3:
                raise ZeroDivisionError
            return super().embed(texts)

    engine = Engine(model, slots=1)
    events: list[bytes] = []
    embedder = BrokenEmbedder(model, CONTEXT_TOKENS, 1, POOLING_MEAN)
    works = []
    for texts in ([[5, 6, 7]], [[5, 6]]):
        request = Request(
            engine_pb2.EngineCommand(embed=engine_pb2.EmbedRequest()), Outbox(events.append), lambda _: None
        )
        works.append(EmbedWork(request, texts, embedder))
        engine.loop.add_embed(works[-1])
    for _ in range(2):
        engine.loop.step()
    assert [work.done for work in works] == [True, True]
    for work in works:
        work.request.flush()
    kinds = [engine_pb2.EngineEvent.FromString(event[4:]).WhichOneof("event") for event in events]
    assert kinds == ["problem", "embedded"]
    assert "ZeroDivisionError" in capfd.readouterr().err
    engine.context.close()
