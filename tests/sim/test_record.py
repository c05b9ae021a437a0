"""A range of seeds is lived through once, in as many sittings as it takes."""

from pathlib import Path

import pytest

from tests.sim import run
from tests.sim.record import Record, code
from tests.sim.result import SimResult, figures_of


def test_a_range_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lived: list[int] = []

    def run_seed(seed: int) -> SimResult:
        lived.append(seed)
        return SimResult(seed, nodes=3, virtual_s=120.0, faults=10, problems=["it broke"] if seed == 2 else [])

    monkeypatch.setattr(run, "run_seed", run_seed)
    file = tmp_path / "seeds"
    first = list(run.run_seeds(range(1, 4), 1, Record(file)))
    with file.open("a") as stream:
        stream.write('{"seed": 4, "nod')  # the machine was switched off
    again = list(run.run_seeds(range(1, 6), 1, Record(file)))
    assert lived == [1, 2, 3, 4, 5]
    assert again[:3] == first
    assert [result.seed for result in again] == [1, 2, 3, 4, 5]
    assert figures_of(again)["violations"] == 1
    assert sorted(Record(file).lines) == [1, 2, 3, 4, 5]


def test_seeds_of_other_code_are_counted_and_said(tmp_path: Path) -> None:
    file = tmp_path / "seeds"
    Record(file).keep(SimResult(1))
    Record(file).keep(SimResult(2))
    assert Record(file).other_code([1, 2, 3]) == 0
    file.write_text(file.read_text().replace(code(), "another", 1))
    assert Record(file).other_code([1, 2, 3]) == 1
    assert Record(file).missing([1, 2, 3]) == [3]
