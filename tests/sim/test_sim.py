"""The mesh through its troubles: many seeds hold, a seed repeats, and planted bugs are seen.

A bigger range by hand: `python -m tests.sim.run --seeds 1-1000`.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
from tests.sim.run import main, run_seed

SEEDS = range(1, 61)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("first", [SEEDS[0], *(pytest.param(first, marks=pytest.mark.slow) for first in SEEDS[10::10])])
def test_the_mesh_holds(first: int) -> None:
    for seed in range(first, first + 10):
        result = run_seed(seed)
        assert result.ok, result.describe()
        assert result.live >= 2
        assert result.leader_changes >= result.live
        assert result.events > 100 * result.nodes


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    stories = {
        subprocess.run(
            [sys.executable, "-m", "tests.sim.run", "--seed", "7", "--story", "--no-rate"],
            cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }  # fmt: skip
    assert len(stories) == 1
    assert len(stories.pop().splitlines()) > 20


def test_a_failure_is_told_with_its_story_and_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Gossip, "vector_received", lambda *_: [])
    monkeypatch.setattr("mesh.replica.PUSH_PEERS", 0)
    assert main(["--seed", "3"]) == 1
    told = capsys.readouterr().out
    assert "PROBLEM: facts differ" in told
    assert "leader:" in told
    assert "replay: python -m tests.sim.run --seed 3 --story" in told


# Planted bugs: each must be seen within a few seeds, or the checks above prove nothing.


def _vote_told_before_its_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Host._perform_one

    def perform(self: Host, effect: Effect) -> None:
        if isinstance(effect, SaveVote):
            self._perform(effect.then)
            effect = SaveVote(effect.term, effect.voted_for, ())
        inner(self, effect)

    monkeypatch.setattr(Host, "_perform_one", perform)


def _vote_forgotten_at_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Disk.crash

    def crash(self: Disk) -> None:
        inner(self)
        self.voted_for, self.term = "", max(0, self.term - 1)

    monkeypatch.setattr(Disk, "crash", crash)


def _two_votes_in_a_term(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Election.vote_requested

    def requested(self: Election, *arguments: object) -> list[Effect]:
        self.voted_for = ""
        return inner(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Election, "vote_requested", requested)


def _folded_before_the_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Host._perform_one

    def perform(self: Host, effect: Effect) -> None:
        if isinstance(effect, Persist):
            life = self.life
            self.disk.write(Write(effect.facts, None, lambda: None))
            self.clock.after(0.0, lambda: self.deliver(events.Persisted(effect.facts, effect.source), life))
        else:
            inner(self, effect)

    monkeypatch.setattr(Host, "_perform_one", perform)


def _staged_facts_told(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Journal.vector

    def vector(self: Journal) -> object:
        durable, self.durable = self.durable, self.staged
        try:
            return inner(self)
        finally:
            self.durable = durable

    monkeypatch.setattr(Journal, "vector", vector)


def _no_anti_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gossip, "vector_received", lambda *_: [])


def _fold_depends_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Knowledge.apply

    def apply(self: Knowledge, fact: Fact) -> bool:
        if fact.kind == "knowledge_retracted" and fact.body.knowledge_retracted.item_id not in self.added:
            return True
        return inner(self, fact)

    monkeypatch.setattr(Knowledge, "apply", apply)


def _a_minority_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Election._count

    def count(self: Election, now: float, view: frozenset[NodeId]) -> list[Effect]:
        whole = self.electorate
        self.electorate = frozenset(self.votes)
        effects = inner(self, now, view)
        self.electorate = whole
        return effects

    monkeypatch.setattr(Election, "_count", count)


def _the_dead_stay_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Membership._heard

    def heard(self: Membership, member: object, now: float, why: str) -> list[Effect]:
        return inner(self, member, now, why) if why == "linked" else []  # type: ignore[arg-type]

    monkeypatch.setattr(Membership, "_heard", heard)


@pytest.mark.parametrize(
    ("plant", "seen_as"),
    [
        (_vote_told_before_its_sync, "before it was synced"),
        (_vote_forgotten_at_restart, "forgot its vote"),
        (_two_votes_in_a_term, "voted twice"),
        (_folded_before_the_sync, "IndexError|KeyError|durable|synced"),
        (_staged_facts_told, "not synced"),
        (_no_anti_entropy, "facts differ"),
        (_fold_depends_on_the_order, "reads another thing|fingerprint"),
        (_a_minority_leads, "len\\(election.votes\\)"),
        (_the_dead_stay_dead, "sees"),
    ],
)
def test_a_planted_bug_is_seen(
    plant: Callable[[pytest.MonkeyPatch], None], seen_as: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in range(1, 16):
        problems = "\n".join(run_seed(seed).problems)
        if re.search(seen_as, problems):
            return
    pytest.fail("nothing was seen in 15 seeds")
