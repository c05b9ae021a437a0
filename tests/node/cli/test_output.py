"""Tests of node/cli/output.py."""

import io
import sys

import pytest

from node.cli import output
from node.cli.output import Column


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain", "plain"),
        ("red\x1b[31m", "red\N{REPLACEMENT CHARACTER}[31m"),
        ("title\x1b]0;gone\x07", "title\N{REPLACEMENT CHARACTER}]0;gone\N{REPLACEMENT CHARACTER}"),
        ("left\u202eright", "left\N{REPLACEMENT CHARACTER}right"),
        ("a\rb", "a\N{REPLACEMENT CHARACTER}b"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("全角\u3000空格", "全角\u3000空格"),
        ("hard\xa0space", "hard space"),
        ("می\u200cروم", "می\u200cروم"),
    ],
)
def test_clean_leaves_text_and_takes_controls(raw: str, shown: str) -> None:
    assert output.clean(raw) == shown


def test_one_line_cuts() -> None:
    assert output.one_line("a\n b\t c") == "a b c"
    assert output.one_line("abcdefgh", 5) == "abcd…"
    assert output.one_line("abcde", 5) == "abcde"


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.42, "0.42 s"), (3.14, "3.1 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (90000, "1 d 1 h")],
)
def test_seconds(value: float, words: str) -> None:
    assert output.seconds(value) == words


def test_size_and_rate() -> None:
    assert [output.size(n) for n in (12, 2048, 98_000_000)] == ["12 B", "2.0 KiB", "93.5 MiB"]
    assert [output.rate(r) for r in (0, 51.23, 177.4)] == ["–", "51.2", "177"]


def test_table_without_a_terminal_is_whole_and_plain(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([Column("name", "crop"), Column("n", number=True), Column("gone", "drop")], [["x" * 200, "7", "[b]"]])
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "n", "gone"]
    assert row == "x" * 200 + "  7  [b]"


def test_columns_give_way_in_order() -> None:
    columns = [Column("id"), Column("title", "crop"), Column("text", "fold"), Column("note", "drop")]
    natural = [10, 40, 30, 20]
    assert output._fit(columns, natural, 200) == dict(enumerate(natural))
    narrow = output._fit(columns, natural, 80)
    assert narrow == {0: 10, 1: 22, 2: 22, 3: 20}
    assert output._fit(columns, natural, 50) == {0: 10, 1: 18, 2: 18}
    assert output._fit(columns, natural, 5) == {0: 10, 2: 12}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> Terminal:
    """What is printed from now on is shown on it. Rich takes the width from the environment before it asks."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    return terminal


def test_what_people_copy_is_in_one_piece_however_narrow_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ["0123456789ab", "192.168.100.100:42000", "a title of some length", "note"]
    columns = [Column("job"), Column("address"), Column("title", "crop"), Column("note", "drop")]
    terminal = on_a_terminal(monkeypatch, 40)
    output.table(columns, [row])
    assert terminal.getvalue().splitlines()[1].split() == row[:2]
    terminal = on_a_terminal(monkeypatch, 20)
    output.table(columns, [row])
    assert row[0] in terminal.getvalue()
    assert row[1] in terminal.getvalue()
