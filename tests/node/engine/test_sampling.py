"""Seeds and limits of sampling; the chains themselves run in test_llama_backend.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.wire import engine_pb2
from node.engine import sampling
from node.errors import KithError

U64 = 2**64 - 1


@given(st.integers(0, U64))
def test_seed_fits_and_is_never_the_one_that_means_random(seed: int) -> None:
    folded = sampling.seed_of(engine_pb2.Sampling(seed=seed))
    assert 0 <= folded < 0xFFFFFFFF


def test_both_halves_of_the_seed_count() -> None:
    seeds = {sampling.seed_of(engine_pb2.Sampling(seed=seed)) for seed in (1, 2, 1 << 32, 2 << 32)}
    assert len(seeds) == 2  # folding: high and low half are added without carry
    assert sampling.seed_of(engine_pb2.Sampling(seed=(5 << 32) | 3)) == 6


def test_greedy_needs_no_chain() -> None:
    # No model is needed to decide this, and None is never asked for one.
    assert sampling.chain_of(engine_pb2.Sampling(repeat_penalty=1.0), None) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [{"temperature": -0.1}, {"top_p": 1.1}, {"min_p": 2.0}, {"repeat_penalty": -1.0}, {"temperature": 1e9}]
)
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(KithError, match="out of range"):
        sampling.check(engine_pb2.Sampling(**values))  # type: ignore[arg-type]


def test_values_that_are_no_number_are_refused() -> None:
    with pytest.raises(KithError, match="out of range"):
        sampling.check(engine_pb2.Sampling(temperature=float("nan")))
