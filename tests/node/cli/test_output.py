"""Tests of node/cli/output.py."""

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
    assert output._fit(columns, natural, 5) == {0: 10, 1: 12, 2: 12}
