"""How many threads an engine takes beside others."""

from pathlib import Path

import pytest

from node.engine.threads import choose, cores, other_engines


@pytest.mark.parametrize(
    ("wanted", "of", "others", "threads", "warned"),
    [
        (0, 8, 0, 8, False),
        (3, 8, 0, 3, False),
        (16, 8, 0, 16, False),
        (0, 8, 1, 4, True),
        (0, 2, 2, 1, True),
        (1, 2, 5, 1, False),
        (4, 8, 1, 4, False),
        (8, 8, 1, 8, True),
    ],
)
def test_cores_are_shared(wanted: int, of: int, others: int, threads: int, warned: bool) -> None:
    found, warning = choose(wanted, of, others)
    assert found == threads
    assert ("--threads" in warning) == warned


def test_engines_are_those_with_the_library(tmp_path: Path) -> None:
    for pid, maps in {
        "1": "/usr/lib/libc.so",
        "20": "7f /x/libggml-cpu.so",
        "21": "7f /x/libggml.so",
        "me": "",
    }.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "maps").write_text(maps)
    (tmp_path / "30" / "maps").mkdir(parents=True)  # can not be read
    assert other_engines(tmp_path, own_pid=7) == 2
    assert other_engines(tmp_path, own_pid=20) == 1
    assert other_engines(tmp_path / "none", own_pid=20) == 0


def test_this_machine_has_cores() -> None:
    assert cores() >= 1
    assert other_engines() >= 0
