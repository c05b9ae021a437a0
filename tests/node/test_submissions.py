"""Taking in a job: what the machines are asked, what clients are told, and that nobody waits for ever."""

import asyncio
import hashlib
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh import effects, events
from mesh.replica import Replica
from mesh.wire import local_pb2, membership_pb2, work_pb2
from node.authors import Authors
from node.blobs import Blobs
from node.errors import ExitCode, KithError
from node.shell import Shell
from node.store import Store
from node.submissions import REPLICA_DEADLINE_S, Submissions, job_id_of
from tests.mesh.building import B, C
from tests.mesh.lone import Lone
from tests.node.test_shell import Nobody
from tests.node.working import KEY, PATIENCE, Posted, blobs_of, no_fatal

DOCUMENT = b"A river flows. It ends in the sea."


class Door:
    """Submissions of a node without peers; the machines' answers are given by the test."""

    def __init__(self, posted: Posted, blobs: Blobs, replica: Replica | None = None) -> None:
        self.posted = posted
        self.submissions = Submissions(posted.post, replica or Replica(KEY, 1, 1, random.Random(1)), blobs)

    def submit(
        self, request: work_pb2.JobRequest, document: bytes = b"", **header: object
    ) -> "asyncio.Task[local_pb2.SubmitReply]":
        said = local_pb2.SubmitHeader(request=request, client_key=b"k" * 16, **header)  # type: ignore[arg-type]
        return asyncio.create_task(self.submissions.submit(said, document))

    async def asked(self) -> events.SubmitRequested:
        return await self.posted.first(events.SubmitRequested)

    def answer(self, asked: events.SubmitRequested, copies: int, wanted: int = 3, *, known: bool = False) -> None:
        job_id = asked.submitted.job_id
        self.submissions.answered(effects.AnswerSubmit(asked.ticket, job_id, copies, wanted, known))


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    posted = Posted()
    async with blobs_of(tmp_path, posted) as blobs:
        one = Door(posted, blobs)
        yield one
        one.submissions.close()


def summarize() -> work_pb2.JobRequest:
    return work_pb2.JobRequest(summarize=work_pb2.SummarizeRequest(title="Rivers", media_type="text/plain"))


def ask(question: str = "Why?") -> work_pb2.JobRequest:
    return work_pb2.JobRequest(ask=work_pb2.AskRequest(question=question))


async def test_the_document_is_durable_before_the_job_is_said(door: Door) -> None:
    reply = door.submit(summarize(), DOCUMENT)
    asked = await door.asked()
    assert isinstance(door.posted.heard[0], events.BlobStored)
    [ref] = asked.submitted.blobs
    assert ref.sha256 == hashlib.sha256(DOCUMENT).digest()
    assert asked.submitted.request.summarize.document == ref
    assert asked.submitted.request.seed, "drawn from the job's id, so the same on a retry"
    assert asked.deadline_s == REPLICA_DEADLINE_S
    door.answer(asked, 2)
    assert await reply == local_pb2.SubmitReply(job_id=asked.submitted.job_id, replicas=2, replicas_wanted=3)


async def test_the_same_key_and_request_is_the_same_job(door: Door) -> None:
    first, second = door.submit(ask()), door.submit(ask())
    one, other = await door.posted.some(events.SubmitRequested, 2)
    assert one.submitted == other.submitted
    assert one.ticket != other.ticket
    door.answer(other, 3, known=True)
    door.answer(one, 1)
    assert (await first).replicas == 1
    assert (await second).replicas == 3
    assert job_id_of(b"k" * 16, ask()) != job_id_of(b"q" * 16, ask())


async def test_too_few_copies_is_an_error_that_names_the_job(door: Door) -> None:
    reply = door.submit(ask(), min_replicas=3, replica_deadline_s=0.5)
    asked = await door.asked()
    assert asked.deadline_s == 0.5
    door.answer(asked, 1)
    with pytest.raises(KithError) as caught:
        await reply
    assert caught.value.code == "too-few-copies"
    assert asked.submitted.job_id.hex()[:12] in caught.value.message


async def test_what_no_disk_has_confirmed_is_not_accepted(tmp_path: Path) -> None:
    """A disk that hangs beyond the deadline: what is told as accepted must not be lost with the next power cut."""
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    replica = Replica(KEY, 1, 1, random.Random(1))

    class Routed(Nobody):
        def carry_out(self, effect: effects.Effect) -> None:
            if isinstance(effect, effects.AnswerSubmit):
                submissions.answered(effect)

    shell = Shell(replica, store, membership_pb2.Hello, Routed(), Authors(None, []))
    submissions = Submissions(shell.post, replica, Blobs(store, shell.post, lambda _: None, list))
    goes_on = threading.Event()
    held = asyncio.ensure_future(store._do(goes_on.wait))
    shell.start()
    try:
        header = local_pb2.SubmitHeader(request=ask(), client_key=b"k" * 16, replica_deadline_s=0.1)
        with pytest.raises(KithError) as caught:
            async with asyncio.timeout(PATIENCE):
                await submissions.submit(header, b"")
        assert caught.value.code == "too-few-copies"
        assert "not on a disk yet" in caught.value.message
        goes_on.set()
        header.replica_deadline_s = PATIENCE
        assert (await submissions.submit(header, b"")).replicas == 1, "the same job, once the disk goes on"
    finally:
        goes_on.set()
        await held
        await shell.stop()
        await store.close()


async def test_a_client_that_went_away_is_forgotten(door: Door) -> None:
    reply = door.submit(ask())
    asked = await door.asked()
    reply.cancel()
    await asyncio.gather(reply, return_exceptions=True)
    door.answer(asked, 3)  # nobody is there to hear it, and that is no error


async def test_a_panel_of_more_than_can_answer_is_refused(tmp_path: Path) -> None:
    node = Lone(peers=2)
    node.profile(B, slots=1)
    node.profile(C, slots=1, abilities=("embed",))
    posted = Posted()
    async with blobs_of(tmp_path, posted) as blobs:
        door = Door(posted, blobs, node.replica)
        refused = pytest.raises(KithError, match="a panel of 2 needs 2 agents that write; only 1 here")
        async with asyncio.timeout(10):  # one that is taken would wait for copies
            with refused as caught:
                await door.submit(work_pb2.JobRequest(ask=work_pb2.AskRequest(question="Why?", panel=2)))
        assert caught.value.code == "panel-too-large"
        door.submissions.close()


async def test_a_retry_is_asked_nothing_that_was_right_when_it_was_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who did not hear the answer asks again; an agent of the panel has left meanwhile, and many jobs are open."""
    node = Lone(peers=1)
    node.profile(B, slots=1)
    node.profile(node.me, slots=1)
    request = work_pb2.JobRequest(ask=work_pb2.AskRequest(question="Why?", panel=2))
    posted = Posted()
    async with blobs_of(tmp_path, posted) as blobs:
        door = Door(posted, blobs, node.replica)
        first = door.submit(request)
        asked = await door.asked()
        node.do(events.FactAuthored("job_submitted", asked.submitted, 1))
        door.answer(asked, 2)
        assert (await first).replicas == 2
        node.leaves(B)
        monkeypatch.setattr("node.submissions.OPEN_JOBS_MAX", 1)
        again = door.submit(request)
        _, asked_again = await posted.some(events.SubmitRequested, 2)
        assert asked_again.submitted == asked.submitted
        door.answer(asked_again, 1, known=True)
        assert (await again).job_id == (await first).job_id
        with pytest.raises(KithError) as caught:
            await door.submit(ask("Another?"))
        assert caught.value.code == "busy"
        door.submissions.close()


async def test_without_room_nothing_is_said(door: Door) -> None:
    door.submissions._blobs._store.budget_bytes = 1
    with pytest.raises(KithError) as caught:
        await door.submit(summarize(), DOCUMENT)
    assert caught.value.code == "disk-full"
    assert not door.posted.of(events.SubmitRequested)


async def test_a_stopping_node_refuses_and_leaves_nobody_waiting(door: Door) -> None:
    waiting = door.submit(ask())
    await door.asked()
    door.submissions.draining = True
    with pytest.raises(KithError) as caught:
        await door.submit(ask())
    assert (caught.value.code, caught.value.exit_code) == ("node-draining", ExitCode.UNAVAILABLE)
    door.submissions.close()
    with pytest.raises(KithError) as caught:
        await waiting
    assert caught.value.code == "node-draining"
