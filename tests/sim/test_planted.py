"""Each planted bug is seen within its number of seeds; without bugs the same seeds hold (test_sim.py)."""

import re

import pytest

from tests.sim.planting import Bug, all_bugs
from tests.sim.run import run_seed


@pytest.mark.slow
@pytest.mark.parametrize("bug", all_bugs(), ids=lambda bug: bug.name)
def test_a_planted_bug_is_seen(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch.setattr)
    seen: list[str] = []
    for seed in range(bug.first, bug.first + bug.seeds):
        problems = run_seed(seed).problems
        if any(re.search(bug.seen_as, problem) for problem in problems):
            return
        seen += problems
    pytest.fail(f"not seen in {bug.seeds} seeds; other problems: {seen}")
