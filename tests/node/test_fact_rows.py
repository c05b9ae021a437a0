"""Tests of node/fact_rows.py: what a start reads is what was, and a long journal is read by its keys."""

import asyncio
import random
import tempfile
from pathlib import Path

from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh import events
from mesh.facts import Fact, FactRange, Place
from mesh.ledger import Ledger
from mesh.replica import Replica
from mesh.wire import common_pb2, facts_pb2
from node.store import Store
from tests.mesh.building import KEYS, Author
from tests.node.test_store import KEY, KNOWLEDGE, chain, no_fatal


async def test_many_retired_runs_are_found_by_their_key(tmp_path: Path) -> None:
    """A stream has a run for each closed job: a look at all of them for each would take hours for a year's jobs."""
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    plans: list[str] = []

    def trace(cursor: object, sql: str, values: object) -> bool:
        plans.append(sql)
        return True

    store._db.exec_trace = trace
    facts = chain(9)
    await store.append(facts)
    await store.retire([FactRange(KNOWLEDGE, 2, 2), FactRange(KNOWLEDGE, 4, 6)])
    await store.read_ranges([FactRange(KNOWLEDGE, 1, 9)])
    store._db.exec_trace = None
    reads = {sql for sql in plans if sql.startswith("SELECT") and "retired" in sql}
    assert reads
    for sql in reads:
        steps = [str(row[3]) for row in store._db.execute("EXPLAIN QUERY PLAN " + sql, (1,) * sql.count("?"))]
        assert all("first" in step for step in steps if step.startswith("SEARCH")), (sql, steps)
        assert not any(step.startswith("SCAN retired") for step in steps), (sql, steps)
    await store.close()


def said(author: Author, choice: int, jobs: int) -> Fact:
    """A fact of any kind, about one of a few jobs, plans and agents."""
    job_id = bytes([choice % jobs]) * 32
    blob = common_pb2.BlobRef(sha256=bytes([choice % 7]) * 32, size_bytes=9)
    agent = common_pb2.AgentRef(node_id="a" * 32, agent=str(choice % 2))
    failure = common_pb2.Problem(code="x", message="y")
    task = facts_pb2.TaskFinished(job_id=job_id, plan_sha256=blob.sha256, task_index=choice % 3, agent=agent)
    task.MergeFrom(facts_pb2.TaskFinished(result=blob) if choice % 2 else facts_pb2.TaskFinished(failure=failure))
    contents: list[tuple[str, Message]] = [
        ("job_submitted", facts_pb2.JobSubmitted(job_id=job_id, blobs=[blob])),
        ("job_planned", facts_pb2.JobPlanned(job_id=job_id, plan=blob, revision=choice % 2, task_count=3)),
        ("job_assigned", facts_pb2.JobAssigned(job_id=job_id, round=choice)),
        ("task_finished", task),
        ("job_completed", facts_pb2.JobCompleted(job_id=job_id, result=blob)),
        ("job_cancelled", facts_pb2.JobCancelled(job_id=job_id, reason="z")),
        ("job_failed", facts_pb2.JobFailed(job_id=job_id, reasons=[failure])),
        ("knowledge_added", facts_pb2.KnowledgeAdded(title=f"item {choice}", blob=blob)),
        ("knowledge_retracted", facts_pb2.KnowledgeRetracted(item_id=job_id)),
        ("node_profile", facts_pb2.NodeProfile(name=str(choice))),
        ("skill_observation", facts_pb2.SkillObservation(agent=agent, model="m", task_kind=str(choice % 2))),
    ]
    kind, content = contents[choice % len(contents)]
    return author.say(kind, content, hybrid_clock=choice << 16)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9999)), max_size=60),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(0, 4)), max_size=4),
)
def test_a_restart_reads_the_same(writes: list[tuple[int, int]], gone: list[tuple[int, int, int]]) -> None:
    """Journal and folds of a running node, and of one that read its store: also where facts were retired, and again."""
    authors = [Author(KEYS[number // 2], number % 2 + 1) for number in range(4)]
    facts = [said(authors[number], choice, 5) for number, choice in writes]
    running = Replica(KEY, 5, 5, random.Random(1))
    running.handle(events.FactsVerified(KEYS[0].node_id, tuple(facts), ()), 0.0)
    running.handle(events.Persisted(tuple(facts), KEYS[0].node_id, ()), 0.0)

    async def restart(path: Path) -> None:
        store = Store(path, no_fatal)
        store.open(KEY.node_id)
        await store.append(facts)
        await store.close()
        assert reading(await restored(path)) == reading(running)
        left = {Place(fact.stream_id, fact.sequence): fact for fact in facts}
        store = Store(path, no_fatal)
        store.open(KEY.node_id)
        for number, first, more in gone:
            streams = sorted(
                stream_id for stream_id in running.journal.durable if stream_id.author == KEYS[number // 2].node_id
            )
            for stream_id in streams:
                last = min(first + more, running.journal.durable[stream_id].sequence - 1)
                if Place(stream_id, first) in left and Place(stream_id, last) in left and first <= last:
                    await store.retire([FactRange(stream_id, first, last)])
                    for sequence in range(first, last + 1):
                        left.pop(Place(stream_id, sequence), None)
        await store.close()
        again = await restored(path)
        assert again.journal == running.journal
        assert again.journal.digest() == running.journal.digest()
        ledger = Ledger()
        for fact in left.values():
            ledger.apply(fact)
        assert again.ledger == ledger

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(restart(Path(folder) / "j"))


async def restored(path: Path) -> Replica:
    store = Store(path, no_fatal)
    replica = Replica(KEY, 6, 6, random.Random(2))
    with store.restoring():
        facts, term, voted_for = store.open(KEY.node_id)
        replica.restore(facts, term, voted_for, retired=store.retired, forks=store.forks)
    await store.close()
    replica.validate()
    return replica


def reading(replica: Replica) -> tuple[object, ...]:
    library = replica.library
    return (
        library.journal, library.journal.digest(), library.ledger, library.knowledge, library.profiles,
        library.seen_hybrid_clock, library.own_hybrid_clock,
    )  # fmt: skip
