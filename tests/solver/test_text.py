"""Segments cover the text, and sentences end where a reader would say so."""

import itertools
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from solver.text import MARKDOWN, PLAIN, Outline, count_words, is_cjk, normalise, outline, plain, sentence_spans, words

DATA = Path(__file__).parent.parent / "data"

_PARTS = st.sampled_from(
    [
        "# Head\n", "\n", "\n\n", "Word ", "Dr. ", "3.5 ", "end. ", "e.g. ", "what?! ", "```\n", "~~~\n", "- item",
        "1. ", "  ", "| a | b |\n", "|---|---|\n", "---\n", "===\n", "> quote ", "    indented\n", "“引言。” ",
        "句子。", "！？", "…", "……", "<!-- ", "-->", "\t", "\r\n", "\u3000", "**b**", "[link](to)", "é", "𠀀", "\x00",
        "J. ",
    ]
)  # fmt: skip


def sentences(text: str) -> list[str]:
    return [text[begin:end] for begin, end in sentence_spans(text)]


def prose(parsed: Outline) -> list[str]:
    return [plain(parsed.of(segment)) for segment in parsed.sentences]


@given(st.one_of(st.text(max_size=200), st.lists(_PARTS, max_size=40).map("".join)), st.sampled_from([MARKDOWN, PLAIN]))
def test_segments_are_ordered_disjoint_and_cover_all_but_white_space(text: str, media_type: str) -> None:
    parsed = outline(text, media_type)
    parsed.validate()
    assert "".join("".join(parsed.of(s).split()) for s in parsed.segments) == "".join(text.split())
    if text.strip() and any(segment.kind == "heading" for segment in parsed.segments):
        assert len(parsed.headings) > 1 or parsed.sentences


@given(st.lists(_PARTS, max_size=40).map("".join))
def test_sentence_spans_are_trimmed_and_lose_nothing(text: str) -> None:
    spans = sentence_spans(text)
    assert all(text[begin:end] == text[begin:end].strip() != "" for begin, end in spans)
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(spans))
    assert "".join("".join(text[b:e].split()) for b, e in spans) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid 3.5 euros. He left.", ["Dr. Smith paid 3.5 euros.", "He left."]),
        (
            "It closes at 5 p.m. on Monday. J. K. Rowling came.",
            ["It closes at 5 p.m. on Monday.", "J. K. Rowling came."],
        ),
        ("Use a tool, e.g. Git. It works.", ["Use a tool, e.g. Git.", "It works."]),
        ("Really?! Yes… Maybe.", ["Really?!", "Yes…", "Maybe."]),
        ('"Stop!" she said. "Why?" He ran.', ['"Stop!" she said.', '"Why?"', "He ran."]),
        ("See fig. 3 and sec. 4. Then go on.", ["See fig. 3 and sec. 4.", "Then go on."]),
        ("It was 1990. The wall fell.", ["It was 1990.", "The wall fell."]),
        ("1. First point", ["1. First point"]),
        ("Version 1.2.3 of example.com is out. Good", ["Version 1.2.3 of example.com is out.", "Good"]),
        ("他说：“可以。”然后走了！真的吗？是。", ["他说：“可以。”", "然后走了！", "真的吗？", "是。"]),
        ("「はい。」と言った。雨だ。", ["「はい。」", "と言った。", "雨だ。"]),
        ("他想了想……还是走了。", ["他想了想……还是走了。"]),
        ("यह एक है। वह दो है।", ["यह एक है।", "वह दो है।"]),
        ("No end mark", ["No end mark"]),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_would_say(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_markdown_blocks_are_told_apart() -> None:
    text = (
        "---\ntitle: x\n---\n# One #\nText of one.\nMore of it.\n\n```py\nprint('no. sentence.')\n```\n\n"
        "Two\n===\n- item one\n- item two. And more.\n\n    still the item\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "After.\n\n    code = 1\n\n<!-- a\ncomment -->\n***\n> Quoted\n> text.\n"
    )
    parsed = outline(text)
    parsed.validate()
    assert parsed.headings == ("", "One", "Two")
    assert prose(parsed) == [
        "Text of one.", "More of it.", "item one", "item two.", "And more.", "still the item", "After.", "Quoted text.",
    ]  # fmt: skip
    kinds = [segment.kind for segment in parsed.segments]
    assert kinds.count("table") == 1
    assert kinds.count("code") == 5  # front matter, fence, indented block, comment, rule
    assert [parsed.headings[s.section] for s in parsed.sentences][:3] == ["One", "One", "Two"]


def test_an_open_fence_runs_to_the_end() -> None:
    parsed = outline("Before.\n\n```\nnever closed. Really.\n")
    assert prose(parsed) == ["Before."]


def test_plain_text_takes_short_lines_alone_as_headings() -> None:
    parsed = outline("Title of it\n\nA paragraph that\nis wrapped. Two.\n\n# no heading here, but a line.\n", PLAIN)
    assert parsed.headings == ("", "Title of it")
    assert prose(parsed)[0] == "A paragraph that is wrapped."


def test_a_text_of_headings_only_is_still_something() -> None:
    assert prose(outline("buy milk\n\nbuy bread\n", PLAIN)) == ["buy milk", "buy bread"]


def test_the_sample_documents_are_read_whole() -> None:
    report = outline((DATA / "report.md").read_text())
    report.validate()
    assert [h for h in report.headings if h][-1] == "What comes next"
    assert not any("meters export" in sentence or "410,000" in sentence for sentence in prose(report))
    village = outline((DATA / "village.zh.txt").read_text(), PLAIN)
    village.validate()
    assert village.headings[1] == "山村图书馆的五年"
    assert "谁来接替她呢？" in prose(village)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("Two words", 2),
        ("don't count twice, well-known", 4),
        ("山村图书馆", 5),
        ("用Python写 3.5 行", 5),
        ("こんにちは world", 6),
        ("— … !", 0),
        ("snake_case x_1", 2),
    ],
)
def test_words_are_counted(text: str, expected: int) -> None:
    assert count_words(text) == expected


@given(st.text(max_size=80))
@example("__")
@example("_山")
@example("a__b __c")
def test_normalising_is_idempotent_and_counts_no_punctuation(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert all(word == word.strip() for word in words(text))


def test_normalising_takes_width_case_and_space_away() -> None:
    assert normalise("  Ｐａｒｉｓ,\u3000France! ") == normalise("paris france")
    assert is_cjk("山")
    assert not is_cjk("a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- **Bold** and `code` and [a link](http://x.y/z_w)", "Bold and code and a link"),
        ("> quoted\n> again", "quoted again"),
        ("a * b * c and x_y_z and <node> <b>b</b>", "a * b * c and x_y_z and <node> b"),
        ("中文\n换行", "中文换行"),
        ("![picture](a.png) text", "picture text"),
        ("1. [x] done", "done"),
    ],
)
def test_plain_drops_marks_and_keeps_words(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_a_long_document_is_read_in_time_linear_in_its_length() -> None:
    text = ("A sentence of words, e.g. like this one. " * 20 + "\n\n") * 500
    parsed = outline(text)
    assert len(parsed.sentences) == 20 * 500
