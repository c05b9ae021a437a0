"""Whatever a model wrote, what is kept is said by the document."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.wire import work_pb2
from solver.summary import Source, combine, looping, merged_inputs, sources_of, summarise, written_sentences
from solver.text import outline, plain

REPORT = (Path(__file__).parent.parent / "data" / "report.md").read_text()
SOURCES = sources_of(outline(REPORT), 0, len(REPORT))
WELL = "The new well in the river plain was finished in April."


def check(summary: work_pb2.Summary, document: str, count: int) -> None:
    assert 1 <= len(summary.sentences) <= count
    begins = []
    for sentence in summary.sentences:
        assert sentence.text.strip()
        assert 0.0 <= sentence.support <= 1.0
        assert sentence.sources
        for span in sentence.sources:
            assert 0 <= span.begin < span.end <= len(document)
        if sentence.verbatim:
            said = " ".join(plain(document[span.begin : span.end]) for span in sentence.sources)
            assert sentence.text.removesuffix(" …") in said
        begins.append((sentence.sources[0].begin, sentence.sources[0].end))
    assert begins == sorted(begins)
    assert len({sentence.text for sentence in summary.sentences}) == len(summary.sentences)


def test_the_model_s_supported_sentences_are_kept_and_its_inventions_dropped() -> None:
    output = (
        "Here is a summary of the text:\n\n"
        f"1. {WELL}\n"
        "2. The well is 840 metres deep.\n"
        "3. The article highlights the importance of teamwork.\n"
        "4. Every house now has an electronic meter, and the meters send one reading per hour.\n"
        "5. The crews replaced the pi"
    )
    summary = summarise(SOURCES, REPORT, output, False, 4)
    check(summary, REPORT, 4)
    texts = [sentence.text for sentence in summary.sentences]
    assert WELL in texts
    assert any("electronic meter, and the meters send" in text for text in texts)
    assert not any("840" in text or "teamwork" in text or "summary" in text or text.endswith("pi") for text in texts)
    kept = next(sentence for sentence in summary.sentences if sentence.text == WELL)
    assert kept.verbatim
    assert REPORT[kept.sources[0].begin : kept.sources[0].end].split() == WELL.split()
    merged = next(sentence for sentence in summary.sentences if "meters send" in sentence.text)
    assert not merged.verbatim
    assert len(merged.sources) == 2


@pytest.mark.parametrize(
    "output", ["", "\n\n", "...", "1.", "#" * 300, "的" * 500, "a" * 100_000, "\x00\ufffd", "no no " * 900]
)
def test_useless_output_gives_the_central_sentences_of_the_document(output: str) -> None:
    summary = summarise(SOURCES, REPORT, output, False, 3)
    check(summary, REPORT, 3)
    assert len(summary.sentences) == 3
    assert all(sentence.verbatim and sentence.support == 1.0 for sentence in summary.sentences)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=300), st.booleans(), st.integers(1, 5))
def test_no_output_raises(output: str, complete: bool, count: int) -> None:
    check(summarise(SOURCES[:12], REPORT, output, complete, count), REPORT, count)
    first = work_pb2.Summary(sentences=summarise(SOURCES[:6], REPORT, "", True, 3).sentences)
    second = work_pb2.Summary(sentences=summarise(SOURCES[6:12], REPORT, "", True, 3).sentences)
    check(combine([first, second], REPORT, output, complete, count), REPORT, count)


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=6), st.text(max_size=80))
def test_no_document_raises(sentences: list[str], output: str) -> None:
    document, sources = "", []
    for sentence in sentences:
        sources.append(Source(sentence, len(document), len(document) + len(sentence)))
        document += sentence + " "
    summary = summarise(sources, document, output, True, 3)
    assert 1 <= len(summary.sentences) <= 3


def test_too_long_a_sentence_is_cut_for_the_reader() -> None:
    document = "word " * 400
    summary = summarise([Source(document.strip(), 0, len(document))], document, "", True, 2)
    assert len(summary.sentences) == 1
    assert len(summary.sentences[0].text) < 410
    assert summary.sentences[0].text.endswith("…")


def test_combining_inherits_spans_and_prefers_what_the_model_chose() -> None:
    halves = [summarise(SOURCES[:12], REPORT, "", True, 4), summarise(SOURCES[12:], REPORT, "", True, 4)]
    chosen = halves[1].sentences[2]
    summary = combine(halves, REPORT, f"{chosen.text} Nothing else is true of Atlantis.", True, 3)
    check(summary, REPORT, 3)
    assert any(s.text == chosen.text and s.sources == chosen.sources for s in summary.sentences)
    known = {(span.begin, span.end) for half in halves for s in half.sentences for span in s.sources}
    assert {(span.begin, span.end) for s in summary.sentences for span in s.sources} <= known


def test_combining_takes_from_all_parts_of_the_document() -> None:
    parts = [summarise(SOURCES[at : at + 6], REPORT, "", True, 3) for at in (0, 6, 12, 18)]
    summary = combine(parts, REPORT, "", True, 4)
    firsts = [part.sentences[0].sources[0].begin for part in parts]
    groups = {max(n for n, first in enumerate(firsts) if s.sources[0].begin >= first) for s in summary.sentences}
    assert len(groups) >= 3


def test_a_rewritten_sentence_must_hold_against_the_document_too() -> None:
    """An input that already strayed can not carry a second step away from the document."""
    strayed = work_pb2.SummarySentence(text="The well is deep and gives water to all farms.", support=0.9)
    begin = REPORT.index("It is 84 metres deep")
    strayed.sources.add(begin=begin, end=begin + 40)
    other = summarise(SOURCES[:3], REPORT, "", True, 1)
    output = "The deep well gives water to all the farms."
    summary = combine([work_pb2.Summary(sentences=[strayed]), other], REPORT, output, True, 2)
    assert output not in [sentence.text for sentence in summary.sentences]


def test_repeated_inputs_are_merged() -> None:
    one = summarise(SOURCES[:6], REPORT, "", True, 3)
    assert len(merged_inputs([one, one])) == len(one.sentences)
    assert merged_inputs([]) == []
    assert not combine([], REPORT, "x", True, 3).sentences


@pytest.mark.parametrize(
    ("output", "complete", "expected"),
    [
        ("Sure! Here is the summary:\nThe well was finished in April.", True, ["The well was finished in April."]),
        ("- the well was dug in April;\n- it is 84 m deep", True, ["The well was dug in April.", "It is 84 m deep."]),
        ("In summary, the well was finished in April.", True, ["The well was finished in April."]),
        ("The well was dug in April. The well was dug in April. The", False, ["The well was dug in April."]),
        ("**Is the well finished in April?** Yes.", True, []),
        ("云岭乡的小学只有一间旧仓库。孩子们没有地方看书", False, ["云岭乡的小学只有一间旧仓库。"]),
        ("dynamic, dynamic, dynamic, dynamic, dynamic, dynamic, dynamic, dynamic things.", True, []),
        ("```\ncode here is not a sentence.\n```", True, []),
    ],
)  # fmt: skip
def test_statements_are_found_in_output(output: str, complete: bool, expected: list[str]) -> None:
    assert written_sentences(output, complete) == expected


def test_loops_are_noticed_and_prose_is_not() -> None:
    assert looping(
        "It is designed to make decisions based on evidence, and it is designed to make decisions based on evidence"
    )
    assert looping("这个系统可以帮助农民预测天气，这个系统可以帮助农民预测天气")
    assert not any(looping(REPORT[:end]) for end in range(0, 4000, 97))
    assert not looping("")
