"""Plans are acyclic, covering, bounded and the same on every node."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.wire import common_pb2, work_pb2
from solver.assemble import to_bytes
from solver.decompose import (
    FAN_IN_MAX,
    PANEL_MAX,
    TASKS_MAX,
    TooLarge,
    Unit,
    option_orders,
    partition,
    plan_ask,
    plan_summary,
    summary_sentences,
    units_of,
    validate_plan,
)
from solver.text import MARKDOWN, PLAIN, Outline, outline

DATA = Path(__file__).parent.parent / "data"
JOB = b"j" * 32


def request(seed: int = 5, sentences: int = 0, media_type: str = MARKDOWN) -> work_pb2.JobRequest:
    document = common_pb2.BlobRef(sha256=b"d" * 32, size_bytes=9)
    return work_pb2.JobRequest(
        summarize=work_pb2.SummarizeRequest(document=document, sentences=sentences, media_type=media_type), seed=seed
    )


def tokens(parsed: Outline) -> list[int]:
    """About what a small model's tokenizer makes of them: four letters a token, two tokens a Chinese character."""
    return [
        1 + sum(8 if ord(char) > 0x2E80 else 1 for char in parsed.of(sentence)) // 4 for sentence in parsed.sentences
    ]


def ask(panel: int = 3, options: tuple[str, ...] = (), question: str = "Why?", seed: int = 5) -> work_pb2.JobRequest:
    return work_pb2.JobRequest(ask=work_pb2.AskRequest(question=question, panel=panel, options=options), seed=seed)


@pytest.mark.parametrize(("name", "media_type"), [("report.md", MARKDOWN), ("village.zh.txt", PLAIN)])
@pytest.mark.parametrize("context", [512, 2048, 8192])
def test_sample_documents_are_covered_within_the_context(name: str, media_type: str, context: int) -> None:
    parsed = outline((DATA / name).read_text(), media_type)
    plan = plan_summary(JOB, request(media_type=media_type), parsed, tokens(parsed), context)
    validate_plan(plan, parsed)
    assert all(task.prompt_tokens_estimate + task.output_tokens_max <= context for task in plan.tasks)
    assert all(len(task.depends_on) <= FAN_IN_MAX for task in plan.tasks)
    assert plan.tasks[-1].HasField("combine_summaries")
    assert plan.tasks[-1].combine_summaries.sentences == 5
    assert all(task.summarize_piece.media_type == media_type for task in plan.tasks[:2])


def test_a_short_document_is_one_piece_and_its_own_root() -> None:
    parsed = outline("One sentence. Another one.")
    plan = plan_summary(JOB, request(sentences=1), parsed, [4, 4], 2048)
    validate_plan(plan, parsed)
    assert len(plan.tasks) == 1
    assert plan.tasks[0].summarize_piece.sentences == 1
    assert plan.tasks[0].summarize_piece.span == work_pb2.Span(begin=0, end=26)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.sampled_from(["# Head\n\n", "A short one. ", "It is longer, with words. ", "\n\n", "句子。", "x" * 900]),
        max_size=60,
    ),
    st.integers(400, 3000),
    st.integers(0, 2**63),
)  # fmt: skip
def test_any_document_is_covered_and_planned_alike_twice(parts: list[str], context: int, seed: int) -> None:
    parsed = outline("".join(parts) + "\n\nThe end is here.")
    plan = plan_summary(JOB, request(seed), parsed, tokens(parsed), context)
    validate_plan(plan, parsed)
    assert to_bytes(plan) == to_bytes(plan_summary(JOB, request(seed), parsed, tokens(parsed), context))
    assert len({task.seed for task in plan.tasks}) == len(plan.tasks)


def test_pieces_end_at_sections_where_they_can() -> None:
    section = "This is a sentence of ten tokens or a few more. " * 20
    parsed = outline("".join(f"# Section {n}\n\n{section}\n\n" for n in range(5)))
    plan = plan_summary(JOB, request(), parsed, [15] * 100, 2048)
    pieces = [task.summarize_piece for task in plan.tasks if task.HasField("summarize_piece")]
    assert [piece.heading for piece in pieces] == [f"Section {n}" for n in range(5)]


def test_pieces_of_one_section_are_balanced() -> None:
    units = [Unit(n, n + 1, 20, 0, 0) for n in range(80)]
    sizes = [(end - start) * 20 for start, end in partition(units, 320, 480)]
    assert sum(sizes) == 1600
    assert max(sizes) - min(sizes) <= 20
    assert abs(sizes[0] - 320) <= 20


def test_a_sentence_longer_than_a_piece_is_cut_on_white_space() -> None:
    text = "word " * 2000
    parsed = outline(text)
    units = units_of(parsed, [2000], 400)
    assert all(unit.tokens <= 400 for unit in units)
    assert all(
        text[unit.begin : unit.end].split() == ["word"] * (unit.end - unit.begin + 1 - (unit.end - unit.begin) // 5 * 4)
        for unit in units
        if False
    )
    assert [text[a.end : b.begin].strip() for a, b in itertools.pairwise(units)] == [""] * (len(units) - 1)
    assert not any(text[unit.begin - 1 : unit.begin].isalpha() for unit in units)
    validate_plan(plan_summary(JOB, request(), parsed, [2000], 700), parsed)


def test_a_long_text_without_white_space_is_cut_all_the_same() -> None:
    parsed = outline("字" * 5000)
    validate_plan(plan_summary(JOB, request(), parsed, [7000], 700), parsed)


def test_many_sentences_make_larger_pieces_and_never_more_tasks_than_allowed() -> None:
    parsed = outline("Words are here. " * 9000)
    plan = plan_summary(JOB, request(), parsed, [20] * 9000, 4096)
    validate_plan(plan, parsed)
    assert len(plan.tasks) <= TASKS_MAX
    with pytest.raises(TooLarge, match="more than 400 tasks"):
        plan_summary(JOB, request(), parsed, [20] * 9000, 600)


@pytest.mark.parametrize(("context", "counts"), [(100, [4]), (2048, [])])
def test_what_can_not_be_planned_is_said(context: int, counts: list[int]) -> None:
    parsed = outline("One sentence." if counts else "")
    with pytest.raises(ValueError, match=r"too small|no sentence"):
        plan_summary(JOB, request(), parsed, counts, context)


def test_the_length_of_a_summary_follows_the_document() -> None:
    assert [summary_sentences(0, words) for words in (10, 600, 3000, 100_000)] == [2, 5, 11, 12]
    assert summary_sentences(5, 100_000) == 5
    assert summary_sentences(10_000, 10) == 50


def test_a_panel_is_one_task_in_replicas_with_seeds_and_orders_of_their_own() -> None:
    plan = plan_ask(JOB, ask(3, ("yes", "no", "maybe")))
    validate_plan(plan)
    assert [(task.index, task.replica, task.panel) for task in plan.tasks] == [(0, n, "panel") for n in range(3)]
    assert len({task.seed for task in plan.tasks}) == 3
    orders = [tuple(task.choose.order) for task in plan.tasks]
    assert len(set(orders)) == 3
    assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2)}
    for place in range(3):
        assert {order[place] for order in orders} == {0, 1, 2}
    opened = plan_ask(JOB, ask(2))
    assert [task.answer.question for task in opened.tasks] == ["Why?", "Why?"]
    assert to_bytes(opened) == to_bytes(plan_ask(JOB, ask(2)))
    assert to_bytes(opened) != to_bytes(plan_ask(JOB, ask(2, seed=6)))


@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 2**64 - 1))
def test_orders_are_permutations_and_distinct_while_there_are_enough(options: int, replicas: int, seed: int) -> None:
    orders = [tuple(order) for order in option_orders(options, replicas, seed)]
    assert len(orders) == replicas
    assert all(sorted(order) == list(range(options)) for order in orders)
    possible = {2: 2, 3: 6, 4: 24, 5: 120, 6: 720}[options]
    assert len(set(orders)) == min(replicas, possible)


@pytest.mark.parametrize(
    "bad",
    [
        ask(0), ask(PANEL_MAX + 1), ask(question="  "), ask(question="x" * 9000), ask(options=("one",)),
        ask(options=("Yes", "yes!")), ask(options=("a", "")), ask(options=tuple(map(str, range(21)))),
    ],
)  # fmt: skip
def test_bad_questions_are_refused(bad: work_pb2.JobRequest) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        plan_ask(JOB, bad)


def good_plan() -> tuple[work_pb2.Plan, Outline]:
    parsed = outline((DATA / "report.md").read_text())
    return plan_summary(JOB, request(), parsed, tokens(parsed), 2048), parsed


def test_a_spoilt_plan_does_not_validate() -> None:
    plan, parsed = good_plan()
    validate_plan(plan, parsed)

    def spoilt(change: str) -> work_pb2.Plan:
        other, _ = good_plan()
        match change:
            case "cycle":
                other.tasks[0].depends_on.append(0)
            case "unknown":
                other.tasks[-1].depends_on.append(99)
            case "unused":
                del other.tasks[-1].depends_on[0]
            case "gap":
                other.tasks[1].summarize_piece.span.begin += 300
            case "overlap":
                other.tasks[1].summarize_piece.span.begin -= 300
            case "outside":
                other.tasks[-2].summarize_piece.span.end = 10**6
            case "kind":
                other.tasks[0].ClearField("summarize_piece")
            case "twice":
                other.tasks[1].index = 0
            case "order":
                other.tasks[1].index = 7
            case "many":
                other.tasks.extend([other.tasks[-1]] * TASKS_MAX)
            case "none":
                del other.tasks[:]
        return other

    for change in ("cycle", "unknown", "unused", "gap", "overlap", "outside", "kind", "twice", "order", "many", "none"):
        with pytest.raises(ValueError, match=r"\w"):
            validate_plan(spoilt(change), parsed)
    panel = plan_ask(JOB, ask(2, ("a b", "c")))
    panel.tasks[1].choose.order[0] = panel.tasks[1].choose.order[1]
    with pytest.raises(ValueError, match="permutation"):
        validate_plan(panel)
