"""The mesh through its troubles: many seeds hold, and a seed repeats.

A bigger range by hand: `python -m tests.sim.run --seeds 1-1000 --processes 0`; one seed: `scripts/test --seed N`.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.gossip import Gossip
from tests.sim.faults import FAULTS_MIN
from tests.sim.planting import all_bugs
from tests.sim.result import SimResult
from tests.sim.run import NODES_MAX, PROCESSES, main, run_seed, run_seeds
from tests.sim.world import VIRTUAL_S, size_of_seed

QUICK_SEEDS = range(1, 11)
#: The first 500 of the worlds that the tests run.
SEEDS = list(itertools.islice((seed for seed in itertools.count(11) if size_of_seed(seed) <= NODES_MAX), 500))
#: So many in one test: a run shows how far it is, and what hangs is cut off early.
SEEDS_A_TEST = 100
ROOT = Path(__file__).parents[2]


def _check(result: SimResult) -> None:
    assert result.ok, result.describe()
    assert result.virtual_s >= VIRTUAL_S
    assert result.faults >= FAULTS_MIN
    assert result.live >= 2
    assert result.leader_changes >= result.live
    assert result.events > 500 * result.nodes


@pytest.mark.parametrize("seed", QUICK_SEEDS)
def test_a_seed_holds(seed: int) -> None:
    _check(run_seed(seed))


def test_the_many_seeds_are_of_all_sizes() -> None:
    sizes = [size_of_seed(seed) for seed in SEEDS]
    assert sum(1 for size in sizes if size >= 10) > len(SEEDS) / 20
    assert max(sizes) >= 100


def test_where_bugs_are_planted_all_holds_without_them() -> None:
    """Else a planted bug could be seen by what breaks without it."""
    tried = {seed for bug in all_bugs() for seed in bug.tried()}
    assert tried <= {*QUICK_SEEDS, *SEEDS}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, len(SEEDS), SEEDS_A_TEST))
def test_many_seeds_hold(first: int) -> None:
    # The largest worlds first, so that none of them is begun last and runs alone.
    seeds = sorted(SEEDS[first : first + SEEDS_A_TEST], key=size_of_seed, reverse=True)
    broken, held = [], 0
    for result in run_seeds(seeds, PROCESSES):
        if not result.ok:
            broken.append(result.describe())
            continue
        _check(result)
        assert result.nodes == size_of_seed(result.seed)
        held += 1
    assert not broken, "\n\n".join(broken)
    assert held == len(seeds)


@pytest.mark.parametrize("seed", [7, pytest.param(17, marks=pytest.mark.slow), 32])
def test_a_seed_tells_the_same_story_in_every_process(seed: int) -> None:
    stories = {
        subprocess.run(
            [sys.executable, "-m", "tests.sim.run", "--seed", str(seed), "--story", "--no-rate"],
            cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True,
        ).stdout
        for hash_seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(stories) == 1
    assert len(stories.pop().splitlines()) > 50


def test_a_failure_is_told_with_its_story_and_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Gossip, "digest_received", lambda *_: [])
    monkeypatch.setattr("mesh.library.PUSH_PEERS", 0)
    assert main(["--seed", "3"]) == 1
    told = capsys.readouterr().out
    assert "PROBLEM: facts differ" in told
    assert "leader:" in told
    assert "replay: scripts/test --seed 3" in told
