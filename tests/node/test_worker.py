"""Running tasks: each that is started ends by one event, whatever happens to it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh import effects, events
from mesh.dispatch import TaskKey
from mesh.ledger import TaskRef
from mesh.wire import common_pb2, work_pb2
from node.blobs import Blobs
from node.worker import Worker
from tests.node.engine.engines import Watched, running
from tests.node.working import JOB, Posted, blobs_of

KEY = TaskKey(JOB, TaskRef(0, 1))
#: At 5 tokens a second this runs for minutes.
LONG = " ".join(f"word{number}" for number in range(400))


@asynccontextmanager
async def working(folder: Path, pace: float = 2000.0) -> AsyncIterator[tuple[Worker, Posted, Watched, Blobs]]:
    posted = Posted()
    async with running(echo_tokens_per_s=pace) as watched, blobs_of(folder, posted) as blobs:
        worker = Worker(watched.engine, blobs, posted.post)
        yield worker, posted, watched, blobs
        await worker.stop_all()


def answer(question: str = "Rivers flow. They end.", **fields: object) -> effects.StartTask:
    task = work_pb2.Task(replica=1, output_tokens_max=500, answer=work_pb2.Answer(question=question))
    assign = work_pb2.Assign(
        job_id=JOB,
        plan_sha256=b"p" * 32,
        task=task,
        agent=common_pb2.AgentRef(node_id="n", agent="default"),
        attempt=2,
        **fields,  # type: ignore[arg-type]
    )
    return effects.StartTask(KEY, assign)


async def test_a_task_ends_with_its_result_stored(tmp_path: Path) -> None:
    async with working(tmp_path) as (worker, posted, _, blobs):
        worker.start(answer())
        ended = await posted.first(events.TaskEnded)
        assert ended.key == KEY
        finished = ended.finished
        assert (finished.job_id, finished.plan_sha256, finished.task_index, finished.replica) == (
            JOB, b"p" * 32, 0, 1,
        )  # fmt: skip
        assert finished.agent.node_id == "n"
        assert "echo" in finished.model
        assert finished.usage.completion_tokens > 0
        result = work_pb2.TaskResult.FromString(await blobs.get(finished.result))
        assert result.answer.text == "Rivers flow."
        [stored] = posted.of(events.BlobStored)
        assert posted.heard.index(stored) < posted.heard.index(ended), "durable before it is said"
        assert posted.of(events.TaskProgressed)
        assert worker.running == 0
    assert not posted.of(events.TaskStopped)


async def test_a_stopped_task_says_so_and_leaves_the_engine(tmp_path: Path) -> None:
    async with working(tmp_path, pace=5.0) as (worker, posted, watched, _):
        worker.start(answer(LONG))
        await watched.until_slots_busy()
        worker.stop(effects.StopTask(KEY, "no longer wanted"))
        assert (await posted.first(events.TaskStopped)).key == KEY
        assert worker.running == 0
        async with asyncio.timeout(10):
            while (await watched.engine.stats()).slots_busy:
                pass
        worker.start(answer())  # the same task again
        await posted.first(events.TaskEnded)
    assert len(posted.of(events.TaskStopped)) == 1


async def test_a_task_that_is_stopped_before_it_began_says_so(tmp_path: Path) -> None:
    async with working(tmp_path) as (worker, posted, _, _):
        worker.start(answer())
        worker.stop(effects.StopTask(KEY, "at once"))
        await posted.first(events.TaskStopped)
    assert not posted.of(events.TaskEnded)


async def test_stopping_all_tells_of_each(tmp_path: Path) -> None:
    async with working(tmp_path, pace=5.0) as (worker, posted, watched, _):
        worker.start(answer(LONG))
        await watched.until_slots_busy()
        await worker.stop_all()
        await posted.first(events.TaskStopped)


async def test_a_killed_engine_is_a_failure_of_the_task(tmp_path: Path) -> None:
    async with working(tmp_path, pace=5.0) as (worker, posted, watched, _):
        worker.start(answer(LONG))
        await watched.until_slots_busy()
        assert watched.engine.pid is not None
        os.kill(watched.engine.pid, signal.SIGKILL)
        ended = await posted.first(events.TaskEnded)
        assert ended.finished.failure.code == "engine-gone"


@pytest.mark.parametrize(
    ("content", "code"), [(None, "blob-missing"), (b"\xff\xff no message", "task-crashed")], ids=["missing", "damaged"]
)
async def test_inputs_that_can_not_be_read_are_a_failure(tmp_path: Path, content: bytes | None, code: str) -> None:
    async with working(tmp_path) as (worker, posted, _, blobs):
        ref = common_pb2.BlobRef(sha256=b"\1" * 32, size_bytes=9) if content is None else await blobs.put(content)
        worker.start(answer(inputs=[ref]))
        ended = await posted.first(events.TaskEnded)
        assert ended.finished.failure.code == code


async def test_an_engine_that_reads_for_long_counts_as_progress_and_a_frozen_one_does_not(tmp_path: Path) -> None:
    async with working(tmp_path, pace=1.0) as (worker, posted, watched, _):
        watching = asyncio.create_task(worker.watch_steps())
        worker.start(answer(LONG))  # 400 tokens at 10 a second are read first, without a word
        await watched.until_slots_busy()
        told = len(posted.of(events.TaskProgressed))
        async with asyncio.timeout(10):
            while len(posted.of(events.TaskProgressed)) < told + 4:  # noqa: ASYNC110 - the engine's own pace
                await asyncio.sleep(0)
        assert watched.engine.pid is not None
        os.kill(watched.engine.pid, signal.SIGSTOP)
        await watched.until(lambda: watched.engine.stalled)
        told = len(posted.of(events.TaskProgressed))
        for _ in range(4):  # four more looks at a child that does not move
            await asyncio.sleep(0.25)
        assert len(posted.of(events.TaskProgressed)) == told
        os.kill(watched.engine.pid, signal.SIGCONT)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_steps_are_looked_at_only_while_a_task_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.worker.STEPS_EVERY_S", 0.0)
    async with working(tmp_path, pace=5.0) as (_, posted, watched, blobs):
        looks = 0

        def steps() -> int:
            nonlocal looks
            looks += 1
            return 0

        worker = Worker(watched.engine, blobs, posted.post, steps=steps)
        watching = asyncio.create_task(worker.watch_steps())
        for _ in range(100):
            await watched.engine.stats()
        assert looks <= 1
        worker.start(answer(LONG))
        async with asyncio.timeout(60):
            while looks < 100:  # noqa: ASYNC110 - as often as the loop comes round
                await asyncio.sleep(0)
        await worker.stop_all()
        before = looks
        for _ in range(100):
            await watched.engine.stats()
        assert looks <= before + 2
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
