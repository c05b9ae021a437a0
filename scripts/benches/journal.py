"""Journal: how fast facts become durable on one node, and what 100,000 of them cost at the next start.

The node's own store and replica, without a mesh around them. `facts_per_s_stored` takes in what a peer pushed, 1,000
facts a push, signatures checked, synced and folded; `facts_per_s_one_by_one` waits for the sync of each fact before
the next (one commit each); `facts_per_s_authors` has 64 authors that each wait for their own. The 100,000 facts are
whole jobs of 20 tasks, as a leader and its workers write them. `restart_s` is from opening the file to a replica that
answers: reading, checking and folding; `fold_s` is the folds' part.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import Message

from mesh import effects, events
from mesh.certificates import Roots
from mesh.facts import STREAM_OF_KIND, Fact, make
from mesh.identity import NodeId, NodeKey
from mesh.ledger import Ledger
from mesh.replica import Replica
from mesh.wire import common_pb2, facts_pb2, work_pb2
from node.authors import Authors
from node.fact_rows import without_collecting
from node.shell import verified
from node.store import Store
from scripts.throwaway import ThrowawayMesh

FACTS = 100_000
PUSH = 1_000
TASKS = 20
ONE_BY_ONE = 300
AUTHORS = 64
RESTARTS = 5


def figures() -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as folder:
        return asyncio.run(_measure(Path(folder)))


async def _measure(folder: Path) -> dict[str, float]:
    key, author = NodeKey.from_scalar(11), NodeKey.from_scalar(12)
    figures: dict[str, float] = {"facts": FACTS}
    store = Store(folder / "journal", _fatal)
    store.open(key.node_id)
    replica = Replica(key, 1, 1, random.Random(1))
    mesh = ThrowawayMesh()
    authors = Authors(Roots([mesh.authority.ca_der]), [mesh.certificate(author.public_key)])
    facts = _written(author)
    spent = 0.0
    for start in range(0, FACTS, PUSH):
        pushed = [next(facts) for _ in range(min(PUSH, FACTS - start))]
        push = facts_pb2.FactPush(facts=[fact.signed for fact in pushed])
        began = time.perf_counter()
        await _take(replica, store, authors, author.node_id, push)
        spent += time.perf_counter() - began
    assert sum(position.sequence for position in replica.journal.durable.values()) == FACTS
    figures["facts_per_s_stored"] = round(FACTS / spent)
    await store.close()
    figures["file_mb"] = round((folder / "journal").stat().st_size / 1e6, 1)

    restarts, folds = [], []
    for _ in range(RESTARTS):
        store = Store(folder / "journal", _fatal)
        began = time.perf_counter()
        with without_collecting():
            read, term, voted_for = store.open(key.node_id)
            again = Replica(key, 2, 2, random.Random(2))
            again.restore(read, term, voted_for, retired=store.retired, forks=store.forks)
        restarts.append(time.perf_counter() - began)
        assert again.ledger.fingerprint() == replica.ledger.fingerprint()
        began = time.perf_counter()
        ledger = Ledger()
        for fact in read:
            ledger.apply(fact)
        folds.append(time.perf_counter() - began)
        await store.close()
    figures["restart_s"] = round(sorted(restarts)[RESTARTS // 2], 2)
    figures["fold_s"] = round(sorted(folds)[RESTARTS // 2], 2)

    store = Store(folder / "one", _fatal)
    store.open(key.node_id)
    facts = _written(author)
    began = time.perf_counter()
    for _ in range(ONE_BY_ONE):
        await store.append([next(facts)])
    figures["facts_per_s_one_by_one"] = round(ONE_BY_ONE / (time.perf_counter() - began))
    began = time.perf_counter()
    await asyncio.gather(
        *(_write_alone(store, NodeKey.from_scalar(100 + number), ONE_BY_ONE // 10) for number in range(AUTHORS))
    )
    figures["facts_per_s_authors"] = round(AUTHORS * (ONE_BY_ONE // 10) / (time.perf_counter() - began))
    await store.close()
    return figures


async def _take(replica: Replica, store: Store, authors: Authors, peer: NodeId, push: facts_pb2.FactPush) -> None:
    """As the shell does: check signatures in a thread, persist, hand back."""
    facts, retired, _ = await asyncio.to_thread(verified, peer, push, authors)
    waiting: list[effects.Effect] = replica.handle(events.FactsVerified(peer, facts, retired), 0.0)
    for effect in waiting:
        if isinstance(effect, effects.Persist):
            await store.append(effect.facts, effect.retired)
            replica.handle(events.Persisted(effect.facts, effect.source, effect.retired), 0.0)


async def _write_alone(store: Store, key: NodeKey, count: int) -> None:
    facts = _written(key)
    for _ in range(count):
        await store.append([next(facts)])


def _written(key: NodeKey) -> Iterator[Fact]:
    """One author's facts without end: job after job, all in one stream."""
    sequence, head, job = 0, b"", 0
    while True:
        job += 1
        for kind, content in _job(job.to_bytes(32, "big")):
            assert STREAM_OF_KIND[kind] == facts_pb2.FACT_STREAM_JOBS
            sequence += 1
            fact = make(key, 1, sequence, head, sequence << 16, kind, content)
            head = fact.hash
            yield fact


def _job(job_id: bytes) -> Iterator[tuple[str, Message]]:
    blob = common_pb2.BlobRef(sha256=job_id, size_bytes=9000)
    request = work_pb2.JobRequest(summarize=work_pb2.SummarizeRequest(document=blob, title="A report", sentences=5))
    token = common_pb2.FencingToken(term=3, leader_id="a" * 32)
    agent = common_pb2.AgentRef(node_id="b" * 32, agent="default")
    yield "job_submitted", facts_pb2.JobSubmitted(job_id=job_id, request=request, blobs=[blob], client_key=job_id)
    yield "job_planned", facts_pb2.JobPlanned(job_id=job_id, plan=blob, revision=1, task_count=TASKS)
    terms = [facts_pb2.CostTerm(name=name, seconds=1.5) for name in ("queue", "prefill", "decode")]
    for number in range(TASKS):
        record = facts_pb2.AssignmentRecord(task_index=number, agent=agent, cost_s=4.5, terms=terms)
        yield (
            "job_assigned",
            facts_pb2.JobAssigned(job_id=job_id, token=token, round=number, assignments=[record], method="cvxpy/HIGHS"),
        )
        yield (
            "task_finished",
            facts_pb2.TaskFinished(
                job_id=job_id, plan_sha256=job_id, task_index=number, task_key=job_id, agent=agent, result=blob,
                usage=common_pb2.Usage(prompt_tokens=900, completion_tokens=90, decode_seconds=2.0), token=token,
            ),
        )  # fmt: skip
    record_of_job = facts_pb2.JobRecord(request=request, accepted_by="a" * 32, tasks=TASKS)
    yield (
        "job_completed",
        facts_pb2.JobCompleted(
            job_id=job_id, plan_sha256=job_id, result_sha256=[job_id] * TASKS, result=blob, record=record_of_job
        ),
    )


def _fatal(text: str) -> None:
    raise AssertionError(text)
