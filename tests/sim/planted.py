"""Bugs to plant: each takes away one thing that the mesh relies on, and must then be seen by the simulator's checks.

A check that no planted bug trips proves nothing. Each bug is a patch of this process only (no switch in the product),
says how its trace looks, and in how many seeds at most it must be seen; the same seeds hold without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mesh import events
from mesh.effects import Effect, Persist, SaveVote
from mesh.election import Election
from mesh.facts import Fact
from mesh.gossip import Gossip
from mesh.identity import NodeId
from mesh.journal import Journal
from mesh.knowledge import Knowledge
from mesh.membership import Membership
from tests.sim.disk import Disk, Write
from tests.sim.host import Host

#: Replaces an attribute of a class or module until the bug is taken out again.
Patch = Callable[[object, str, object], None]


@dataclass(frozen=True)
class Bug:
    name: str
    plant: Callable[[Patch], None]
    seen_as: str  # a pattern in the problems
    seeds: int  # seen within the first so many seeds


BUGS: list[Bug] = []


def _bug(seen_as: str, seeds: int = 10) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def note(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        BUGS.append(Bug(plant.__name__, plant, seen_as, seeds))
        return plant

    return note


@_bug("before it was synced")
def vote_told_before_its_sync(patch: Patch) -> None:
    inner = Host.perform_one

    def perform(self: Host, effect: Effect) -> None:
        if isinstance(effect, SaveVote):
            self.perform(effect.then)
            effect = SaveVote(effect.term, effect.voted_for, ())
        inner(self, effect)

    patch(Host, "perform_one", perform)


@_bug("forgot its vote")
def vote_forgotten_at_restart(patch: Patch) -> None:
    inner = Disk.crash

    def crash(self: Disk) -> None:
        inner(self)
        self.content.voted_for, self.content.term = "", max(0, self.content.term - 1)

    patch(Disk, "crash", crash)


@_bug("voted twice")
def two_votes_in_a_term(patch: Patch) -> None:
    inner = Election.vote_requested

    def requested(self: Election, *arguments: Any) -> list[Effect]:
        self.voted_for = ""
        return inner(self, *arguments)

    patch(Election, "vote_requested", requested)


@_bug("IndexError|KeyError|durable|synced")
def folded_before_the_sync(patch: Patch) -> None:
    inner = Host.perform_one

    def perform(self: Host, effect: Effect) -> None:
        if isinstance(effect, Persist):
            life = self.life
            self.disk.write(Write(effect.facts))
            self.clock.after(0.0, lambda: self.deliver(events.Persisted(effect.facts, effect.source), life))
        else:
            inner(self, effect)

    patch(Host, "perform_one", perform)


@_bug("not synced")
def staged_facts_told(patch: Patch) -> None:
    inner = Journal.vector

    def vector(self: Journal) -> object:
        durable, self.durable = self.durable, self.staged
        try:
            return inner(self)
        finally:
            self.durable = durable

    patch(Journal, "vector", vector)


@_bug("facts differ")
def no_anti_entropy(patch: Patch) -> None:
    patch(Gossip, "vector_received", lambda *_: [])


@_bug("reads another thing|otherwise than it was written")
def fold_depends_on_the_order(patch: Patch) -> None:
    inner = Knowledge.apply

    def apply(self: Knowledge, fact: Fact) -> bool:
        if fact.kind == "knowledge_retracted" and fact.body.knowledge_retracted.item_id not in self.added:
            return True
        return inner(self, fact)

    patch(Knowledge, "apply", apply)


@_bug("len\\(election.votes\\)")
def a_minority_leads(patch: Patch) -> None:
    inner = Election._count

    def count(self: Election, now: float, view: frozenset[NodeId]) -> list[Effect]:
        whole = self.electorate
        self.electorate = frozenset(self.votes)
        effects = inner(self, now, view)
        self.electorate = whole
        return effects

    patch(Election, "_count", count)


@_bug("sees")
def the_dead_stay_dead(patch: Patch) -> None:
    inner = Membership._heard

    def heard(self: Membership, member: object, now: float, why: str) -> list[Effect]:
        return inner(self, member, now, why) if why == "linked" else []  # type: ignore[arg-type]

    patch(Membership, "_heard", heard)
