"""Costs are built from measured rates, and what an agent can not do has a reason."""

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.costs import (
    DECODE_PRIOR_TOKENS_PER_S,
    LOAD_MAX_S,
    PREFILL_PRIOR_TOKENS_PER_S,
    AgentLoad,
    Cached,
    TaskNeed,
    cost_matrix,
    cost_terms,
    why_not,
)


def test_terms_are_tokens_over_rates() -> None:
    agent = AgentLoad("a", 100.0, 20.0, queued_prompt_tokens=300, queued_output_tokens=40)
    assert cost_terms(agent, TaskNeed("t", 500, 60)) == {"queue": 3.0 + 2.0, "prefill": 5.0, "decode": 3.0}


def test_loading_the_model_is_a_term_where_it_is_not_in_memory() -> None:
    ready, elsewhere = AgentLoad("a", 100.0, 20.0), AgentLoad("b", 100.0, 20.0, load_s=12.5)
    task = TaskNeed("t", 500, 60)
    assert cost_terms(elsewhere, task) == {"queue": 0.0, "load": 12.5, "prefill": 5.0, "decode": 3.0}
    assert cost_matrix([ready, elsewhere], [task]) == [[8.0, 20.5]]


@pytest.mark.parametrize("load_s", [0.0, -1.0, math.nan, math.inf, 1e9])
def test_a_false_time_of_loading_makes_no_cost_endless(load_s: float) -> None:
    terms = cost_terms(AgentLoad("a", load_s=load_s), TaskNeed("t", 1, 1))
    assert terms is not None
    assert terms.get("load", 0.0) in (0.0, LOAD_MAX_S)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_was_not_measured_is_the_prior(rate: float) -> None:
    terms = cost_terms(AgentLoad("a", rate, rate), TaskNeed("t", 650, 26))
    assert terms == {
        "queue": 0.0,
        "prefill": 650 / PREFILL_PRIOR_TOKENS_PER_S,
        "decode": 26 / DECODE_PRIOR_TOKENS_PER_S,
    }


@given(prefill=st.floats(), decode=st.floats(), queued=st.integers(0, 10**9), tokens=st.integers(0, 10**9))
def test_costs_are_finite_and_not_negative_whatever_a_profile_claims(
    prefill: float, decode: float, queued: int, tokens: int
) -> None:
    agent = AgentLoad("a", prefill, decode, queued_prompt_tokens=queued, queued_output_tokens=queued)
    terms = cost_terms(agent, TaskNeed("t", tokens, tokens))
    assert terms is not None
    assert all(math.isfinite(value) and value >= 0.0 for value in terms.values())
    if tokens:
        assert sum(terms.values()) > 0.0


@pytest.mark.parametrize(
    ("agent", "task", "reason"),
    [
        (AgentLoad("a", abilities=frozenset({"chat"})), TaskNeed("t", 1, 1, "score"), "can not score"),
        (AgentLoad("a"), TaskNeed("t", 1, 1, forbidden_agents=frozenset({"a"})), "excluded"),
        (AgentLoad("a", context_tokens=512), TaskNeed("t", 500, 13), "holds 512 tokens and the task needs 513"),
        (AgentLoad("a", draining=True), TaskNeed("t", 1, 1), "no new work"),
    ],
)
def test_what_an_agent_can_not_do_has_a_reason(agent: AgentLoad, task: TaskNeed, reason: str) -> None:
    assert cost_terms(agent, task) is None
    assert reason in why_not(agent, task)
    assert cost_matrix([agent], [task]) == [[math.inf]]


def test_a_context_that_is_just_large_enough_is_enough() -> None:
    assert why_not(AgentLoad("a", context_tokens=512), TaskNeed("t", 500, 12)) == ""


def test_a_busy_agent_still_has_a_cost() -> None:
    assert cost_terms(AgentLoad("a", 10.0, 10.0, slots_free=0), TaskNeed("t", 10, 10)) is not None


def test_matrix_has_one_row_a_task_and_one_column_an_agent() -> None:
    agents = [AgentLoad("a", 10.0, 10.0), AgentLoad("b", 20.0, 20.0)]
    assert cost_matrix(agents, [TaskNeed("t", 10, 10), TaskNeed("u", 20, 20), TaskNeed("v", 0, 0)]) == [
        [2.0, 1.0],
        [4.0, 2.0],
        [0.0, 0.0],
    ]


def test_neither_cvxpy_nor_numpy_is_imported_for_costs_and_greedy() -> None:
    code = "import solver.costs, solver.greedy, sys; print(sorted({'cvxpy', 'numpy', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_cached_is_not_read() -> None:
    agent = AgentLoad("a", 100.0, 20.0)
    terms = cost_terms(agent, TaskNeed("t", 500, 0), Cached(tokens=400))
    assert terms == {"queue": 0.0, "prefill": 1.0, "decode": 0.0}


@pytest.mark.parametrize(
    ("cached", "seconds", "moves"),
    [
        (Cached(elsewhere_tokens=400, move_s=0.5), 1.5, True),
        (Cached(elsewhere_tokens=400, move_s=4.5), 5.0, False),
        (Cached(tokens=300, elsewhere_tokens=400, move_s=0.5), 1.5, True),
        (Cached(tokens=400, elsewhere_tokens=400, move_s=0.0), 1.0, False),
        (Cached(tokens=9000), 0.0, False),
    ],
)
def test_what_another_one_holds_is_moved_where_that_is_quicker(cached: Cached, seconds: float, moves: bool) -> None:
    assert cached.prefill_s(500, 100.0) == pytest.approx(seconds)
    assert cached.moves(500, 100.0) is moves


def test_affinity_gives_way_to_a_queue() -> None:
    task = TaskNeed("t", 1000, 50)
    busy = AgentLoad("holder", 200.0, 50.0, queued_output_tokens=400)
    holder, other = cost_terms(busy, task, Cached(tokens=900)), cost_terms(AgentLoad("other", 200.0, 50.0), task)
    assert holder is not None
    assert other is not None
    assert sum(holder.values()) > sum(other.values())


def test_an_agent_needs_all_abilities() -> None:
    task = TaskNeed("t", 1, 1, "chat", abilities=frozenset({"chat", "tools", "grammar"}))
    assert why_not(AgentLoad("a", abilities=frozenset({"chat", "tools"})), task) == "it can not follow a grammar"
