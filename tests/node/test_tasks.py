"""Tasks against engines in their own processes: the echo back end, and the real model."""

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from mesh.wire import common_pb2, engine_pb2, work_pb2
from node.config import NodeConfig
from node.engine.process import EngineProcess
from node.engines import Engines
from node.errors import KithError
from node.planning import make_plan
from node.tasks import log_softmax, match_option, run_task, short_answer
from solver.assemble import assemble, to_bytes
from solver.text import MARKDOWN, PLAIN, plain

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture
async def echo(tmp_path: Path) -> AsyncIterator[EngineProcess]:
    one = EngineProcess(NodeConfig(tmp_path, engine="echo", echo_tokens_per_s=5000), None, lambda line: None)
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
async def llama(tmp_path: Path, model_path: Path) -> AsyncIterator[EngineProcess]:
    one = EngineProcess(NodeConfig(tmp_path, engine="llama", threads=1, ctx=2048), model_path, lambda line: None)
    await one.start()
    yield one
    await one.stop()


async def test_what_a_task_waits_for_its_model_is_in_its_usage(tmp_path: Path) -> None:
    config = NodeConfig(tmp_path, engine="echo", echo_tokens_per_s=5000)
    first, further = (EngineProcess(config, None, lambda line: None) for _ in range(2))
    engines = Engines(first, 100, lambda: None)
    planned = engine_pb2.EngineLoaded(model="A", context_tokens=2048, abilities=["score"])
    await first.start()
    try:
        request = summarize("It is so. It is not so.", PLAIN)
        plan = await make_plan(b"j" * 32, request, "It is so. It is not so.", first)
        one = engines.add(Path("/m/A.gguf"), further, 10, planned)
        store = Store(b"It is so. It is not so.")
        _, usage = await run_task(plan.tasks[0], [], store.read, one, lambda _: None)
        assert usage.queue_seconds >= one.took_s > 0.0
        _, after = await run_task(plan.tasks[0], [], store.read, one, lambda _: None)
        assert after.queue_seconds < usage.queue_seconds
    finally:
        await engines.stop()


class Store:
    """Blobs by hash."""

    def __init__(self, *contents: bytes) -> None:
        self._blobs = {hashlib.sha256(content).digest(): content for content in contents}

    async def read(self, blob: common_pb2.BlobRef) -> bytes:
        return self._blobs[blob.sha256]


def summarize(text: str, media_type: str) -> work_pb2.JobRequest:
    raw = text.encode()
    blob = common_pb2.BlobRef(sha256=hashlib.sha256(raw).digest(), size_bytes=len(raw))
    return work_pb2.JobRequest(summarize=work_pb2.SummarizeRequest(document=blob, media_type=media_type), seed=3)


async def run_job(
    engine: EngineProcess, request: work_pb2.JobRequest, document: str | None
) -> tuple[work_pb2.JobResult, list[work_pb2.TaskProgress], list[common_pb2.Usage]]:
    plan = await make_plan(b"j" * 32, request, document, engine)
    store = Store((document or "").encode())
    progress: list[work_pb2.TaskProgress] = []
    results: dict[tuple[int, int], work_pb2.TaskResult] = {}
    usages = []
    for task in plan.tasks:
        inputs = [results[index, 0] for index in task.depends_on]
        result, usage = await run_task(task, inputs, store.read, engine, progress.append)
        results[task.index, task.replica] = result
        usages.append(usage)
    return assemble(request, plan, results, {}, document), progress, usages


def check_summary(result: work_pb2.JobResult, text: str, most: int) -> None:
    summary = result.summary.summary
    assert 2 <= len(summary.sentences) <= most
    for sentence in summary.sentences:
        assert sentence.sources
        assert all(0 <= span.begin < span.end <= len(text) for span in sentence.sources)
        said = " ".join(plain(text[span.begin : span.end]) for span in sentence.sources)
        if sentence.verbatim:
            assert sentence.text.removesuffix(" …") in said
        assert sentence.support >= 0.85
    begins = [sentence.sources[0].begin for sentence in summary.sentences]
    assert begins == sorted(begins)


@pytest.mark.parametrize(("name", "media_type"), [("report.md", MARKDOWN), ("village.zh.txt", PLAIN)])
async def test_a_document_is_summarised(echo: EngineProcess, name: str, media_type: str) -> None:
    text = (DATA / name).read_text()
    result, progress, usages = await run_job(echo, summarize(text, media_type), text)
    check_summary(result, text, 5)
    assert result.summary.pieces > 1
    assert result.summary.levels == 1
    assert 0 < result.summary.words_out < result.summary.words_in
    assert progress[0].phase == "reading"
    assert {"reading", "writing", "checking"} == {p.phase for p in progress}
    assert any(p.output_tokens for p in progress)
    assert all(usage.prompt_tokens and usage.completion_tokens for usage in usages)


async def test_a_task_gives_the_same_result_twice(echo: EngineProcess) -> None:
    text = (DATA / "report.md").read_text()
    first, _, _ = await run_job(echo, summarize(text, MARKDOWN), text)
    second, _, _ = await run_job(echo, summarize(text, MARKDOWN), text)
    assert to_bytes(first) == to_bytes(second)


async def test_an_open_question_is_answered(echo: EngineProcess) -> None:
    request = work_pb2.JobRequest(ask=work_pb2.AskRequest(question="Why is the sky blue?", panel=3), seed=3)
    result, _, _ = await run_job(echo, request, None)
    assert len(result.panel.ballots) == 3
    assert all(ballot.answer for ballot in result.panel.ballots)


async def test_a_closed_question_is_scored_in_the_client_s_order(echo: EngineProcess) -> None:
    ask = work_pb2.AskRequest(question="Which?", panel=2, options=["red", "green", "blue"])
    request = work_pb2.JobRequest(ask=ask, seed=3)
    plan = await make_plan(b"j" * 32, request, None, echo)
    for task in plan.tasks:
        result, usage = await run_task(task, [], Store().read, echo, lambda p: None)
        scores = result.scores.log_probabilities
        assert math.isclose(sum(map(math.exp, scores)), 1.0)
        assert usage.prompt_tokens > 0


class _Blunt:
    """An engine as it is, without the ability to score."""

    def __init__(self, engine: EngineProcess) -> None:
        assert engine.loaded is not None
        self._engine = engine
        self.loaded = type(engine.loaded)()
        self.loaded.CopyFrom(engine.loaded)
        self.loaded.abilities.remove("score")

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)


async def test_without_scores_the_option_is_written_and_matched(echo: EngineProcess) -> None:
    """Echo writes the longest paragraph of the prompt, which here names one of the options first."""
    ask = work_pb2.AskRequest(question="q", panel=1, options=["left", "right"], context="It is right and long. " * 9)
    plan = await make_plan(b"j" * 32, work_pb2.JobRequest(ask=ask, seed=3), None, echo)
    result, _ = await run_task(plan.tasks[0], [], Store().read, _Blunt(echo), lambda p: None)  # type: ignore[arg-type]
    scores = result.scores.log_probabilities
    assert scores[1] > scores[0]
    assert math.isclose(sum(map(math.exp, scores)), 1.0)


async def test_cancelling_a_task_frees_the_engine(tmp_path: Path) -> None:
    slow = EngineProcess(NodeConfig(tmp_path, engine="echo", echo_tokens_per_s=20), None, lambda line: None)
    await slow.start()
    try:
        text = (DATA / "report.md").read_text()
        request = summarize(text, MARKDOWN)
        plan = await make_plan(b"j" * 32, request, text, slow)
        writing = asyncio.Event()

        def report(progress: work_pb2.TaskProgress) -> None:
            if progress.output_tokens:
                writing.set()

        running = asyncio.create_task(run_task(plan.tasks[0], [], Store(text.encode()).read, slow, report))
        await asyncio.wait_for(writing.wait(), 30)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async with asyncio.timeout(30):
            while (await slow.stats()).slots_busy:
                pass  # each look is a round trip to the engine's process
    finally:
        await slow.stop()


async def test_tasks_that_can_not_be_run_say_so(echo: EngineProcess) -> None:
    text = b"A sentence stands here."
    blob = common_pb2.BlobRef(sha256=hashlib.sha256(text).digest(), size_bytes=len(text))
    broken = common_pb2.BlobRef(sha256=hashlib.sha256(b"\xff\xff").digest(), size_bytes=2)
    outside = work_pb2.Span(begin=900, end=990)
    tasks: Sequence[work_pb2.Task] = [
        work_pb2.Task(),
        work_pb2.Task(summarize_piece=work_pb2.SummarizePiece(document=blob, span=outside)),
        work_pb2.Task(summarize_piece=work_pb2.SummarizePiece(document=broken, span=outside)),
        work_pb2.Task(combine_summaries=work_pb2.CombineSummaries(document=blob, sentences=2)),
        work_pb2.Task(choose=work_pb2.Choose(question="Q", options=["a", "b"], order=[0, 0])),
    ]
    for task in tasks:
        with pytest.raises(KithError) as caught:
            await run_task(task, [], Store(text, b"\xff\xff").read, echo, lambda p: None)
        assert caught.value.code == "bad-request"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Paris", "Paris"),
        ("\n\n**Answer:** Paris.\nBecause it is.", "Paris."),
        ("Paris is the capital. It is large.", "Paris is the capital."),
        ("- Paris", "Paris"),
        ('"Paris"', "Paris"),
        ("", ""),
        ("...", ""),
        ("巴黎。它很大。", "巴黎。"),
    ],
)
def test_an_answer_is_its_first_sentence(output: str, expected: str) -> None:
    assert short_answer(output) == expected


def test_a_written_option_is_matched() -> None:
    assert match_option("The answer is: Green.", ["red", "green"])[1] > 0
    assert match_option("light green", ["green", "light green"]) == [0.0, pytest.approx(math.log(18))]
    assert match_option("none of them", ["red", "green"]) == [0.0, 0.0]
    assert match_option("", ["red", "green"]) == [0.0, 0.0]


def test_log_softmax_survives_what_is_no_number() -> None:
    assert sum(map(math.exp, log_softmax([1.0, -math.inf, 2.0]))) == pytest.approx(1.0)
    assert log_softmax([math.nan, math.nan]) == pytest.approx([math.log(0.5)] * 2)


@pytest.mark.model
@pytest.mark.parametrize(("name", "media_type"), [("report.md", MARKDOWN), ("village.zh.txt", PLAIN)])
async def test_the_real_model_summarises(llama: EngineProcess, name: str, media_type: str) -> None:
    text = (DATA / name).read_text()
    result, progress, _ = await run_job(llama, summarize(text, media_type), text)
    check_summary(result, text, 5)
    assert any(p.tokens_per_s > 0 for p in progress)


@pytest.mark.model
async def test_the_real_model_chooses(llama: EngineProcess) -> None:
    ask = work_pb2.AskRequest(
        question="What colour is the sky on a clear day?", panel=3, options=["blue", "green", "loud"]
    )
    result, _, _ = await run_job(llama, work_pb2.JobRequest(ask=ask, seed=3), None)
    assert len(result.panel.ballots) == 3
    assert all(math.isclose(sum(ballot.probabilities), 1.0) for ballot in result.panel.ballots)
    assert result.panel.answer == "blue"


@pytest.mark.model
async def test_the_real_model_answers(llama: EngineProcess) -> None:
    request = work_pb2.JobRequest(ask=work_pb2.AskRequest(question="What is the capital of France?", panel=1), seed=3)
    result, _, _ = await run_job(llama, request, None)
    assert "Paris" in result.panel.answer
