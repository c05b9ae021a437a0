"""Seeds and limits of sampling; the chains themselves run in test_generate_work.py."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mesh.wire import engine_pb2
from node.engine import sampling
from node.engine.grammar import Grammar, Matcher, Vocabulary
from node.engine.sampling import Sampler, seed_of
from node.errors import KithError

U64 = 2**64 - 1


@given(st.integers(0, U64), st.integers(0, 10_000), st.integers(0, 15))
def test_seed_fits_and_is_never_the_one_that_means_random(seed: int, number: int, attempt: int) -> None:
    assert 0 <= seed_of(seed, number, attempt) < 0xFFFFFFFF


def test_every_bit_of_the_seed_counts_and_every_draw_has_its_own() -> None:
    assert len({seed_of(1 << bit, 0) for bit in range(64)}) == 64
    assert len({seed_of(7, number, attempt) for number in range(500) for attempt in range(16)}) == 8000
    # Neighbours share nothing that shows in the first draw.
    low = Counter(seed_of(seed, 0) >> 30 for seed in range(4000))
    assert all(850 < count < 1150 for count in low.values())


def test_greedy_needs_no_chain() -> None:
    # No model is needed to decide this, and None is never asked for one.
    assert sampling.chain_of(engine_pb2.Sampling(repeat_penalty=1.0), None) is None  # type: ignore[arg-type]


class _Model:
    def is_end(self, token: int) -> bool:
        return token == 4


@given(st.lists(st.integers(0, 100), min_size=5, max_size=5, unique=True))
def test_greedy_under_a_grammar_takes_the_likeliest_that_is_allowed(order: list[int]) -> None:
    vocabulary = Vocabulary([b"a", b"b", b"c", b"d", b"<end>"], [4])
    logits = np.array(order, dtype=np.float32)
    sampler = Sampler(
        engine_pb2.Sampling(),
        _Model(),  # type: ignore[arg-type]
        Matcher(Grammar('root ::= "b" | "d"'), vocabulary),
    )
    before = logits.copy()
    assert sampler.take(logits) == (1 if order[1] > order[3] else 3)
    assert (logits == before).all()  # they are the library's own
    assert sampler.complete
    assert sampler.take(logits) == 4


def test_the_likeliest_are_looked_at_before_the_whole_vocabulary() -> None:
    """A bounded string is a new place at each character: all of a large vocabulary was looked through at each."""
    pieces = [f"{number:05d}x".encode() for number in range(40_000)]
    vocabulary = Vocabulary([*pieces, b"z", b"<end>"], [40_001])
    logits = np.zeros(40_002, dtype=np.float32)
    logits[:100] = 2.0  # none of these may come
    logits[40_000] = 1.0
    looked: list[bool] = []

    class Watched(Matcher):
        def allowed(self, patient: bool = True) -> NDArray[np.int32] | None:
            looked.append(patient)
            return super().allowed(patient)

    matcher = Watched(Grammar("root ::= [yz]{0,2000}"), vocabulary)
    sampler = Sampler(engine_pb2.Sampling(), _Model(), matcher)  # type: ignore[arg-type]
    for _ in range(3):
        assert sampler.take(logits) == 40_000
    assert looked
    assert not any(looked)


def test_a_grammar_that_no_token_can_follow_says_so() -> None:
    matcher = Matcher(Grammar('root ::= "z"'), Vocabulary([b"a", b"<end>"], [1]))
    sampler = Sampler(engine_pb2.Sampling(), _Model(), matcher)  # type: ignore[arg-type]
    with pytest.raises(KithError, match="no token"):
        sampler.take(np.zeros(2, dtype=np.float32))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"top_p": 1.1},
        {"min_p": 2.0},
        {"repeat_penalty": -1.0},
        {"temperature": 1e9},
        {"temperature": float("nan")},
        {"frequency_penalty": float("inf")},
        {"presence_penalty": -11.0},
        {"logit_bias": {1: float("nan")}},
        {"logit_bias": dict.fromkeys(range(2000), 1.0)},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(KithError, match="out of range"):
        sampling.check(engine_pb2.Sampling(**values), 5000)  # type: ignore[arg-type]


def test_bias_of_a_token_that_is_not_there_is_refused() -> None:
    sampling.check(engine_pb2.Sampling(logit_bias={4999: 1.0}), 5000)
    with pytest.raises(KithError, match="names the token 5000"):
        sampling.check(engine_pb2.Sampling(logit_bias={5000: 1.0}), 5000)
