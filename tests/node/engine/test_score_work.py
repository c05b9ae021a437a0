"""Continuations that share steps: the same values as one after another, in fewer steps, and nothing is left of them."""

import numpy as np
import pytest

from mesh.wire import engine_pb2
from node.engine import llama
from node.engine.llama_work import Work
from node.engine.score_work import ScoreWork
from tests.node.engine.test_llama_loop import (
    CONTEXT_TOKENS,
    PREFIX,
    ROUNDING,
    Alone,
    Engine,
    Probe,
    alone,
    prompt,
    request_of,
    same,
)

__all__ = ["alone"]  # a fixture

pytestmark = pytest.mark.model


def scored(engine: Engine, prompt: list[int], continuations: list[list[int]], *beside: Work) -> tuple[list[float], int]:
    """Log-probabilities, and the steps after the one that ends the prompt."""
    events: list[bytes] = []
    work = ScoreWork(request_of(events, score=engine_pb2.ScoreRequest()), prompt, continuations)
    for one in (*beside, work):
        engine.loop.add(one)
    steps = 0
    while not work.done:
        engine.loop.step()
        steps += bool(work.first_token_at)
    work.request.flush()
    return list(engine_pb2.EngineEvent.FromString(events[0][4:]).score.log_probabilities), steps - 1


def apart_a_token(left: list[float], right: list[float], lengths: list[int]) -> float:
    """Nats, in the mean."""
    return float(np.mean(np.abs(np.subtract(left, right)) / np.asarray(lengths)))


@pytest.mark.parametrize(("slots", "unified"), [(1, False), (1, True), (4, True), (4, False)])
def test_continuations_share_steps_where_cells_are_one_pool(model: llama.Model, slots: int, unified: bool) -> None:
    draw = np.random.default_rng(3)
    lengths = [1, 2, 130, 1, *(int(draw.integers(2, 9)) for _ in range(36))]
    continuations = [[int(token) for token in draw.integers(100, 40_000, length)] for length in lengths]
    engine = Engine(model, slots, unified)
    writing = [Probe(PREFIX[:50], 60)] if slots > 1 else []
    found, steps = scored(engine, PREFIX[:100], continuations, *writing)
    alone = [scored(engine, PREFIX[:100], [continuation])[0][0] for continuation in continuations]
    other = [scored(engine, PREFIX[8:108], [continuation])[0][0] for continuation in continuations]
    assert apart_a_token(found, alone, lengths) < ROUNDING / 2 < ROUNDING * 2 < apart_a_token(found, other, lengths)
    pooled = slots == 1 or unified
    assert steps <= 8 if pooled else steps == 39
    assert len(engine.context.spare) == (llama.SPARE_MAX if pooled else 0)
    engine.context.close()


def test_continuations_take_no_cells_that_a_slot_may_need(model: llama.Model) -> None:
    engine = Engine(model, 1)
    prompt = [(7907 * i) % 40_000 + 100 for i in range(CONTEXT_TOKENS - 12)]
    found, steps = scored(engine, prompt, [[*range(200 + i, 210 + i)] for i in range(6)])
    assert steps == 6, "there is room for one at a time"
    assert all(-1000 < value < 0 for value in found)
    engine.context.close()


@pytest.mark.parametrize("cancel", [False, True])
def test_a_scoring_leaves_nothing_of_its_continuations_behind(model: llama.Model, alone: Alone, cancel: bool) -> None:
    engine = Engine(model, 2, unified=True)
    continuations = [[*range(first, first + 20)] for first in range(300, 340)]
    work = ScoreWork(request_of(score=engine_pb2.ScoreRequest()), PREFIX, continuations)
    writing = Probe(prompt(2), 20)
    for one in (writing, work):
        engine.loop.add(one)
    while not work.first_token_at:
        engine.loop.step()
    engine.loop.step()
    work.request.cancelled = cancel
    while not (work.done and writing.done):
        engine.loop.step()
    after = Probe(prompt(1))
    engine.run(after)
    assert after.cached_tokens == len(PREFIX)
    assert same(after, alone)
    assert same(writing, alone)
    engine.context.close()
