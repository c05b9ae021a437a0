"""Nodes are revoked: the trouble that never heals.

Idea: any node may hold the CA key, so any one is asked to deny another. The victim says something at that moment, so
that some hear of it before the denial and some after. Sometimes two issuers do it, and the denial that was made first,
of less that was accepted, comes last. Half of the victims are thieves: they let no denial of themselves in, go on, and
try to come back.

Retention is kept out of it (`fits`): what is dropped because of an end that a denial makes void later is really lost.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mesh import events
from mesh.denials import DenialError
from mesh.identity import NodeId
from mesh.wire import facts_pb2
from tests.sim.authority import AUTHORITY
from tests.sim.checks import LARGE, Checks
from tests.sim.clock import Clock
from tests.sim.faults import TROUBLE_UNTIL_S, Faults
from tests.sim.network import Network

if TYPE_CHECKING:
    from tests.sim.host import Host

#: Of the worlds that it fits in, the share in which it happens.
SHARE = 0.5
#: Draws for one revocation before it is left out.
TRIES = 10


class Revocations:
    def __init__(self, clock: Clock, network: Network, checks: Checks, faults: Faults, rng: random.Random) -> None:
        self.clock = clock
        self.network = network
        self.checks = checks
        self.faults = faults
        self.rng = rng

    def fits(self) -> bool:
        return len(self.network.hosts) < LARGE and not self.faults.lets_forget()

    def start(self) -> None:
        if self.rng.random() < SHARE and self.fits():
            for _ in range(self.rng.choice([1, 1, 2])):
                self.clock.after(self.rng.uniform(6.0, TROUBLE_UNTIL_S - 8.0), self._strike)

    def _strike(self) -> None:
        for _ in range(TRIES):
            issuers = [host for host in self._honest() if host.replica is not None and not host.paused]
            victims = [host for host in self._honest() if host.index != 0]  # n0 is everybody's seed
            others_left = len(self._honest()) - 1
            if not issuers or not victims or others_left < 2:
                return
            issuer, victim = self.rng.choice(issuers), self._victim(victims)
            if issuer is not victim:
                self._revoke(issuer, victim, [host for host in issuers if host not in (issuer, victim)])
                return

    def _honest(self) -> list[Host]:
        gone = self.faults.dead
        return [host for host in self.network.hosts if host.index not in gone and host.id not in self.checks.revoked]

    def _victim(self, victims: Sequence[Host]) -> Host:
        leading = [host for host in victims if host.leader is not None and host.leader.leader_id == host.id]
        return self.rng.choice(leading if leading and self.rng.random() < 0.5 else victims)

    def _revoke(self, issuer: Host, victim: Host, others: Sequence[Host]) -> None:
        victim.is_thief = self.rng.random() < 0.5
        word = "a thief " if victim.is_thief else ""
        early = self._denials(self.rng.choice(others), victim) if others and self.rng.random() < 0.5 else []
        if early:
            self.clock.after(self.rng.uniform(1.0, 4.0), lambda: self._say(issuer, victim, word))
            late = self.rng.choice(others)
            self.clock.after(self.rng.uniform(1.0, 6.0), lambda: self._deny(late, early))
        else:
            self._say(issuer, victim, word)

    def _say(self, issuer: Host, victim: Host, word: str) -> None:
        if victim.replica is not None and not victim.paused:
            for number in range(self.rng.randint(0, 3)):
                last = facts_pb2.KnowledgeAdded(title=f"last words {number}")
                victim.handle(events.FactAuthored("knowledge_added", last, victim.wall_clock_ms()))
        self.checks.fault(issuer, f"is asked to revoke {word}{victim.name}")
        self.revoke(issuer, victim)

    def revoke(self, issuer: Host, victim: Host) -> None:
        """The issuer cuts the victim off, by what it accepted of it until now; nothing where it can not."""
        self._deny(issuer, self._denials(issuer, victim))

    def _denials(self, issuer: Host, victim: Host) -> list[facts_pb2.Deny]:
        if issuer.replica is None or issuer.paused or issuer.id in self.checks.revoked:
            return []
        try:
            drafted = issuer.replica.library.denial_of(victim.id, "it was stolen")
        except DenialError:
            return []  # it was told of the other denial
        return [AUTHORITY.sign_denial(one) for one in drafted]

    def _deny(self, issuer: Host, denials: Iterable[facts_pb2.Deny]) -> None:
        for deny in denials:
            if issuer.replica is not None and not issuer.paused and not issuer.replica.denied:
                self.checks.revoked.add(NodeId(deny.node_id))
                self.checks.denials.append(deny)
                self._lost_with(NodeId(deny.node_id))
                issuer.handle(events.FactAuthored("deny", deny, issuer.wall_clock_ms()))

    def _lost_with(self, denied: NodeId) -> None:
        """Nobody asks it any more for what it made while it was alone (seed 603)."""
        for host in self.network.hosts:
            if host.id == denied:
                self.checks.jobs.lost(host, self.faults.dead)
