"""Jobs for daemons under test: documents that make a wished number of tasks, and what became of a job on every node.

With the echo engine a task takes the same time everywhere: a piece has about 240 tokens to read and 30 to write, so at
`KITH_ECHO_TOKENS_PER_S=p` it takes about 62/p seconds.

Nodes agree when each of them holds the same facts, knows the same jobs in the same states, has none open, and gives the
same result for each that completed. A node that can not be asked does not agree.
"""

import asyncio
import hashlib
import itertools
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mesh.wire import local_pb2, work_pb2
from node.errors import KithError
from scripts.daemons import POLL_S, Daemon, NotInTime, formed, until

OPEN = local_pb2.JOB_STATE_OPEN
COMPLETED = local_pb2.JOB_STATE_COMPLETED
#: A piece of a document has one section of so many sentences.
SENTENCES = 16
#: Longest look at one node while many are asked, seconds: one that is frozen must not hold up the others.
ASK_S = 5.0

Job = bytes
View = dict[str, tuple[object, ...]]


def document(pieces: int, subject: str = "street") -> str:
    """Sections of about 240 words, each a piece of its own. Sentences name their place, so none is like another."""
    sections = []
    for chapter in range(1, pieces + 1):
        sentences = [
            f"House {number} of {subject} {chapter} keeps {number * chapter} lamps, {number + chapter} doors "
            f"and one {'grey' if number % 2 else 'green'} gate."
            for number in range(1, SENTENCES + 1)
        ]
        sections.append(f"# {subject.capitalize()} {chapter}\n\n" + " ".join(sentences))
    return "\n\n".join(sections)


def summary(title: str = "Streets", seed: int = 7) -> work_pb2.JobRequest:
    request = work_pb2.SummarizeRequest(title=title, media_type="text/markdown", sentences=4)
    return work_pb2.JobRequest(summarize=request, seed=seed)


async def up(daemons: Sequence[Daemon], within_s: float = 40.0) -> Daemon:
    """Wait until their engines are ready and they form one mesh; the leader."""
    await asyncio.gather(*(one.ready(within_s) for one in daemons))
    return await formed(daemons, within_s)


async def submit(daemon: Daemon, pieces: int, subject: str = "street") -> Job:
    """Hand in a summary of so many pieces. Raises `KithError`."""
    async with daemon.client() as client:
        accepted = await client.submit(summary(), document(pieces, subject).encode())
    return bytes(accepted.job_id)


async def submit_somewhere(daemons: Sequence[Daemon], pieces: int, subject: str, within_s: float = 30.0) -> Job:
    """The same, to the first that takes it; the same key everywhere, so that it is one job. Raises `NotInTime`."""
    key = secrets.token_bytes(16)
    text = document(pieces, subject).encode()

    async def attempt() -> Job | None:
        for daemon in daemons:
            try:
                async with asyncio.timeout(ASK_S * 2), daemon.client() as client:
                    return bytes((await client.submit(summary(), text, client_key=key)).job_id)
            except (KithError, TimeoutError):
                continue
        return None

    return await until(attempt, within_s, f"a job about {subject} accepted")


async def snapshot(daemon: Daemon, job_id: Job) -> local_pb2.JobSnapshot:
    """The job as this node sees it, with its tasks. Raises `KithError`, `TimeoutError`."""
    async with asyncio.timeout(ASK_S), daemon.client() as client:
        async for now in client.watch(job_id):
            return now
    raise KithError("job-unknown", "the watch said nothing", "")


def described(job: local_pb2.JobSnapshot) -> str:
    """Where a job stands, in a line."""
    tasks = ", ".join(
        f"{task.index}.{task.replica} {task.state} {task.node_name}".rstrip()
        for task in job.tasks
        if task.state != "done"
    )
    reasons = "; ".join(one.message for one in job.reasons)
    state = local_pb2.JobState.Name(job.state)
    return f"{state}, {job.tasks_done} of {job.tasks_total} done, {tasks} {job.waiting_for} {reasons}".rstrip()


async def under_way(daemon: Daemon, job_id: Job, done: int = 2, on: str = "", within_s: float = 60.0) -> None:
    """Wait until so many tasks are done and one runs, on the node of that name where one is given."""

    async def probe() -> bool:
        now = await snapshot(daemon, job_id)
        assert now.state == OPEN, f"it ended before anything could happen to it: {described(now)}"
        running = [task.node_name for task in now.tasks if task.state == "running"]
        return now.tasks_done >= done and (on in running if on else bool(running))

    await until(probe, within_s, f"{done} tasks done and one running" + (f" on {on}" if on else ""))


async def begun(daemon: Daemon, job_id: Job, within_s: float = 60.0) -> bool:
    """Wait until a task of it runs or it has ended; whether one runs. Raises `NotInTime`."""

    async def probe() -> local_pb2.JobSnapshot | None:
        now = await snapshot(daemon, job_id)
        return now if now.state != OPEN or any(task.state == "running" for task in now.tasks) else None

    return (await until(probe, within_s, "a task runs")).state == OPEN


async def ended(daemon: Daemon, job_id: Job, within_s: float = 90.0) -> local_pb2.JobSnapshot:
    """The job at its end, as this node sees it. Raises `NotInTime` with where it stands."""
    last = local_pb2.JobSnapshot()
    deadline = time.monotonic() + within_s
    while True:
        try:
            async with asyncio.timeout(max(0.1, deadline - time.monotonic())), daemon.client() as client:
                async for last in client.watch(job_id):
                    if last.state != OPEN:
                        return last
        except (KithError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise NotInTime(
                    f"{daemon.label}: not ended within {within_s:g} s ({error!r}): {described(last)}"
                ) from None
        await asyncio.sleep(POLL_S)


async def completed(daemon: Daemon, job_id: Job, within_s: float = 90.0) -> local_pb2.JobSnapshot:
    """The same; raises `AssertionError` where it ended in another way."""
    last = await ended(daemon, job_id, within_s)
    assert last.state == COMPLETED, f"{described(last)}\n{daemon.tail()}"
    return last


async def not_completed(daemons: Sequence[Daemon], jobs: Sequence[Job], within_s: float) -> dict[Job, str]:
    """Which of these accepted jobs are not completed on every node when the time is up; in words, what each is there.

    Raises `KithError`, `TimeoutError` where a node does not answer at the end.
    """
    left: dict[Job, str] = {}

    async def probe() -> bool:
        left.clear()
        for daemon in daemons:
            async with asyncio.timeout(ASK_S), daemon.client() as client:
                states = {one.job_id: one.state for one in await client.jobs()}
            for job in jobs:
                if (state := states.get(job)) != COMPLETED:
                    name = local_pb2.JobState.Name(state) if state is not None else "unknown"
                    left[job] = f"{job.hex()[:12]} is {name} on {daemon.label}"
        return not left

    try:
        await until(probe, within_s, "all jobs completed everywhere")
    except NotInTime:
        await probe()
    return left


@dataclass(frozen=True)
class Standing:
    """What one node says of everything it holds."""

    facts: int
    digest: bytes  # of all facts; empty where its release does not say
    jobs: View
    results: dict[str, bytes]


async def standing(daemon: Daemon, jobs: Iterable[Job] | None = None) -> Standing:
    """What this node says of its jobs, with the results of these of them (None: all). Raises `KithError`."""
    async with daemon.client() as client:
        async with asyncio.timeout(ASK_S):
            status = await client.status()
            said = await client.jobs()
        views: View = {
            one.job_id.hex(): (
                one.state,
                one.kind,
                one.title,
                one.submitted_by,
                one.submitted_ms,
                one.tasks_total,
                one.tasks_done,
                one.superseded,
            )
            for one in said
        }
        wanted = None if jobs is None else set(jobs)
        results = {}
        for one in said:
            if one.state == COMPLETED and (wanted is None or one.job_id in wanted):
                async with asyncio.timeout(ASK_S):
                    reply = await client.result(one.job_id)
                content = reply.result.SerializeToString(deterministic=True) + reply.document
                results[one.job_id.hex()] = hashlib.sha256(content).digest()
        return Standing(status.facts, status.facts_digest, views, results)


async def agreed(daemons: Sequence[Daemon], jobs: Iterable[Job] | None = None, within_s: float = 30.0) -> Standing:
    """Wait until these nodes agree; what they agree on. Raises `NotInTime` with how they differ.

    Args:
        jobs: their results are compared and must be known everywhere; None: the results of all that are known.
    """
    jobs = None if jobs is None else list(jobs)
    differences = ""

    async def probe() -> Standing | None:
        nonlocal differences
        try:
            standings = [await standing(daemon, jobs) for daemon in daemons]
        except TimeoutError as error:
            differences = repr(error)
            return None
        differences = "; ".join(filter(None, (difference(*both) for both in itertools.pairwise(standings))))
        first = standings[0]
        still_open = [job for job, view in first.jobs.items() if view[0] == OPEN]
        missing = [job.hex() for job in jobs or () if job.hex() not in first.jobs]
        differences = differences or (f"open: {still_open}" if still_open else "")
        differences = differences or (f"unknown: {missing}" if missing else "")
        return None if differences else first

    try:
        return await until(probe, within_s, f"{len(daemons)} nodes agree")
    except NotInTime as late:
        raise NotInTime(f"{late}: {differences}") from None


def difference(one: Standing, other: Standing) -> str:
    """How two nodes differ, in words; empty where they do not."""
    words = []
    if one.facts != other.facts:
        words.append(f"{one.facts} facts and {other.facts}")
    elif one.digest != other.digest and one.digest and other.digest:
        words.append(f"{one.facts} facts each, but not the same")
    for job in sorted(one.jobs.keys() | other.jobs.keys()):
        if one.jobs.get(job) != other.jobs.get(job):
            words.append(f"job {job[:12]}: {one.jobs.get(job)} and {other.jobs.get(job)}")
        elif one.results.get(job) != other.results.get(job):
            words.append(f"job {job[:12]}: another result")
    return ", ".join(words)
