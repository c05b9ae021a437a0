"""Tests of node/cli/progress.py: the views, and a connection that breaks."""

import io
import sys
from pathlib import Path

import pytest

from mesh.wire import local_pb2
from node.cli.progress import Lines, Live, Silent, follow, make_view
from node.client import NodeClient
from node.errors import ExitCode, KithError
from tests.node.cli.local_node import OPEN, SUMMARY, LocalNode, job, serve


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def snapshot(done: int, total: int = 8) -> local_pb2.JobSnapshot:
    return job(SUMMARY, local_pb2.JOB_STATE_OPEN, "summarize", "Rivers", done, total)


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From now on standard error is a terminal. No fixture: pytest sets its own streams between setup and test."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return screen


def test_view_fits_where_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    assert isinstance(make_view(as_json=True), Silent)
    live = make_view(as_json=False)
    live.close()
    assert isinstance(live, Live)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(make_view(as_json=False), Lines)


def test_live_view_shows_who_does_what_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    view = Live()
    try:
        view.show(snapshot(2))
        view.tick()
    finally:
        view.close()
    shown = terminal.getvalue()
    for words in ("summarize", "a1a1a1a1a1a1", "leader", "2 of 8 tasks", "122 tok/s", "piece 3", "writing", "done: "):
        assert words in shown, words
    assert "left" not in shown, "no estimate before there is something to estimate from"
    assert "\x1b[31m" not in shown, "a node's name coloured the terminal"


def test_remaining_time_waits_for_three_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    view = Live()
    try:
        began = 0.0
        view.show(snapshot(1))
        assert view._first_done is not None
        began = view._first_done[0]
        assert view.seconds_left(snapshot(3), began + 10) == 0.0
        assert view.seconds_left(snapshot(4), began + 12) == pytest.approx(12 / 3 * 4)
        assert view.seconds_left(snapshot(8), began + 12) == 0.0
    finally:
        view.close()


def test_lines_say_each_change_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = Lines()
    for done in (0, 0, 1):
        view.show(snapshot(done, 3))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "planned: 3 tasks"
    assert lines[1:4] == [
        "started: piece 0 on anna",
        "started: piece 1 on ben",
        "started: piece 2 on clara\N{REPLACEMENT CHARACTER}[31m",
    ]
    assert lines[4:] == ["done: piece 0 on anna, 60 tokens in 6.5 s; 1 of 3"]


async def test_node_that_goes_away_is_said_with_how_to_go_on(tmp_path: Path) -> None:
    server = serve(tmp_path, LocalNode())

    class Breaking(Silent):
        def show(self, job: local_pb2.JobSnapshot) -> None:
            server.stop(0)

    with pytest.raises(KithError) as caught:
        async with NodeClient(tmp_path) as node:
            await follow(node, OPEN, Breaking())
    assert caught.value.exit_code == ExitCode.UNREACHABLE
    assert "before job e1e1e1e1e1e1 ended; the job is kept" in caught.value.message
    assert "kith watch e1e1e1e1e1e1" in caught.value.remedy
