"""Tests of node/machine.py: a mark is of one node on one machine, and tells neither."""

import sys
from pathlib import Path

import pytest

from mesh.identity import NodeId
from node import machine

A, B = NodeId("a" * 32), NodeId("b" * 32)


def test_a_mark_is_of_one_node_on_one_machine() -> None:
    marks = {machine.machine_mark(node, host) for node in (A, B) for host in ("one", "two")}
    assert len(marks) == 4
    assert machine.machine_mark(A, "one") == machine.machine_mark(A, "one")
    assert not any("one" in mark or A in mark for mark in marks)


def test_without_a_machine_id_there_is_no_mark() -> None:
    assert machine.machine_mark(A, "") == ""


def test_the_first_file_that_says_something_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "etc", tmp_path / "dbus"]
    monkeypatch.setattr(machine, "LINUX_FILES", files)
    monkeypatch.setattr(sys, "platform", "linux")
    assert machine.machine_id() == ""
    files[1].write_text("0123\n")
    assert machine.machine_id() == "0123"
    for undecided in ("", "uninitialized\n"):
        files[0].write_text(undecided)
        assert machine.machine_id() == "0123"
    files[0].write_text("4567\n")
    assert machine.machine_id() == "4567"
