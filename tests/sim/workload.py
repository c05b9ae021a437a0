"""What the nodes say meanwhile beside their work: knowledge, profiles and odd job facts, about a few things only.

Several nodes speak of the same jobs, so folds meet everything: two plans, two completions, results before their job.
Those jobs are never submitted, so no leader works on them (work is what jobs.py is about).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from mesh import events
from mesh.wire import common_pb2, facts_pb2
from tests.sim.clock import Clock
from tests.sim.network import Network

if TYPE_CHECKING:
    from tests.sim.host import Host


class Workload:
    def __init__(self, clock: Clock, network: Network, rng: random.Random, until_s: float) -> None:
        self.clock = clock
        self.network = network
        self.rng = rng
        self.until_s = until_s
        self.mean_gap_s = rng.choice([0.3, 1.0, 3.0])

    def start(self) -> None:
        if self.clock.now < self.until_s:
            self._author(self.rng.choice(self.network.hosts))
            self.clock.after(self.rng.expovariate(1.0 / self.mean_gap_s), self.start)

    def _author(self, host: Host) -> None:
        if host.replica is None or host.paused or host.replica.stopping:
            return
        kind, content = self._content(host)
        host.handle(events.FactAuthored(kind, content, host.wall_clock_ms()))

    def _content(self, host: Host) -> tuple[str, Message]:
        rng = self.rng
        job_id = bytes([rng.randrange(6)]) * 32
        plan = bytes([rng.randrange(3)]) * 32
        blob = common_pb2.BlobRef(sha256=rng.randbytes(32), size_bytes=rng.randrange(5000))
        assert host.replica is not None
        known = sorted(host.replica.knowledge.added)
        item = rng.choice(known) if known else b"?" * 32
        contents: list[tuple[str, Message]] = [
            ("job_planned", facts_pb2.JobPlanned(
                job_id=job_id, plan=common_pb2.BlobRef(sha256=plan), revision=rng.randrange(2), task_count=3)),
            ("job_assigned", facts_pb2.JobAssigned(job_id=job_id, round=rng.randrange(4), token=host.leader)),
            ("task_finished", facts_pb2.TaskFinished(
                job_id=job_id, plan_sha256=plan, task_index=rng.randrange(3), result=blob)),
            ("task_finished", facts_pb2.TaskFinished(
                job_id=job_id, plan_sha256=plan, task_index=rng.randrange(3), failure=common_pb2.Problem(code="x"))),
            ("knowledge_added", facts_pb2.KnowledgeAdded(title=f"note {rng.randrange(99)}", text="words " * 20)),
            ("knowledge_superseded", facts_pb2.KnowledgeSuperseded(item_id=item)),
            ("knowledge_retracted", facts_pb2.KnowledgeRetracted(item_id=item)),
        ]  # fmt: skip
        if rng.random() < 0.05:
            contents = [
                ("job_completed", facts_pb2.JobCompleted(job_id=job_id, plan_sha256=plan, result=blob)),
                ("job_cancelled", facts_pb2.JobCancelled(job_id=job_id)),
                ("job_failed", facts_pb2.JobFailed(job_id=job_id)),
            ]
        return rng.choice(contents)
