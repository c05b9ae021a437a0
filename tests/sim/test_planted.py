"""Each planted bug is seen within its number of seeds; without bugs the same seeds hold (test_sim.py)."""

import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from tests.sim.planting import Bug, all_bugs
from tests.sim.run import PROCESSES, run_seed

#: Until a bug was looked for, with all those before it, at the latest, seconds.
WITHIN_S = 600.0


def _look_for(name: str) -> list[str] | None:
    """None where the bug of this name is seen, else the other problems there were. In a process of its own."""
    bug = next(bug for bug in all_bugs() if bug.name == name)
    others: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        bug.plant(patch.setattr)
        for seed in range(bug.first, bug.first + bug.seeds):
            problems = run_seed(seed).problems
            if any(re.search(bug.seen_as, problem) for problem in problems):
                return None
            others += problems
    return others


@pytest.fixture(scope="module")
def looked_for(request: pytest.FixtureRequest) -> Iterator[dict[str, "Future[list[str] | None]"]]:
    """What came of each bug that this run asks for; several are looked for at a time."""
    here = [item for item in request.session.items if item.path == request.path]
    names = [item.callspec.params["bug"].name for item in here if isinstance(item, pytest.Function)]
    pool = ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"))
    try:
        yield {name: pool.submit(_look_for, name) for name in names}
    finally:
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.timeout(WITHIN_S + 60)
@pytest.mark.parametrize("bug", all_bugs(), ids=lambda bug: bug.name)
def test_a_planted_bug_is_seen(bug: Bug, looked_for: "dict[str, Future[list[str] | None]]") -> None:
    others = looked_for[bug.name].result(WITHIN_S)
    assert others is None, f"not seen in {bug.seeds} seeds; other problems: {others}"
