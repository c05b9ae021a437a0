"""From a request to a checked graph of tasks, by recipe.

Why: a document is longer than a small model's context, and much longer than what it handles well; a panel needs one
question asked in several ways. Both become tasks that any agent can run alone.
The idea: a summary is a tree. The leaves are pieces of whole sentences, chosen as TeX chooses line breaks: the
partition of least total cost, where a piece costs for being far from the target size and for ending inside a section or
a paragraph. Levels of combining, each with a fan-in that fits the context, lead to one root, which is the last task. A
panel is one task in replicas, each with a seed and an option order of its own.
All of it is a pure function of request, document and token counts, so that any leader makes the same plan.
Not guaranteed: that tokens are counted exactly at the cuts of a sentence that alone exceeds a piece (they are shared
out by length, with a margin).
Source: Knuth & Plass, "Breaking paragraphs into lines" (1981), for the pieces; DESIGN section 3 rule 4 for identity.
"""

import bisect
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mesh.wire import work_pb2
from solver.text import Outline, count_words, normalise

#: Wished size of a piece. Small models keep to a short text better: of what a 135M model wrote, 19 of 39 sentences
#: passed the check at 120 tokens, 10 of 22 at 220, 2 of 6 at 320 (a small sample). Smaller pieces cost more tasks.
PIECE_TOKENS = 240
#: Room for instructions and the chat template around a piece.
PROMPT_OVERHEAD_TOKENS = 120
OUTPUT_TOKENS_MIN, OUTPUT_TOKENS_MAX = 64, 320
#: Expected length of a sentence of a summary.
SENTENCE_TOKENS = 48
ANSWER_TOKENS = 96
#: One fact names the result of every task of a job and is at most 16 KiB.
TASKS_MAX = 400
FAN_IN_MIN, FAN_IN_MAX = 2, 6
SENTENCES_MAX = 50
PANEL_MAX = 64
OPTIONS_MAX = 20
OPTION_CHARS_MAX = 500
QUESTION_CHARS_MAX = 8_000
CONTEXT_CHARS_MAX = 200_000
HEADING_CHARS_MAX = 80


@dataclass(frozen=True, slots=True)
class Unit:
    """What a piece is made of: a sentence, or a part of one that is too long. Spans are code points of the document."""

    begin: int
    end: int
    tokens: int
    section: int
    paragraph: int


class TooLarge(ValueError):
    """The document needs more tasks than a job may have."""


def summary_sentences(wanted: int, words_in: int) -> int:
    """Sentences of the whole summary: `wanted`, or when 0 about 5 for 600 words, 11 for 3,000, at most 12."""
    if wanted:
        return min(wanted, SENTENCES_MAX)
    return max(2, min(12, round(0.2 * math.sqrt(words_in))))


def task_seed(seed: int, index: int, replica: int) -> int:
    """The seed of one task: 31 bits, because engines keep 32 and some read them as signed."""
    return int.from_bytes(_digest("seed", seed, index, replica)[:4]) >> 1


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("\0".join(["kith-plan-v1", *map(str, parts)]).encode()).digest()


def units_of(outline: Outline, token_counts: Sequence[int], budget_tokens: int) -> list[Unit]:
    """The sentences as units of at most `budget_tokens`; a longer one is cut, on white space where there is some."""
    units = []
    for sentence, tokens in zip(outline.sentences, token_counts, strict=True):
        tokens = max(tokens, 1)
        parts = [(sentence.begin, sentence.end)]
        if tokens > budget_tokens:
            count = math.ceil(tokens / (0.8 * budget_tokens))
            parts = list(_cut(outline.text, sentence.begin, sentence.end, count))
        for begin, end in parts:
            share = math.ceil(tokens * (end - begin) / (sentence.end - sentence.begin))
            units.append(Unit(begin, end, min(share, budget_tokens), sentence.section, sentence.paragraph))
    return units


def _cut(text: str, begin: int, end: int, count: int) -> Iterator[tuple[int, int]]:
    size = math.ceil((end - begin) / count)
    while begin < end:
        stop = min(end, begin + size)
        if stop < end and not text[stop].isspace():
            blank = max(text.rfind(blank, begin + size // 2, stop) for blank in " \n\t")
            stop = blank if blank > begin else stop
        part = text[begin:stop]
        left = len(part) - len(part.lstrip())
        if part.strip():
            yield begin + left, begin + len(part.rstrip())
        begin = stop


def partition(units: Sequence[Unit], target_tokens: int, budget_tokens: int) -> list[tuple[int, int]]:
    """Half-open ranges of units, the partition of least cost in which no piece exceeds `budget_tokens`.

    Time is linear in units × units a piece. Every unit must fit the budget.
    """
    assert all(0 < unit.tokens <= budget_tokens for unit in units)
    best = [0.0] + [math.inf] * len(units)  # least cost of cutting before unit i
    start_of = [0] * (len(units) + 1)
    for end in range(1, len(units) + 1):
        border = _border_cost(units, end)
        size = 0
        for start in range(end - 1, -1, -1):
            size += units[start].tokens
            if size > budget_tokens:
                break
            cost = best[start] + (size / target_tokens - 1) ** 2 + border + 0.02
            if cost < best[end]:
                best[end], start_of[end] = cost, start
            if size > 2.5 * target_tokens and best[end] < math.inf:
                break
    ranges = []
    end = len(units)
    while end > 0:
        ranges.append((start_of[end], end))
        end = start_of[end]
    return ranges[::-1]


def _border_cost(units: Sequence[Unit], end: int) -> float:
    if end == len(units) or units[end].section != units[end - 1].section:
        return 0.0
    return 0.03 if units[end].paragraph != units[end - 1].paragraph else 0.08


def plan_summary(
    job_id: bytes,
    request: work_pb2.JobRequest,
    outline: Outline,
    token_counts: Sequence[int],
    context_tokens: int,
    piece_tokens: int = PIECE_TOKENS,
) -> work_pb2.Plan:
    """The plan of a summary.

    Args:
        token_counts: tokens of every sentence of `outline`, in its order.
        context_tokens: what one request to the model may take, prompt and answer together.
        piece_tokens: wished size of a piece.

    Raises:
        TooLarge: more than TASKS_MAX tasks even with the largest pieces that fit.
        ValueError: no sentence in the document, or a context too small to work in.
    """
    wanted = summary_sentences(request.summarize.sentences, count_words(outline.text))
    output = min(OUTPUT_TOKENS_MAX, max(OUTPUT_TOKENS_MIN, context_tokens // 4))
    budget = context_tokens - PROMPT_OVERHEAD_TOKENS - output
    if budget < 64:
        raise ValueError(f"a context of {context_tokens} tokens is too small to summarise in")
    if not token_counts:
        raise ValueError("the document has no sentence")
    target = min(piece_tokens, budget)
    # A piece may be half as large again as the target, so that it can end at a section's border.
    limit = min(budget, max(target, target * 3 // 2))
    units = units_of(outline, token_counts, limit)
    ranges = partition(units, target, limit)
    pieces_max = TASKS_MAX * (FAN_IN_MAX - 1) // FAN_IN_MAX - 4  # leaves and their levels stay under TASKS_MAX
    if len(ranges) > pieces_max:
        target = math.ceil(1.1 * sum(u.tokens for u in units) / pieces_max)
        if target > budget:
            raise TooLarge(f"the document needs more than {TASKS_MAX} tasks in this model's context")
        units = units_of(outline, token_counts, budget)
        ranges = partition(units, target, budget)
    plan = work_pb2.Plan(job_id=job_id, revision=1, method="recipe")
    # Sentences of one result, so that the results of FAN_IN_MIN tasks fit into one prompt.
    most = max(1, budget // (FAN_IN_MIN * SENTENCE_TOKENS))
    each = min(most, max(2, min(4, math.ceil(2 * wanted / len(ranges))))) if len(ranges) > 1 else wanted
    for start, end in ranges:
        first, last = units[start], units[end - 1]
        tokens = sum(unit.tokens for unit in units[start:end])
        task = _add_task(plan, request.seed, tokens + PROMPT_OVERHEAD_TOKENS, _output_tokens(each, output))
        task.summarize_piece.document.CopyFrom(request.summarize.document)
        task.summarize_piece.span.begin, task.summarize_piece.span.end = first.begin, last.end
        task.summarize_piece.heading = outline.headings[first.section][:HEADING_CHARS_MAX]
        task.summarize_piece.sentences = each
        task.summarize_piece.media_type = request.summarize.media_type
    _add_levels(plan, request, wanted, each, most, budget, output)
    if len(plan.tasks) > TASKS_MAX:
        raise TooLarge(f"the document needs {len(plan.tasks)} tasks; a job may have {TASKS_MAX}")
    return plan


def _add_levels(
    plan: work_pb2.Plan, request: work_pb2.JobRequest, wanted: int, each: int, most: int, budget: int, output: int
) -> None:
    below = [task.index for task in plan.tasks]
    level = 0
    while len(below) > 1:
        level += 1
        fan_in = max(FAN_IN_MIN, min(FAN_IN_MAX, budget // (each * SENTENCE_TOKENS)))
        count = math.ceil(len(below) / fan_in)
        inputs, taken = each, 0
        each = wanted if count == 1 else min(most, max(2, min(wanted, 6, math.ceil(2 * wanted / count))))
        above = []
        for number in range(count):
            size = len(below) * (number + 1) // count - taken
            group = below[taken : taken + size]
            taken += size
            prompt = PROMPT_OVERHEAD_TOKENS + len(group) * inputs * SENTENCE_TOKENS
            task = _add_task(plan, request.seed, prompt, _output_tokens(each, output))
            task.depends_on.extend(group)
            task.combine_summaries.document.CopyFrom(request.summarize.document)
            task.combine_summaries.sentences = each
            task.combine_summaries.level = level
            above.append(task.index)
        below = above


def _output_tokens(sentences: int, most: int) -> int:
    return max(OUTPUT_TOKENS_MIN, min(most, (sentences + 2) * SENTENCE_TOKENS))


def _add_task(plan: work_pb2.Plan, seed: int, prompt_tokens: int, output_tokens: int) -> work_pb2.Task:
    index = len(plan.tasks)
    return plan.tasks.add(
        index=index,
        seed=task_seed(seed, index, 0),
        prompt_tokens_estimate=prompt_tokens,
        output_tokens_max=output_tokens,
    )


def plan_ask(job_id: bytes, request: work_pb2.JobRequest, prompt_tokens: int = 0) -> work_pb2.Plan:
    """The plan of a question: one task, in as many replicas as the panel has seats.

    Raises:
        ValueError: no question, panel or options out of bounds, options that are not all different.
    """
    ask = request.ask
    if not ask.question.strip() or len(ask.question) > QUESTION_CHARS_MAX:
        raise ValueError(f"a question has 1 to {QUESTION_CHARS_MAX} characters")
    if len(ask.context) > CONTEXT_CHARS_MAX:
        raise ValueError(f"the context has more than {CONTEXT_CHARS_MAX} characters")
    if not 1 <= ask.panel <= PANEL_MAX:
        raise ValueError(f"a panel has 1 to {PANEL_MAX} agents")
    check_options(ask.options)
    plan = work_pb2.Plan(job_id=job_id, revision=1, method="recipe")
    orders = option_orders(len(ask.options), ask.panel, request.seed)
    for replica in range(ask.panel):
        task = plan.tasks.add(
            index=0,
            replica=replica,
            seed=task_seed(request.seed, 0, replica),
            panel="panel",
            prompt_tokens_estimate=prompt_tokens,
            output_tokens_max=0 if ask.options else ANSWER_TOKENS,
        )
        if ask.options:
            task.choose.question, task.choose.context = ask.question, ask.context
            task.choose.options.extend(ask.options)
            task.choose.order.extend(orders[replica])
        else:
            task.answer.question, task.answer.context = ask.question, ask.context
    return plan


def check_options(options: Sequence[str]) -> None:
    """Raises ValueError unless there are none, or 2 to OPTIONS_MAX short ones that differ after normalising."""
    if not options:
        return
    if not 2 <= len(options) <= OPTIONS_MAX:
        raise ValueError(f"a closed question has 2 to {OPTIONS_MAX} options")
    if any(not option.strip() or len(option) > OPTION_CHARS_MAX for option in options):
        raise ValueError(f"an option has 1 to {OPTION_CHARS_MAX} characters")
    if len({normalise(option) or option.strip() for option in options}) < len(options):
        raise ValueError("two options are the same")


def option_orders(options: int, replicas: int, seed: int) -> list[list[int]]:
    """A permutation for each replica, all different as far as there are that many.

    Blocks of rotations of one shuffle, so that over a block every option stands once in every place.
    """
    orders: list[list[int]] = []
    seen: set[tuple[int, ...]] = set()
    distinct = math.factorial(options) if options <= 8 else math.inf
    block = 0
    while options and len(orders) < replicas:
        base = sorted(range(options), key=lambda option: _digest("order", seed, block, option))
        for shift in range(options):
            order = base[shift:] + base[:shift]
            if len(orders) < replicas and (tuple(order) not in seen or len(seen) == distinct):
                seen.add(tuple(order))
                orders.append(order)
        block += 1
    return orders if options else [[] for _ in range(replicas)]


def validate_plan(plan: work_pb2.Plan, outline: Outline | None = None) -> None:
    """Raises ValueError unless the plan is acyclic, covering and bounded.

    Acyclic: indices ascend from 0, and every task depends on lower ones only. Covering: one root reads every other
    task; with `outline`, the pieces are ordered, disjoint and hold every sentence of the document. Bounded: TASKS_MAX.
    """
    tasks = plan.tasks
    if not 1 <= len(tasks) <= TASKS_MAX:
        raise ValueError(f"a plan has 1 to {TASKS_MAX} tasks, this one {len(tasks)}")
    if len({(task.index, task.replica) for task in tasks}) < len(tasks):
        raise ValueError("two tasks have one index and replica")
    known: set[int] = set()
    used: set[int] = set()
    last = -1
    for task in tasks:
        if task.WhichOneof("kind") is None:
            raise ValueError(f"task {task.index} has no kind")
        if task.index not in (last, last + 1):
            raise ValueError("task indices do not ascend by one")
        if any(other >= task.index or other not in known for other in task.depends_on):
            raise ValueError(f"task {task.index} depends on one that does not come before it")
        if task.WhichOneof("kind") == "choose" and sorted(task.choose.order) != list(range(len(task.choose.options))):
            raise ValueError(f"task {task.index} shows its options in an order that is no permutation")
        known.add(task.index)
        used.update(task.depends_on)
        last = task.index
    if used != set(range(last)):
        raise ValueError("a task's result is used by no other")
    if outline is not None:
        _validate_cover([t.summarize_piece.span for t in tasks if t.HasField("summarize_piece")], outline)


def _validate_cover(spans: Sequence[work_pb2.Span], outline: Outline) -> None:
    gaps, at = [], 0
    for span in spans:
        if not at <= span.begin < span.end <= len(outline.text):
            raise ValueError("pieces overlap, are empty or lie outside the document")
        gaps.append((at, span.begin))
        at = span.end
    gaps.append((at, len(outline.text)))
    sentences = outline.sentences
    ends = [sentence.end for sentence in sentences]
    for begin, end in gaps:
        for sentence in sentences[bisect.bisect_right(ends, begin) :]:
            if sentence.begin >= end:
                break
            if outline.text[max(begin, sentence.begin) : min(end, sentence.end)].strip():
                raise ValueError("a sentence lies in no piece")
