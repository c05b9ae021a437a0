"""Bugs to plant: each takes away one thing that the mesh relies on, and must then be seen by the simulator's checks.

Some are bugs that the simulator found in this code first; they are marked so. What a bug is: planting.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mesh import coordinator, events, standing, takeover
from mesh.acceptance import Acceptance
from mesh.coordinator import Coordinator
from mesh.dispatch import Dispatch, InFlight
from mesh.effects import Effect, Persist, SaveVote, Send
from mesh.election import Election
from mesh.facts import Fact
from mesh.gossip import Gossip
from mesh.identity import NodeId
from mesh.intake import Intake, Running
from mesh.journal import Journal, Position
from mesh.knowledge import Knowledge
from mesh.ledger import CANCELLED, Job, Ledger
from mesh.library import Library
from mesh.member import Member
from mesh.placement import Placement, Ready
from mesh.profiles import Profiles
from mesh.quarantine import Quarantine
from mesh.retention import Retention
from mesh.roster import Roster
from mesh.surroundings import is_lost
from mesh.takeover import Takeover
from mesh.wire import common_pb2, facts_pb2, membership_pb2, mesh_pb2, work_pb2
from tests.sim.disk import Disk, Write
from tests.sim.host import Host
from tests.sim.planting import Patch, bug

# Durable before seen


@bug("before it was synced")
def vote_told_before_its_sync(patch: Patch) -> None:
    inner = Host.perform_one

    def perform(self: Host, effect: Effect) -> None:
        if isinstance(effect, SaveVote):
            self.perform(effect.then)
            effect = SaveVote(effect.term, effect.voted_for, ())
        inner(self, effect)

    patch(Host, "perform_one", perform)


@bug("forgot its vote")
def vote_forgotten_at_restart(patch: Patch) -> None:
    inner = Disk.crash

    def crash(self: Disk) -> None:
        inner(self)
        self.content.voted_for, self.content.term = "", max(0, self.content.term - 1)

    patch(Disk, "crash", crash)


@bug("before it was synced|durable what is not synced")
def folded_before_the_sync(patch: Patch) -> None:
    inner = Host.perform_one

    def perform(self: Host, effect: Effect) -> None:
        if isinstance(effect, Persist):
            life, persisted = self.life, events.Persisted(effect.facts, effect.source, effect.retired)
            self.disk.write(Write(effect.facts, effect.retired))
            self.clock.after(0.0, lambda: self.deliver(persisted, life))
        else:
            inner(self, effect)

    patch(Host, "perform_one", perform)


@bug("not synced")
def staged_facts_told(patch: Patch) -> None:
    inner = Library.receipt

    def receipt(self: Library, peer: NodeId, streams: Any) -> Send:
        durable, self.journal.durable = self.journal.durable, self.journal.staged
        try:
            return inner(self, peer, streams)
        finally:
            self.journal.durable = durable

    patch(Library, "receipt", receipt)


@bug("a fact left before its sync")
def pushed_before_the_sync(patch: Patch) -> None:
    inner = Library.author

    def author(self: Library, *arguments: Any) -> tuple[Fact, list[Effect]]:
        fact, effects = inner(self, *arguments)
        push = mesh_pb2.LinkMessage(fact_push=facts_pb2.FactPush(facts=[fact.signed]))
        return fact, [*effects, *[Send(peer, push) for peer in list(self.gossip.equal_at)[:1]]]

    patch(Library, "author", author)


# Elections


@bug("voted twice", 20)
def two_votes_in_a_term(patch: Patch) -> None:
    inner = Election.vote_requested

    def requested(self: Election, *arguments: Any) -> list[Effect]:
        self.voted_for = ""
        return inner(self, *arguments)

    patch(Election, "vote_requested", requested)


@bug("len\\(election.votes\\)")
def a_minority_leads(patch: Patch) -> None:
    inner = Election._count

    def count(self: Election, now: float, view: frozenset[NodeId]) -> list[Effect]:
        whole = self.electorate
        self.electorate = frozenset(self.votes)
        effects = inner(self, now, view)
        self.electorate = whole
        return effects

    patch(Election, "_count", count)


@bug("leader|leads", 20)
def leaders_that_meet_both_stay(patch: Patch) -> None:
    """Neither the other's beat, nor what followers say, nor that they are gone makes one of them give way."""
    inner = Election.beat_reply_received

    def replied(self: Election, peer: NodeId, reply: membership_pb2.LeaderBeatReply, now: float) -> list[Effect]:
        return inner(self, peer, reply, now) if reply.token == self.leader else []

    patch(Election, "_leader_met", lambda *_: [])
    patch(Election, "beat_reply_received", replied)
    lead = Election._lead

    def lead_on(self: Election, now: float, view: frozenset[NodeId]) -> list[Effect]:
        self.followers = dict.fromkeys(view - {self.me}, now)
        return lead(self, now, view)

    patch(Election, "_lead", lead_on)


@bug("refuses its work", 20)
def a_seen_token_is_not_told(patch: Patch) -> None:
    """Found by the simulator: of two leaders of one term the lower one stayed, and workers refused it for ever."""
    inner = Election._beat_reply

    def reply(self: Election, peer: NodeId) -> Send:
        sent = inner(self, peer)
        sent.message.leader_beat_reply.ClearField("highest")
        return sent

    patch(Election, "_beat_reply", reply)


@bug("sees")
def nobody_denies_its_death(patch: Patch) -> None:
    patch(Roster, "_merge_own", lambda *_: [])


@bug("believes in|sees", 20)
def ghosts_rise(patch: Patch) -> None:
    """Others deny a node's death for it, which only the node itself may."""
    inner = Member.record

    def record(self: Member, said_by: str = "") -> membership_pb2.MemberRecord:
        told = membership_pb2.MemberRecord()
        told.CopyFrom(inner(self, said_by))  # it is shared
        if told.state == membership_pb2.MEMBER_STATE_DEAD:
            told.state = membership_pb2.MEMBER_STATE_ALIVE
            told.life += 1
        return told

    patch(Member, "record", record)


@bug("believes in", 40)
def suspects_never_die(patch: Patch) -> None:
    patch(Roster, "suspicions_due", lambda *_: [])


# Facts


@bug("facts differ")
def no_anti_entropy(patch: Patch) -> None:
    patch(Gossip, "digest_received", lambda *_: [])


@bug("told of a fact that is not synced")
def version_vector_off_by_one(patch: Patch) -> None:
    inner = Journal.vector

    def vector(self: Journal, *arguments: Any) -> list[facts_pb2.StreamPosition]:
        positions = inner(self, *arguments)
        for position in positions:
            position.sequence += 1
        return positions

    patch(Journal, "vector", vector)


@bug("facts differ|hole|IndexError|fork", 20)
def pushed_range_off_by_one(patch: Patch) -> None:
    """The first fact that a peer lacks is left out."""
    inner = Host._push_stored

    def push(self: Host, effect: Any) -> None:
        effect = type(effect)(
            effect.peer,
            tuple(type(one)(one.stream_id, min(one.first + 1, one.last), one.last) for one in effect.ranges),
        )
        inner(self, effect)

    patch(Host, "_push_stored", push)


@bug("hole|durable in stream order")
def a_gap_is_taken(patch: Patch) -> None:
    inner = Journal.offer

    def offer(self: Journal, fact: Fact) -> Any:
        verdict = inner(self, fact)
        if verdict.name == "GAP":
            self.staged[fact.stream_id] = Position(fact.sequence, fact.hash)
            return type(verdict).STAGED
        return verdict

    patch(Journal, "offer", offer)


@bug("reads another thing|otherwise than it was written")
def fold_depends_on_the_order(patch: Patch) -> None:
    inner = Knowledge.apply

    def apply(self: Knowledge, fact: Fact) -> Any:
        if fact.kind == "knowledge_retracted" and fact.body.knowledge_retracted.item_id not in self.added:
            return True
        return inner(self, fact)

    patch(Knowledge, "apply", apply)


@bug("reads another thing|otherwise than it was written")
def fold_reads_the_clock(patch: Patch) -> None:
    """What is dated ahead of this node's own clock does not count."""
    inner = Library.fold

    def fold(self: Library, fact: Fact) -> None:
        if fact.author == self.me or (fact.hybrid_clock >> 16) <= (self.own_hybrid_clock >> 16) + 2000:
            inner(self, fact)

    patch(Library, "fold", fold)


@bug("reads another thing|another end", 20)
def first_come_completion_counts(patch: Patch) -> None:
    """Wrong merge order: of several completions the one that arrived first."""
    patch(Job, "completion", property(lambda self: next(iter(self.completed.values()))[1] if self.completed else None))


@bug("reads another end", 20)
def a_cancellation_outranks_a_completion(patch: Patch) -> None:
    inner = Job.state.fget  # type: ignore[attr-defined]
    patch(Job, "state", property(lambda self: CANCELLED if self.cancelled else inner(self)))


@bug("reads another thing|otherwise than it was written", 20)
def latest_profile_by_arrival(patch: Patch) -> None:
    inner = Profiles.apply

    def apply(self: Profiles, fact: Fact) -> Any:
        applied = inner(self, fact)
        if applied:
            self.latest[fact.author] = (fact.hybrid_clock, fact.hash, fact.body.node_profile)
        return applied

    patch(Profiles, "apply", apply)


@bug("found|facts differ|reads another thing|wrote two histories|hole|fork", 30)
def a_fork_is_not_proven(patch: Patch) -> None:
    """Each node keeps the history that it saw first."""
    patch(Library, "fork_proven", lambda *_: [])


# Retention


@bug("reads another thing|otherwise than|last fact of a stream", 40)
def retention_drops_the_ends_too(patch: Patch) -> None:
    """A closed job changes: its terminal fact goes with the details."""
    inner = Ledger.closed_with_details

    def closed(self: Ledger) -> list[Job]:
        jobs = inner(self)
        for job in jobs:
            job.details_at |= job.ends_at
        return jobs

    patch(Ledger, "closed_with_details", closed)


@bug("last fact of a stream", 40)
def retention_drops_the_last_fact(patch: Patch) -> None:
    patch(Retention, "_is_last", lambda *_: False)


@bug("still open|is on \\[", 40)
def blobs_dropped_while_they_are_named(patch: Patch) -> None:
    """A closed job's answer goes with its details."""
    inner = Ledger.forget_details

    def forget(self: Ledger, job_id: bytes, *arguments: Any, **named: Any) -> set[bytes]:
        names = {ref.sha256 for ref in self.blobs_named(self.jobs[job_id])}
        return inner(self, job_id, *arguments, **named) | names

    patch(Ledger, "forget_details", forget)
    patch(Ledger, "names", lambda *_: False)


# Accepting


@bug("before there are enough copies")
def submit_answered_at_once(patch: Patch) -> None:
    patch(Acceptance, "_settled", lambda *_: True)


@bug("nodes, it is on", 20)
def blob_not_counted(patch: Patch) -> None:
    """A node counts that holds the job, but not what it reads."""
    inner = Acceptance.holders
    patch(Acceptance, "holders", lambda self, job_id, _: inner(self, job_id, ()))


@bug("after its deadline|never answered", 20)
def submit_waits_for_everybody(patch: Patch) -> None:
    def look(self: Acceptance, now: float) -> list[Effect]:
        everybody = len(self.around.membership.view())
        holders = {one.ticket: self.holders(one.job_id, one.blobs) for one in self.pending.values()}
        return [self._answer(ticket) for ticket, held in holders.items() if len(held) >= everybody]

    patch(Acceptance, "look", look)


# Work


@bug("works for|after one for|more tasks", 20)
def fencing_ignored(patch: Patch) -> None:
    """A worker obeys whoever commands."""
    inner = Intake.offered

    def offered(self: Intake, sender: NodeId, assign: work_pb2.Assign) -> common_pb2.Problem | None:
        problem = inner(self, sender, assign)
        free = sum(one.uses_engine for one in self.running.values()) < self.slots and self.engine_ready
        refused = problem is not None and problem.code in ("stale-leader", "not-leader")
        return None if refused and free and not self.draining else problem

    patch(Intake, "offered", offered)


@bug("more tasks were started|uses_engine")
def slots_ignored(patch: Patch) -> None:
    inner = Intake.offered

    def offered(self: Intake, sender: NodeId, assign: work_pb2.Assign) -> common_pb2.Problem | None:
        problem = inner(self, sender, assign)
        return None if problem is not None and problem.code == "busy" else problem

    patch(Intake, "offered", offered)
    patch(Dispatch, "on_node", lambda *_: [])


@bug("twice")
def an_outcome_said_twice(patch: Patch) -> None:
    inner = Intake._announce

    def announce(self: Intake, key: Any, running: Running, *rest: Any) -> list[Effect]:
        effects = inner(self, key, running, *rest)
        return effects + effects[:1]

    patch(Intake, "_announce", announce)


@bug("twice in one term")
def duplicate_acceptance(patch: Patch) -> None:
    """A leader ends a job again while its first word is on the way to the disk."""
    inner = Coordinator._say

    def say(self: Coordinator, job_id: bytes, kind: str, *rest: Any) -> list[Effect]:
        effects = inner(self, job_id, kind, *rest)
        return effects + effects[:1] if kind == "job_completed" else effects

    patch(Coordinator, "_say", say)


@bug("still open", 20)
def a_lease_never_expires(patch: Patch) -> None:
    """Both copies of a task stand still, and nobody takes it from them (stuck.py)."""
    patch(Dispatch, "tick", lambda *_: [])


@bug("still open", 6, first=90)
def the_lost_are_waited_for(patch: Patch) -> None:
    """What ran on a dead node is never given to another; all else that is late is (losses.py).

    Rare: of the seeds 1 to 38 and 81 to 95 only the last shows it, since work is given out sooner and done by then.
    """
    expire, why_late = Coordinator._expire, Placement._why_late

    def wait(self: Coordinator, now: float) -> list[Effect]:
        for flight in (one for flights in self.dispatch.in_flight.values() for one in flights):
            if is_lost(self.around, flight.node_id):
                flight.progressed_at = now
        return expire(self, now)

    def late(self: Placement, flights: Sequence[InFlight], now: float) -> tuple[str, bool]:
        return why_late(self, [] if any(is_lost(self.around, one.node_id) for one in flights) else flights, now)

    patch(Dispatch, "member_lost", lambda *_: [])
    patch(Coordinator, "_expire", wait)
    patch(Placement, "_why_late", late)


@bug("times, and goes on", 20)
def a_task_may_fail_for_ever(patch: Patch) -> None:
    patch(coordinator, "failed_for_good", lambda *_: False)


@bug("failures of a task that were its own", 10, first=80)
def who_shares_an_engine_with_poison_fails_with_it(patch: Patch) -> None:
    """Each engine that dies counts against all that was in it, and all of it goes into the next one together.

    Rare: three engines must die under the same two jobs. Of the seeds 1 to 88 of up to 30 nodes only the last shows it.
    """
    patch(standing, "_is_shared", lambda *_: False)
    patch(Quarantine, "begin", lambda *_: None)


@bug("from a task that is another", 40)
def results_taken_over_by_number(patch: Patch) -> None:
    """Another plan's result counts where it has the task's number, whatever that task was."""

    def take(self: Takeover, job: Job, ready: Sequence[Ready], token: common_pb2.FencingToken, now: float) -> Any:
        effects: list[Effect] = []
        for one in ready:
            for said, finished in sorted(job.finished.values(), key=lambda each: each[0].hash):
                place = (finished.task_index, finished.replica) == (one.task.index, one.task.replica)
                if place and finished.plan_sha256 != one.plan_sha256 and finished.WhichOneof("outcome") == "result":
                    effects += takeover._say(one, said, finished, token)
                    break
        return effects, ready

    patch(Takeover, "take", take)


@bug("still open", 40)
def a_failed_panel_member_finds_no_seat(patch: Patch) -> None:
    """Found by the simulator: forbidden where it failed, and where the others of its panel sit."""
    inner = Placement._forbidden

    def forbidden(self: Placement, one: Ready, flights: Any, everybody: set[tuple[str, str]]) -> Any:
        return inner(self, one, flights, everybody) | one.failed_on

    patch(Placement, "_forbidden", forbidden)
