"""What a set of facts and proofs of forks says, computed afresh: what every node that holds them must read."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from mesh.facts import Fact, StreamId
from mesh.knowledge import Knowledge
from mesh.ledger import Job, Ledger
from mesh.library import is_read
from mesh.profiles import Profiles

if TYPE_CHECKING:
    from mesh.replica import Replica


def folded(facts: Iterable[Fact], forks: Container[StreamId]) -> tuple[object, ...]:
    ledger, knowledge, profiles = Ledger(), Knowledge(), Profiles()
    for fact in facts:
        if not is_read(fact, forks):
            continue
        assert ledger.apply(fact) + knowledge.apply(fact) + profiles.apply(fact) <= 1
    return _read(ledger, knowledge, profiles)


def read_of(replica: Replica) -> tuple[object, ...]:
    """What this node reads now; to compare with `folded`."""
    return _read(replica.ledger, replica.knowledge, replica.profiles)


def _read(ledger: Ledger, knowledge: Knowledge, profiles: Profiles) -> tuple[object, ...]:
    items = [item.item_id for item in knowledge.current()]
    jobs = [_read_job(job) for _, job in sorted(ledger.jobs.items())]
    return ledger.fingerprint(), jobs, items, sorted((node, entry[:2]) for node, entry in profiles.latest.items())


def _read_job(job: Job) -> tuple[object, ...]:
    """What people and leaders read of it; of a closed job, what its end says."""
    if job.closed:
        completion = job.completion
        others = sorted(said.hash for said, _ in job.completed.values())
        return job.state, completion.result.sha256 if completion else b"", others
    plan = job.plan
    results = [(ref, finished.result.sha256) for ref, finished in job.results().items()]
    return job.state, plan.plan.sha256 if plan else b"", results
