"""Plans from a real engine's counts, and errors that say what to do."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.wire import work_pb2
from node.config import NodeConfig
from node.engine.process import EngineProcess
from node.errors import KithError
from node.planning import COUNT_BATCH, count_tokens, make_plan
from solver.assemble import to_bytes
from solver.decompose import validate_plan
from solver.text import MARKDOWN, PLAIN, outline

DATA = Path(__file__).parent.parent / "data"
REPORT = (DATA / "report.md").read_text()
JOB = b"j" * 32


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EngineProcess]:
    one = EngineProcess(NodeConfig(tmp_path, engine="echo", echo_tokens_per_s=5000), None, lambda line: None)
    await one.start()
    yield one
    await one.stop()


def summarize(media_type: str = MARKDOWN, sentences: int = 0) -> work_pb2.JobRequest:
    return work_pb2.JobRequest(summarize=work_pb2.SummarizeRequest(media_type=media_type, sentences=sentences), seed=3)


def ask(**fields: object) -> work_pb2.JobRequest:
    return work_pb2.JobRequest(ask=work_pb2.AskRequest(**{"question": "Why?", "panel": 3, **fields}), seed=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "media_type"), [("report.md", MARKDOWN), ("village.zh.txt", PLAIN)])
async def test_a_document_is_planned(engine: EngineProcess, name: str, media_type: str) -> None:
    text = (DATA / name).read_text()
    plan = await make_plan(JOB, summarize(media_type), text, engine)
    validate_plan(plan, outline(text, media_type))
    assert plan.job_id == JOB
    assert plan.model == "echo (no model)"
    assert len(plan.tasks) > 1
    assert to_bytes(plan) == to_bytes(await make_plan(JOB, summarize(media_type), text, engine))


async def test_a_question_is_planned(engine: EngineProcess) -> None:
    plan = await make_plan(JOB, ask(context="One reads this.", options=["yes", "no"]), None, engine)
    assert len(plan.tasks) == 3
    assert all(task.prompt_tokens_estimate > 10 for task in plan.tasks)


async def test_tokens_are_counted_in_batches(engine: EngineProcess) -> None:
    assert await count_tokens(["one", "two words", ""] * COUNT_BATCH, engine) == [1, 2, 0] * COUNT_BATCH


@pytest.mark.parametrize(
    ("request_", "document", "code"),
    [
        (summarize(), None, "bad-document"),
        (summarize(), "", "bad-document"),
        (summarize(), "```\ncode only\n```\n", "bad-document"),
        (work_pb2.JobRequest(), None, "bad-request"),
        (ask(question=""), None, "bad-request"),
        (ask(panel=0), None, "bad-request"),
        (ask(options=["a", "A"]), None, "bad-options"),
        (ask(context="word " * 9000), None, "prompt-too-long"),
    ],
)
async def test_what_can_not_be_planned_is_said(
    engine: EngineProcess, request_: work_pb2.JobRequest, document: str | None, code: str
) -> None:
    with pytest.raises(KithError) as caught:
        await make_plan(JOB, request_, document, engine)
    assert caught.value.code == code
    assert not caught.value.message.endswith(".")
    assert caught.value.remedy.endswith(".")


async def test_too_long_a_document_is_said(tmp_path: Path) -> None:
    small = EngineProcess(NodeConfig(tmp_path, engine="echo", ctx=512), None, lambda line: None)
    await small.start()
    with pytest.raises(KithError, match="too long"):
        await make_plan(JOB, summarize(), ("Many words stand in here. " * 20 + "\n\n") * 1000, small)
    await small.stop()


async def test_an_engine_that_is_not_ready(tmp_path: Path) -> None:
    idle = EngineProcess(NodeConfig(tmp_path, engine="echo"), None, lambda line: None)
    with pytest.raises(KithError) as caught:
        await make_plan(JOB, summarize(), REPORT, idle)
    assert caught.value.code == "engine-not-ready"
