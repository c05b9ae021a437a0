"""What a text is made of: sections, paragraphs, sentences, words.

Why: jobs split documents and cite them, so every part is a span of code points in the document and nothing is lost.
The idea: one pass over the lines tells headings, code, tables and paragraphs apart (Markdown's block rules as far as a
summary needs them); one regular expression proposes sentence ends and a few rules refuse the false ones. The segments
are ordered, disjoint and cover every character that is not white space.
Not guaranteed: linguistic truth. An unknown abbreviation before a capital letter ends a sentence; nested Markdown
blocks are read as if they were flat; scripts without spaces other than Chinese and Japanese count a run as one word.
Source: CommonMark for the blocks; Kiss & Strunk, "Unsupervised multilingual sentence boundary detection" (2006) for
the kinds of false ends (abbreviations, initials, ordinals), here by a list.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from solver.lexicon import ABBREVIATIONS

Kind = Literal["heading", "prose", "code", "table"]

#: Media types that a document may have after reading.
MARKDOWN = "text/markdown"
PLAIN = "text/plain"

_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_WORD = re.compile(rf"[{_CJK}]|(?:[^\W_{_CJK}]|_+(?=[^\W_{_CJK}]))+(?:['’.,:-][^\W_{_CJK}]+)*")
_END = re.compile(r"[.!?…]+[\"'”’»)\]*_`]*(?=\s|$)|[。！？｡．]+[”’」』）》】\"']*|…+[”’」』）》】]+|[।॥؟۔]+")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_RULE = re.compile(r" {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$")
_LIST = re.compile(r"[ \t]*(?:[-*+•]|\d{1,9}[.)])[ \t]+")
_PICTURE = re.compile(r"[ \t]*!\[[^\]]{0,300}\]\([^)]{0,2000}\)[ \t]*$")
_TABLE_RULE = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)+\|?[ \t]*$")
#: A plain text's line alone between blank lines is a heading up to this length in characters and without an end mark.
_PLAIN_HEADING_CHARS_MAX = 80


@dataclass(frozen=True, slots=True)
class Segment:
    """A span of code points, half open. `section` is the index in `Outline.headings`; `paragraph` counts blocks."""

    begin: int
    end: int
    kind: Kind
    section: int
    paragraph: int


@dataclass(frozen=True)
class Outline:
    """A text and its segments. Invariant (`validate`): ordered, disjoint, covering all that is not white space."""

    text: str
    headings: tuple[str, ...]  # of each section; the first is empty: what stands before the first heading
    segments: tuple[Segment, ...]

    @property
    def sentences(self) -> tuple[Segment, ...]:
        return tuple(s for s in self.segments if s.kind == "prose")

    def of(self, segment: Segment) -> str:
        return self.text[segment.begin : segment.end]

    def validate(self) -> None:
        """Raises AssertionError where the invariant does not hold."""
        at = 0
        for segment in self.segments:
            assert at <= segment.begin < segment.end <= len(self.text), segment
            assert not self.text[at : segment.begin].strip(), "text left out"
            assert 0 <= segment.section < len(self.headings)
            at = segment.end
        assert not self.text[at:].strip(), "text left out"


@dataclass(frozen=True, slots=True)
class _Block:
    begin: int
    end: int
    kind: Kind
    heading: str = ""


def outline(text: str, media_type: str = MARKDOWN) -> Outline:
    """The sections, code blocks, tables and sentences of `text`. Pure; time is linear in the length of the text."""
    blocks = _markdown_blocks(text) if media_type == MARKDOWN else _plain_blocks(text)
    if not any(block.kind == "prose" for block in blocks):  # a text of headings only: they are all there is to say
        blocks = [_Block(b.begin, b.end, "prose") if b.kind == "heading" else b for b in blocks]
    headings, segments = [""], []
    for paragraph, block in enumerate(blocks):
        if block.kind == "heading":
            headings.append(block.heading)
        section = len(headings) - 1
        if block.kind == "prose":
            spans = sentence_spans(text, block.begin, block.end)
        else:
            spans = [(block.begin, block.end)]
        segments += [Segment(begin, end, block.kind, section, paragraph) for begin, end in spans]
    return Outline(text, tuple(headings), tuple(segments))


def sentence_spans(text: str, begin: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Spans of the sentences of one paragraph, trimmed of white space."""
    end = len(text) if end is None else end
    spans: list[tuple[int, int]] = []
    start = begin
    for match in _END.finditer(text, begin, end):
        if match.end() < end and not _is_end(text, start, match, end):
            continue
        _append_trimmed(spans, text, start, match.end())
        start = match.end()
    _append_trimmed(spans, text, start, end)
    return spans


def _is_end(text: str, start: int, match: re.Match[str], end: int) -> bool:
    mark = match.group()
    if mark[0] in "。！？｡．।॥؟۔":
        return True
    after = text[match.end() : min(end, match.end() + 40)].lstrip()
    if after[:1].islower():
        return False  # "e.g. this", "approx. five", "… and so on"
    if mark[0] != "." or mark.startswith(".."):
        return True
    before = text[start : match.start()]
    word = before[before.rfind(" ") + 1 :].rpartition("\n")[2].lstrip("(\"'“‘[*_")
    if not before.strip() or (word == before.strip() and (word.isdigit() or len(word) == 1)):
        return False  # "1. First point"
    if len(word) == 1 and word.isalpha() and word.isupper():
        return False  # an initial
    if (
        re.fullmatch(r"(?:[A-Za-z]\.)+[A-Za-z]", word)
        and len(word) <= 3
        and word.casefold() in ("e.g", "i.e", "z.b", "d.h")
    ):
        return False
    return word.casefold() not in ABBREVIATIONS


def _append_trimmed(spans: list[tuple[int, int]], text: str, begin: int, end: int) -> None:
    piece = text[begin:end]
    if stripped := piece.strip():
        begin += len(piece) - len(piece.lstrip())
        spans.append((begin, begin + len(stripped)))


def _lines(text: str) -> list[tuple[int, int, str]]:
    lines, at = [], 0
    for line in text.split("\n"):
        lines.append((at, at + len(line), line.removesuffix("\r")))
        at += len(line) + 1
    return lines


def _plain_blocks(text: str) -> list[_Block]:
    blocks: list[_Block] = []
    group: list[tuple[int, int, str]] = []

    def close() -> None:
        if group:
            line = group[0][2].strip()
            title = len(group) == 1 and len(line) <= _PLAIN_HEADING_CHARS_MAX and line[-1] not in ".!?…。！？:：;；,，"
            blocks.append(_Block(group[0][0], group[-1][1], "heading" if title else "prose", line if title else ""))
            group.clear()

    for begin, end, line in _lines(text):
        if not line.strip():
            close()
            continue
        if group and _LIST.match(line):
            close()
        group.append((begin, end, line))
    close()
    return blocks


def _markdown_blocks(text: str) -> list[_Block]:
    blocks: list[_Block] = []
    lines = _lines(text)
    open_at = -1  # first character of the open paragraph
    open_end = -1
    in_list = False
    number = 0

    def close() -> None:
        nonlocal open_at
        if open_at >= 0:
            blocks.append(_Block(open_at, open_end, "prose"))
            open_at = -1

    if lines and lines[0][2].strip() == "---":  # front matter
        closing = next((i for i in range(1, min(len(lines), 200)) if lines[i][2].strip() in ("---", "...")), None)
        if closing is not None and any(":" in line for _, _, line in lines[1:closing]):
            blocks.append(_Block(lines[0][0], lines[closing][1], "code"))
            number = closing + 1
    while number < len(lines):
        begin, end, line = lines[number]
        number += 1
        if not line.strip():
            close()
            continue
        if fence := _FENCE.match(line):
            close()
            mark = fence.group(1)
            while number < len(lines):
                end, inner = lines[number][1], lines[number][2].strip()
                number += 1
                if inner.startswith(mark) and not inner.strip(mark[0]):
                    break
            blocks.append(_Block(begin, end, "code"))
            continue
        if heading := _ATX.match(line):
            close()
            blocks.append(_Block(begin, end, "heading", plain(heading.group(2) or "")))
            in_list = False
            continue
        if open_at >= 0 and _SETEXT.match(line) and "\n" not in text[open_at:open_end] and not in_list:
            blocks.append(_Block(open_at, end, "heading", plain(text[open_at:open_end])))
            open_at = -1
            continue
        if _RULE.match(line) or (open_at < 0 and _PICTURE.match(line)):
            close()
            blocks.append(_Block(begin, end, "code"))
            in_list = False
            continue
        if "|" in line and number < len(lines) and _TABLE_RULE.match(lines[number][2]):
            close()
            while number < len(lines) and "|" in lines[number][2]:
                end = lines[number][1]
                number += 1
            blocks.append(_Block(begin, end, "table"))
            continue
        if line.startswith("<!--"):
            close()
            while "-->" not in lines[number - 1][2] and number < len(lines):
                end = lines[number][1]
                number += 1
            blocks.append(_Block(begin, end, "code"))
            continue
        indented = line.startswith(("    ", "\t"))
        if open_at < 0 and indented and not in_list:
            while number < len(lines) and (lines[number][2].startswith(("    ", "\t")) and lines[number][2].strip()):
                end = lines[number][1]
                number += 1
            blocks.append(_Block(begin, end, "code"))
            continue
        if _LIST.match(line):
            close()
            in_list = True
        elif open_at < 0 and not line[0].isspace():
            in_list = False
        if open_at < 0:
            open_at = begin
        open_end = end
    close()
    return blocks


_PLAIN_RULES = (
    (re.compile(r"^[ \t]*(?:>[ \t]?)+", re.M), ""),
    (re.compile(r"\A\s*(?:[-*+•]|\d{1,9}[.)])[ \t]+(?:\[[ xX]\][ \t]+)?"), ""),
    (re.compile(r"!\[([^\]\n]{0,300})\]\([^)\s]{0,2000}(?:[ \t]+\"[^\"]{0,300}\")?\)"), r"\1"),
    (re.compile(r"\[([^\]\n]{1,300})\]\([^)\s]{0,2000}(?:[ \t]+\"[^\"]{0,300}\")?\)"), r"\1"),
    (re.compile(r"\*\*(?=\S)(.{1,500}?)(?<=\S)\*\*", re.S), r"\1"),
    (re.compile(r"(?<![\w*])\*(?=[^\s*])([^*]{1,500}?)(?<=[^\s*])\*(?![\w*])", re.S), r"\1"),
    (re.compile(r"(?<![\w_])_(?=[^\s_])([^_]{1,500}?)(?<=[^\s_])_(?![\w_])", re.S), r"\1"),
    (re.compile(r"`{1,2}([^`]{1,500})`{1,2}"), r"\1"),
    (
        re.compile(
            r"</?(?:a|abbr|b|br|code|del|div|em|i|img|kbd|p|s|small|span|strong|sub|sup|u)(?:\s[^<>]{0,300})?/?>"
        ),
        "",
    ),
    (re.compile(rf"(?<=[{_CJK}，。、；：])\s*\n\s*(?=[{_CJK}])"), ""),
    (re.compile(r"\s+"), " "),
)


def plain(text: str) -> str:
    """A span of the document as one line for people and for prompts: marks of Markdown and line breaks are dropped."""
    for rule, replacement in _PLAIN_RULES:
        text = rule.sub(replacement, text)
    return text.strip()


def count_words(text: str) -> int:
    """Words of `text`: Chinese and Japanese characters count one each, other scripts by runs of letters and digits."""
    return sum(1 for _ in _WORD.finditer(text))


def words(text: str) -> list[str]:
    """The words that `count_words` counts, in order, compatibility-normalised and case-folded."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).replace("’", "'").casefold())


def normalise(text: str) -> str:
    """A form for comparing: full width as half width, one case, no punctuation, one space between words."""
    return " ".join(words(text))


def is_cjk(word: str) -> bool:
    """Whether `word` (one of `words`) is a Chinese or Japanese character."""
    return len(word) == 1 and re.match(rf"[{_CJK}]", word) is not None
