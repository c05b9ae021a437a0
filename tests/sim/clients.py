"""Who hands in jobs: orders of several shapes, asked again elsewhere where a node died with the answer, now and then
cancelled.

An order is one job whatever node it is handed to: its id is the hash of its key and its request.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mesh import effects, events
from mesh.identity import NodeId
from mesh.wire import facts_pb2, work_pb2
from tests.sim.clock import Clock
from tests.sim.labour import ref_of
from tests.sim.network import Network

if TYPE_CHECKING:
    from tests.sim.checks import Checks
    from tests.sim.host import Host

DEADLINE_S = 5.0
#: A client that heard nothing for so long beyond the deadline asks another node.
PATIENCE_S = 3.0
SHAPES = ("1", "3,1", "2,2,1", "6,1", "4", "1,1,1")
#: What happens to the tasks of an order; most are plain.
WORDS = ("",) * 12 + ("flaky",) * 4 + ("bad", "poison", "nonsense")


@dataclass
class Order:
    number: int
    words: str
    submitted: facts_pb2.JobSubmitted
    documents: list[bytes]
    answers: list[effects.AnswerSubmit] = field(default_factory=list)
    cancelled: bool = False
    accepted_by: set[NodeId] = field(default_factory=set)

    @property
    def job_id(self) -> bytes:
        return self.submitted.job_id

    def accepted(self, by: Host, answer: effects.AnswerSubmit) -> None:
        """No copy at all is a refusal: the node was cut off meanwhile."""
        if answer.copies:
            self.answers.append(answer)
            self.accepted_by.add(by.id)


class Clients:
    def __init__(self, clock: Clock, network: Network, checks: Checks, rng: random.Random, until_s: float) -> None:
        self.clock = clock
        self.network = network
        self.checks = checks
        self.rng = rng
        self.until_s = until_s
        self.orders: list[Order] = []
        self._count = rng.choice([2, 4, 8, 14])

    def start(self) -> None:
        for number in range(self._count):
            self.clock.after(self.rng.uniform(2.0, self.until_s), lambda number=number: self._order(number))  # type: ignore[misc]

    def open_doors(self) -> list[Host]:
        """Nodes that take jobs."""
        return [
            host
            for host in self.network.hosts
            if host.replica is not None
            and not host.paused
            and not host.replica.stopping
            and not host.draining
            and host.id not in self.checks.revoked
        ]

    def _order(self, number: int) -> None:
        rng = self.rng
        words = rng.choice(WORDS)
        order = self.draw(rng, number, rng.choice(SHAPES), words, rng.choice([1, 1, 1, 3]))
        self.hand_in(order)
        if rng.random() < 0.1:
            self.clock.after(rng.uniform(0.0, 10.0), lambda: self._cancel(order))

    def draw(self, rng: random.Random, number: int, shape: str, words: str, panel: int) -> Order:
        """Make an order, with a document or without, and expect it to end well."""
        request = work_pb2.JobRequest(seed=number + 1)
        request.ask.question = f"{shape} {words}"
        request.ask.panel = panel
        documents = [rng.randbytes(200)] if rng.random() < 0.6 else []
        client_key = rng.randbytes(16)
        name = hashlib.sha256(client_key + request.SerializeToString(deterministic=True)).digest()
        submitted = facts_pb2.JobSubmitted(
            job_id=name, request=request, blobs=[ref_of(one) for one in documents], client_key=client_key
        )
        order = Order(number, words, submitted, documents)
        self.orders.append(order)
        return order

    def hand_in(self, order: Order, tries: int = 6) -> None:
        """To any node that runs; where no answer comes, to another one."""
        if order.answers or not tries:
            return
        if open_doors := self.open_doors():
            self.ask(self.rng.choice(open_doors), order)
        self.clock.after(DEADLINE_S + PATIENCE_S, lambda: self.hand_in(order, tries - 1))

    def ask(self, host: Host, order: Order) -> None:
        self.checks.say(host, f"is asked for job {order.job_id.hex()[:12]}: {order.submitted.request.ask.question}")
        host.submit(order.submitted, order.documents, DEADLINE_S, lambda said: order.accepted(host, said))

    def _cancel(self, order: Order) -> None:
        knowing = [
            host
            for host in self.network.hosts
            if host.replica is not None and not host.paused and not host.replica.stopping
            and order.job_id in host.replica.ledger.jobs
        ]  # fmt: skip
        if not knowing:
            return
        host = self.rng.choice(knowing)
        assert host.replica is not None
        job = host.replica.ledger.jobs[order.job_id]
        order.cancelled = True
        self.checks.say(host, f"is asked to cancel job {order.job_id.hex()[:12]}")
        cancelled = facts_pb2.JobCancelled(
            job_id=order.job_id, reason="asked to", record=host.replica.ledger.record_of(job)
        )
        host.handle(events.FactAuthored("job_cancelled", cancelled, host.wall_clock_ms()))
