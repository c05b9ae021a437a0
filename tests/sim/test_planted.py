"""Each planted bug is seen within its number of seeds; without bugs the same seeds hold (test_sim.py)."""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.pool import AsyncResult

import pytest

from tests.sim.planting import Bug, Search, all_bugs, look_for
from tests.sim.run import PROCESSES

#: Until a bug was looked for, with all those before it, at the latest, seconds.
WITHIN_S = 600.0


@pytest.fixture(scope="module")
def looked_for(request: pytest.FixtureRequest) -> Iterator[dict[str, "AsyncResult[Search]"]]:
    """What came of each bug that this run asks for; several are looked for at a time."""
    here = [item for item in request.session.items if item.path == request.path]
    bugs = [item.callspec.params["bug"] for item in here if isinstance(item, pytest.Function)]
    names = [bug.name for bug in bugs if isinstance(bug, Bug)]
    # A process a bug: a patch must not outlive its bug.
    with multiprocessing.get_context("spawn").Pool(PROCESSES, maxtasksperchild=1) as pool:
        yield {name: pool.apply_async(look_for, [name]) for name in names}
        pool.terminate()
        pool.join()


@pytest.mark.slow
@pytest.mark.timeout(WITHIN_S + 60)
@pytest.mark.parametrize("bug", all_bugs(), ids=lambda bug: bug.name)
def test_a_planted_bug_is_seen(bug: Bug, looked_for: "dict[str, AsyncResult[Search]]") -> None:
    search = looked_for[bug.name].get(WITHIN_S)
    assert search.seen_after, f"not seen in {len(bug.tried())} seeds; other problems: {search.others}"
