"""Retention: whatever is forgotten, everything reads as before, also after a restart and for who joins later."""

import gc
from collections.abc import Sequence

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from mesh import events
from mesh.effects import DropBlobs, RetireFacts
from mesh.facts import Fact, FactRange, Place, Retired
from mesh.library import Library
from mesh.retention import DETAILS_KEEP_S, ENDS_KEEP_S, EVERY_S, ORPHANS_AFTER_S, as_ranges
from mesh.wire import common_pb2, facts_pb2, work_pb2
from tests.mesh.building import BY_ID, KEYS, Author, B, rng
from tests.mesh.lone import WALL_MS, Lone, ref
from tests.mesh.test_ledger import BLOBS, JOBS, said
from tests.mesh.test_library import newer_fact

DAY_S = 24 * 3600.0
NOBODY = BY_ID[0]


class Keeper:
    """A library with what it stored; `forget` runs one pass of retention and carries it out."""

    def __init__(self, facts: Sequence[Fact], retired: Sequence[Retired] = ()) -> None:
        self.library = Library(NOBODY, 1, rng())
        self.facts = list(facts)
        self.retired = list(retired)
        self.dropped: set[bytes] = set()
        self.library.restore(facts, retired, ())
        self.library.journal.validate()
        self.now = 0.0
        self.library.retention.tick(0.0, 1, 0)

    def forget(self, wall_clock_s: float, after_s: float = 2 * 3600.0) -> list[FactRange]:
        """One pass, `after_s` on the monotonic clock later. Returns what was retired."""
        self.now += after_s
        retention = self.library.retention
        ranges: list[FactRange] = []
        for effect in retention.tick(self.now, int(wall_clock_s * 1000), self.library.seen_hybrid_clock):
            if isinstance(effect, RetireFacts):
                ranges += effect.ranges
            elif isinstance(effect, DropBlobs):
                self.dropped |= set(effect.sha256)
        at = {Place(fact.stream_id, fact.sequence): fact for fact in self.facts}
        for gone in ranges:
            for sequence in range(gone.first, gone.last + 1):
                self.facts.remove(at[Place(gone.stream_id, sequence)])
            self.retired.append(
                Retired(gone.stream_id, gone.first, gone.last, at[Place(gone.stream_id, gone.last)].hash)
            )
        return ranges

    def reading(self) -> object:
        library = self.library
        return (
            library.ledger.fingerprint(),
            [
                (job.state, job.completion, library.ledger.alternatives(job), library.ledger.blobs_wanted(job))
                for _, job in sorted(library.ledger.jobs.items())
            ],
            [job.job_id for job in library.ledger.open_jobs()],
            [item.item_id for item in library.knowledge.current()],
            library.profiles.latest,
            library.profiles.skills,
            library.journal.durable,
        )


def others(author: Author, what: Sequence[tuple[str, int]]) -> list[Fact]:
    """Profiles, skills and knowledge, at whole hours."""
    notes: list[bytes] = []
    facts: list[Fact] = []
    for hour, (kind, number) in enumerate(what):
        contents: dict[str, Message] = {
            "node_profile": facts_pb2.NodeProfile(cores=number),
            "skill_observation": facts_pb2.SkillObservation(task_kind=str(number % 2), trials=number),
            "knowledge_added": facts_pb2.KnowledgeAdded(title=str(number), blob=BLOBS[number % 3]),
            "knowledge_retracted": facts_pb2.KnowledgeRetracted(item_id=notes[number % len(notes)] if notes else b"?"),
            "knowledge_superseded": facts_pb2.KnowledgeSuperseded(item_id=notes[number % len(notes)] if notes else b""),
        }
        fact = author.say(kind, contents[kind], (hour * 3_600_000) << 16)
        if kind == "knowledge_added":
            notes.append(fact.hash)
        facts.append(fact)
    return facts


other_kinds = st.lists(
    st.tuples(
        st.sampled_from(
            ["node_profile", "skill_observation", "knowledge_added", "knowledge_retracted", "knowledge_superseded"]
        ),
        st.integers(0, 9),
    ),
    max_size=20,
)


@given(said, other_kinds, st.integers(0, 3), st.booleans())
def test_what_is_forgotten_changes_no_reading(
    what: list[tuple[int, tuple[str, Message]]], more: list[tuple[str, int]], days: int, pressed: bool
) -> None:
    authors = [Author(KEYS[number], 1) for number in range(3)]
    record = facts_pb2.JobRecord(request=work_pb2.JobRequest(ask=work_pb2.AskRequest(question="?")))
    facts = others(Author(KEYS[0], 1), more)
    for hour, (author, (kind, content)) in enumerate(what):
        if hasattr(content, "record"):
            content.record.CopyFrom(record)
        facts.append(authors[author].say(kind, content, (hour * 3_600_000) << 16))
    keeper = Keeper(facts)
    whole = keeper.reading()
    if pressed:
        keeper.library.retention.disk_measured(95, 100)
    for _ in range(3):
        keeper.forget(days * DAY_S)
        assert keeper.reading() == whole
        open_jobs = [job for job in keeper.library.ledger.jobs.values() if not job.closed]
        kept = {Place(fact.stream_id, fact.sequence) for fact in keeper.facts}
        assert all(job.details_at <= kept for job in open_jobs)
        # A restart, and a node that gets all of it from here.
        again = Keeper(keeper.facts, keeper.retired)
        assert again.reading() == whole
        joined = Library(NOBODY, 1, rng())
        effects = joined.offered(BY_ID[1].node_id, keeper.facts, keeper.retired)
        assert joined.journal.staged == keeper.library.journal.durable
        assert len(effects) <= 1
        named = {
            ref.sha256 for job in keeper.library.ledger.jobs.values() for ref in again.library.ledger.blobs_wanted(job)
        }
        named |= {item.content.blob.sha256 for item in keeper.library.knowledge.current()}
        assert not named & keeper.dropped


def finished_job(author: Author, job_id: bytes, hour: float) -> list[Fact]:
    """One whole job, all at one time."""
    clock = int(hour * 3_600_000) << 16
    request = work_pb2.JobRequest(summarize=work_pb2.SummarizeRequest(document=BLOBS[2]))
    record = facts_pb2.JobRecord(request=request)
    plan = common_pb2.BlobRef(sha256=job_id[:1] * 31 + b"p", size_bytes=1)
    part = common_pb2.BlobRef(sha256=job_id[:1] * 31 + b"t", size_bytes=1)
    return [
        author.say("job_submitted", facts_pb2.JobSubmitted(job_id=job_id, request=request, blobs=[BLOBS[2]]), clock),
        author.say("job_planned", facts_pb2.JobPlanned(job_id=job_id, plan=plan), clock),
        author.say("job_assigned", facts_pb2.JobAssigned(job_id=job_id), clock),
        author.say("task_finished", facts_pb2.TaskFinished(job_id=job_id, plan_sha256=plan.sha256, result=part), clock),
        author.say("job_completed", facts_pb2.JobCompleted(job_id=job_id, result=BLOBS[1], record=record), clock),
    ]


def test_details_go_after_a_day_with_the_blobs_that_only_they_name() -> None:
    author = Author()
    facts = [*finished_job(author, JOBS[0], 0), *finished_job(author, JOBS[1], 5)]
    keeper = Keeper(facts)
    assert keeper.forget(DETAILS_KEEP_S - 1) == []
    assert keeper.forget(DETAILS_KEEP_S) == [FactRange(facts[0].stream_id, 1, 4)]
    assert keeper.dropped == {b"a" * 31 + b"p", b"a" * 31 + b"t"}
    assert keeper.forget(DETAILS_KEEP_S + 5 * 3600) == [FactRange(facts[0].stream_id, 6, 9)]
    assert BLOBS[1].sha256 not in keeper.dropped
    assert BLOBS[2].sha256 not in keeper.dropped
    assert keeper.library.ledger.jobs[JOBS[0]].request is not None


def test_a_closed_job_is_remembered_by_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node closes jobs for years. What it keeps of each must be little: a protobuf message takes a kilobyte."""
    monkeypatch.setattr("mesh.retention.DETAILS_FACTS_MAX", 0)
    node = Lone(peers=2)
    node.do(events.Ticked(WALL_MS))
    jobs = 40
    before = _messages()
    for number in range(jobs):
        name = f"job {number}"
        document, plan, part, result = (ref(f"{what} of {name}") for what in ("document", "plan", "part", "result"))
        job_id = ref(name).sha256
        request = work_pb2.JobRequest(summarize=work_pb2.SummarizeRequest(document=document))
        record = facts_pb2.JobRecord(request=request)
        for blob in (document, plan, part, result):
            node.receive(B, blob_offer=facts_pb2.BlobOffer(blobs=[blob]))
            node.do(events.BlobStored(blob, B))
        said: list[tuple[str, Message]] = [
            ("job_submitted", facts_pb2.JobSubmitted(job_id=job_id, request=request, blobs=[document])),
            ("job_planned", facts_pb2.JobPlanned(job_id=job_id, plan=plan)),
            ("job_assigned", facts_pb2.JobAssigned(job_id=job_id)),
            ("task_finished", facts_pb2.TaskFinished(job_id=job_id, plan_sha256=plan.sha256, result=part)),
            ("job_completed", facts_pb2.JobCompleted(job_id=job_id, result=result, record=record)),
        ]
        for kind, content in said:
            node.says(B, kind, content)
    node.stored.clear()
    node.now += EVERY_S + 1
    assert any(isinstance(effect, RetireFacts) for effect in node.do(events.Ticked(WALL_MS + 60_000)))
    work = node.replica.work
    assert len(work.copies.held) == 2 * jobs
    del job_id, request, record, document, plan, part, result, blob, said, kind, content
    assert _messages() - before <= jobs + 5


def _messages() -> int:
    gc.collect()
    return sum(isinstance(one, Message) for one in gc.get_objects())


def test_under_pressure_details_go_at_once_oldest_job_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.retention.PLACES_MAX", 4)
    author = Author()
    facts = [*finished_job(author, JOBS[0], 5), *finished_job(author, JOBS[1], 0)]
    keeper = Keeper(facts)
    keeper.library.retention.disk_measured(89, 100)
    assert keeper.forget(5 * 3600.0) == []
    keeper.library.retention.disk_measured(91, 100)
    assert keeper.forget(5 * 3600.0, after_s=0.1) == [FactRange(facts[0].stream_id, 6, 9)]
    assert keeper.forget(5 * 3600.0, after_s=1.0) == []
    assert keeper.forget(5 * 3600.0, after_s=5.0) == [FactRange(facts[0].stream_id, 1, 4)]


def test_details_beyond_their_share_of_memory_go_at_once_oldest_job_first(monkeypatch: pytest.MonkeyPatch) -> None:
    author = Author()
    facts = [*finished_job(author, JOBS[0], 5), *finished_job(author, JOBS[1], 0)]
    monkeypatch.setattr("mesh.retention.DETAILS_FACTS_MAX", 8)
    assert Keeper(facts).forget(5 * 3600.0) == []
    monkeypatch.setattr("mesh.retention.DETAILS_FACTS_MAX", 7)
    assert Keeper(facts).forget(5 * 3600.0) == [FactRange(facts[0].stream_id, 6, 9)]


def test_ends_go_after_a_year_but_never_the_last_fact_of_a_stream() -> None:
    author = Author()
    facts = [*finished_job(author, JOBS[0], 0), *finished_job(author, JOBS[1], 0)]
    keeper = Keeper(facts)
    keeper.forget(DETAILS_KEEP_S)
    assert keeper.forget(ENDS_KEEP_S - 1) == []
    assert keeper.forget(ENDS_KEEP_S) == [FactRange(facts[0].stream_id, 5, 5)]
    assert list(keeper.library.ledger.jobs) == [JOBS[1]]


def test_a_clock_that_is_years_ahead_forgets_nothing_early() -> None:
    facts = finished_job(Author(KEYS[3]), JOBS[0], 0)
    facts.append(Author(KEYS[2]).say("node_profile", facts_pb2.NodeProfile(), (3_600_000) << 16))
    keeper = Keeper(facts)
    assert keeper.forget(900 * DAY_S) == [FactRange(facts[0].stream_id, 1, 4)], "two days on are believed"
    assert keeper.library.ledger.jobs[JOBS[0]].closed
    assert keeper.forget(900 * DAY_S) == []


def test_a_job_that_an_old_release_closed_without_a_record_keeps_its_details() -> None:
    facts = finished_job(Author(), JOBS[0], 0)[:4]
    worker = Author(KEYS[1])
    facts.append(worker.say("job_cancelled", facts_pb2.JobCancelled(job_id=JOBS[0]), 0))
    assert Keeper(facts).forget(9 * DAY_S) == []
    record = facts_pb2.JobRecord(request=work_pb2.JobRequest(seed=1))
    facts[-1] = Author(KEYS[1]).say("job_cancelled", facts_pb2.JobCancelled(job_id=JOBS[0], record=record), 0)
    assert Keeper(facts).forget(9 * DAY_S) != []


def test_unknown_kinds_are_never_touched() -> None:
    author = Author(KEYS[7])
    unknown = newer_fact(author)
    keeper = Keeper([unknown])
    keeper.library.retention.disk_measured(100, 100)
    assert keeper.forget(3 * ENDS_KEEP_S) == []
    assert keeper.facts == [unknown]


def test_blobs_that_nobody_ever_named_go_after_a_day() -> None:
    keeper = Keeper(finished_job(Author(), JOBS[0], 0)[:1])
    keeper.library.retention.blobs_at_start = {b"orphan", BLOBS[2].sha256}
    keeper.forget(1.0, after_s=EVERY_S)
    assert keeper.dropped == set()
    keeper.forget(1.0, after_s=ORPHANS_AFTER_S)
    assert keeper.dropped == {b"orphan"}


@given(st.sets(st.tuples(st.sampled_from([1, 2]), st.integers(1, 12))))
def test_places_become_the_fewest_ranges(which: set[tuple[int, int]]) -> None:
    streams = {number: Author(KEYS[number]).note("x").stream_id for number in (1, 2)}
    places = {Place(streams[number], sequence) for number, sequence in which}
    ranges = as_ranges(places)
    covered = [Place(r.stream_id, sequence) for r in ranges for sequence in range(r.first, r.last + 1)]
    assert sorted(covered) == sorted(places)
    assert all(Place(r.stream_id, r.last + 1) not in places for r in ranges)
