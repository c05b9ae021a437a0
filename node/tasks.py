"""One task on one agent: prompt, stream, check, result.

Why: workers run tasks alone, whoever assigned them. A result depends on the task, its inputs and the model only, so a
task can run again anywhere.
The idea: the engine writes, pure functions of solver/ judge. A summary's sentences are checked against the document; a
choice is scored by log-probability and corrected for the agent's bias towards labels.
Not guaranteed: equal results on different models or builds. Odd output never raises: it yields a result from the
document, or an empty answer, which counts as a ballot for nothing. Cancelling the caller closes the engine's stream.
Sources: Zhao et al., "Calibrate Before Use" (2021) for contextual calibration; Holtzman et al., "Surface Form
Competition" (2021) for scoring an option's text against its own prior.
"""

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from mesh.wire import common_pb2, engine_pb2, work_pb2
from node import prompts
from node.errors import ExitCode, KithError
from solver.decompose import PROMPT_OVERHEAD_TOKENS
from solver.panel import option_group
from solver.summary import combine, looping, merged_inputs, sources_of, summarise, written_sentences
from solver.text import MARKDOWN, normalise, outline, plain, words

ReadBlob = Callable[[common_pb2.BlobRef], Awaitable[bytes]]
Report = Callable[[work_pb2.TaskProgress], None]

#: Sampling of an open answer by all panel members but the first, who is greedy: the panel holds the best single answer.
ANSWER_TEMPERATURE, ANSWER_TOP_P = 0.4, 0.95
ANSWER_CHARS_MAX = 300
#: How many sentences more than wanted are waited for.
SURPLUS_SENTENCES = 4
#: Tokens between two looks at whether the output repeats itself.
LOOK_EVERY_TOKENS = 8
_ANSWER_MARKS = re.compile(r"^\W*answer\s*[:：]\s*", re.I)
#: The question of contextual calibration: it says nothing, so what it prefers is bias.
CONTENT_FREE = "N/A"
#: How much of that preference is subtracted. On 24 easy questions the 135M model is right in 20, 18 and 16 with shares
#: of 0, 0.3 and 1: one question alone shows the bias too unsharply to subtract all of it.
CALIBRATION_SHARE = 0.3
#: A model below this size is not shown the options: a list of them makes it choose by place (8 right of 24).
LISTED_PARAMETERS_MIN = 1_000_000_000


class Writer(Protocol):
    """What a task needs of an engine; one on another node will do."""

    @property
    def loaded(self) -> engine_pb2.EngineLoaded | None: ...

    def generate(self, request: engine_pb2.GenerateRequest) -> AsyncGenerator[engine_pb2.GenerateEvent, None]: ...

    async def score(self, request: engine_pb2.ScoreRequest) -> engine_pb2.ScoreReply: ...

    async def count_tokens(self, texts: Sequence[str]) -> list[int]: ...


@dataclass
class _Written:
    text: str
    complete: bool  # the model ended by itself
    usage: common_pb2.Usage


async def run_task(
    task: work_pb2.Task,
    inputs: Sequence[work_pb2.TaskResult],
    read_blob: ReadBlob,
    engine: Writer,
    progress: Report,
) -> tuple[work_pb2.TaskResult, common_pb2.Usage]:
    """Run a task.

    Args:
        inputs: results of the tasks it depends on, in that order.
        read_blob: content by reference.
        progress: called from the event loop at every phase and every few tokens.

    Raises:
        KithError: of the engine or of `read_blob`; bad-request for a task that can not be understood.
    """
    match task.WhichOneof("kind"):
        case "summarize_piece":
            return await _piece(task, read_blob, engine, progress)
        case "combine_summaries":
            return await _combine(task, inputs, read_blob, engine, progress)
        case "answer":
            return await _answer(task, engine, progress)
        case "choose":
            return await _choose(task, engine, progress)
        case _:
            raise _bad_task("its kind is unknown to this version")


def _bad_task(why: str) -> KithError:
    return KithError("bad-request", f"the task can not be run: {why}", "Update this node.", ExitCode.BAD_INPUT)


async def _document(blob: common_pb2.BlobRef, read_blob: ReadBlob) -> str:
    try:
        return (await read_blob(blob)).decode()
    except UnicodeDecodeError:
        raise _bad_task("its document is no UTF-8 text") from None


async def _piece(
    task: work_pb2.Task, read_blob: ReadBlob, engine: Writer, progress: Report
) -> tuple[work_pb2.TaskResult, common_pb2.Usage]:
    piece = task.summarize_piece
    progress(work_pb2.TaskProgress(phase="reading"))
    document = await _document(piece.document, read_blob)
    parsed = outline(document[piece.span.begin : piece.span.end], piece.media_type or MARKDOWN)
    sources = sources_of(parsed, piece.span.begin, len(document))
    if not sources:
        raise _bad_task("its span holds no sentence")
    count = max(1, piece.sentences)
    texts, waited_s = await _fitting([source.text for source in sources], task, engine)
    messages = prompts.summarize_piece(" ".join(texts), count)
    written = await _write(task, messages, engine, progress, count + SURPLUS_SENTENCES)
    written.usage.queue_seconds += waited_s
    progress(work_pb2.TaskProgress(phase="checking", output_tokens=written.usage.completion_tokens))
    summary = await asyncio.to_thread(summarise, sources, document, written.text, written.complete, count)
    return work_pb2.TaskResult(summary=summary), written.usage


async def _combine(
    task: work_pb2.Task,
    inputs: Sequence[work_pb2.TaskResult],
    read_blob: ReadBlob,
    engine: Writer,
    progress: Report,
) -> tuple[work_pb2.TaskResult, common_pb2.Usage]:
    progress(work_pb2.TaskProgress(phase="reading"))
    document = await _document(task.combine_summaries.document, read_blob)
    summaries = [result.summary for result in inputs]
    count = max(1, task.combine_summaries.sentences)
    texts = [sentence.text for _, sentence in merged_inputs(summaries)]
    if not texts:
        raise _bad_task("its inputs hold no sentence")
    written = _Written("", True, common_pb2.Usage())
    if len(texts) > count:  # else there is nothing to choose
        fitting, waited_s = await _fitting(texts, task, engine)
        messages = prompts.combine_summaries(fitting, count)
        written = await _write(task, messages, engine, progress, count + SURPLUS_SENTENCES)
        written.usage.queue_seconds += waited_s
    progress(work_pb2.TaskProgress(phase="checking", output_tokens=written.usage.completion_tokens))
    summary = await asyncio.to_thread(combine, summaries, document, written.text, written.complete, count)
    return work_pb2.TaskResult(summary=summary), written.usage


async def _fitting(texts: list[str], task: work_pb2.Task, engine: Writer) -> tuple[list[str], float]:
    """The sentences that fit into this engine's context: the plan was made for another one, and inputs vary in length.
    And what the engine was waited for, seconds: its model may have to be loaded for it.

    The longest are left out of the prompt; they stay among those that the result is chosen from.
    """
    if engine.loaded is None:
        return texts, 0.0
    began = time.monotonic()
    room = engine.loaded.context_tokens - PROMPT_OVERHEAD_TOKENS - task.output_tokens_max
    counts = dict(enumerate(await engine.count_tokens(texts)))
    waited_s = time.monotonic() - began
    while len(counts) > 1 and sum(counts.values()) + len(counts) > room:
        del counts[max(counts, key=lambda i: (counts[i], i))]
    return [texts[i] for i in counts], waited_s


async def _answer(
    task: work_pb2.Task, engine: Writer, progress: Report
) -> tuple[work_pb2.TaskResult, common_pb2.Usage]:
    sampling = engine_pb2.Sampling(seed=task.seed)
    if task.replica:
        sampling.temperature, sampling.top_p = ANSWER_TEMPERATURE, ANSWER_TOP_P
    messages = prompts.answer(task.answer.question, task.answer.context, task.seed)
    written = await _write(task, messages, engine, progress, 2, sampling)
    return work_pb2.TaskResult(answer=work_pb2.AnswerText(text=short_answer(written.text))), written.usage


def short_answer(output: str) -> str:
    """The first sentence of the first line that says anything."""
    parsed = outline(output.strip())
    for segment in parsed.segments:
        text = _ANSWER_MARKS.sub("", plain(parsed.of(segment))).strip(" *_#>-•\"'`")
        if words(text):
            return text[:ANSWER_CHARS_MAX]
    return ""


async def _choose(
    task: work_pb2.Task, engine: Writer, progress: Report
) -> tuple[work_pb2.TaskResult, common_pb2.Usage]:
    choose = task.choose
    if sorted(choose.order) != list(range(len(choose.options))) or len(choose.options) < 2:
        raise _bad_task("its option order is no permutation")
    shown = [choose.options[i] for i in choose.order]
    if engine.loaded is not None and "score" in engine.loaded.abilities:
        scores, usage = await _score_options(task, shown, engine, progress)
    else:
        messages = prompts.choose(choose.question, shown, choose.context, task.seed)
        written = await _write(task, messages, engine, progress, 2)
        scores, usage = match_option(written.text, shown), written.usage
    in_client_order = [0.0] * len(shown)
    for place, option in enumerate(choose.order):
        in_client_order[option] = scores[place]
    result = work_pb2.OptionScores(log_probabilities=log_softmax(in_client_order))
    return work_pb2.TaskResult(scores=result), usage


async def _score_options(
    task: work_pb2.Task, shown: Sequence[str], engine: Writer, progress: Report
) -> tuple[list[float], common_pb2.Usage]:
    """Mean log-probability of a token of each option after the question, corrected for what the model prefers anyway.

    The mean takes away the advantage of short options. Contextual calibration subtracts CALIBRATION_SHARE of the same
    score after a question without content.
    """
    choose = task.choose
    assert engine.loaded is not None
    listed = engine.loaded.parameters >= LISTED_PARAMETERS_MIN
    usage = common_pb2.Usage()
    scores = []
    for question, context in ((choose.question, choose.context), (CONTENT_FREE, "")):
        progress(work_pb2.TaskProgress(phase="reading", prompt_tokens_done=usage.prompt_tokens))
        if listed:
            messages = prompts.choose(question, shown, context, task.seed)
        else:
            messages = prompts.answer(question, context, task.seed)
        reply = await engine.score(engine_pb2.ScoreRequest(messages=messages, continuations=shown))
        _add_usage(usage, reply.usage)
        pairs = zip(reply.log_probabilities, reply.token_counts, strict=True)
        scores.append([score / max(1, tokens) for score, tokens in pairs])
    asked, empty = scores
    return [after - CALIBRATION_SHARE * before for after, before in zip(asked, empty, strict=True)], usage


def _add_usage(total: common_pb2.Usage, part: common_pb2.Usage) -> None:
    total.prompt_tokens += part.prompt_tokens
    total.cached_tokens += part.cached_tokens
    total.completion_tokens += part.completion_tokens
    total.prefill_seconds += part.prefill_seconds
    total.decode_seconds += part.decode_seconds
    total.queue_seconds += part.queue_seconds


def match_option(output: str, options: Sequence[str]) -> list[float]:
    """Scores from a written answer: the option that it is, or else names first, gets most of the mass, in nats."""
    text = f" {normalise(short_answer(output))} "
    places = [text.find(f" {option_group(option)} ") for option in options]
    named = [place for place in places if place >= 0]
    if not named:
        return [0.0] * len(options)
    first = min(named)
    longest = max(len(o) for o, place in zip(options, places, strict=True) if place == first)
    return [
        math.log(9.0 * len(options)) if place == first and len(option) == longest else 0.0
        for option, place in zip(options, places, strict=True)
    ]


def log_softmax(scores: Sequence[float]) -> list[float]:
    """Scores in nats, normalised; equal for all where none is a number."""
    usable = [score if math.isfinite(score) else -1e9 for score in scores]
    most = max(usable)
    total = most + math.log(sum(math.exp(score - most) for score in usable))
    return [score - total for score in usable]


async def _write(
    task: work_pb2.Task,
    messages: Sequence[engine_pb2.ChatMessage],
    engine: Writer,
    progress: Report,
    sentences_max: int,
    sampling: engine_pb2.Sampling | None = None,
) -> _Written:
    """Stream a generation; stop reading when it repeats itself or has said more than is used."""
    request = engine_pb2.GenerateRequest(
        messages=messages, max_tokens=task.output_tokens_max, sampling=sampling or engine_pb2.Sampling()
    )
    began = first = time.monotonic()
    usage = common_pb2.Usage()
    text, complete, looked_at = "", False, 0
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            match event.WhichOneof("event"):
                case "started":
                    first = time.monotonic()
                    usage.queue_seconds, began = first - began, first
                    usage.prompt_tokens, usage.cached_tokens = event.started.prompt_tokens, event.started.cached_tokens
                case "delta":
                    if not usage.completion_tokens:
                        first = time.monotonic()
                        usage.prefill_seconds = first - began
                    text += event.delta.text
                    usage.completion_tokens += event.delta.tokens
                    usage.decode_seconds = time.monotonic() - first
                case "finished":
                    usage, complete = event.finished.usage, event.finished.reason == "stop"
                    break
                case "problem":
                    raise KithError.from_wire(event.problem)
            progress(_progress_of(usage))
            if usage.completion_tokens >= looked_at + LOOK_EVERY_TOKENS:
                looked_at = usage.completion_tokens
                if looping(text) or len(written_sentences(text, complete=False)) > sentences_max:
                    break
    return _Written(text, complete, usage)


def _progress_of(usage: common_pb2.Usage) -> work_pb2.TaskProgress:
    pace = usage.completion_tokens / usage.decode_seconds if usage.decode_seconds > 0.05 else 0.0
    return work_pb2.TaskProgress(
        prompt_tokens=usage.prompt_tokens,
        prompt_tokens_done=usage.prompt_tokens if usage.completion_tokens else usage.cached_tokens,
        output_tokens=usage.completion_tokens,
        tokens_per_s=pace,
        phase="writing" if usage.completion_tokens else "reading",
    )
