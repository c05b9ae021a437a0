"""The ledger: the same facts read the same, whatever the order, however often; and what it reads is right."""

import random

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from mesh.facts import Fact, Place
from mesh.ledger import CANCELLED, COMPLETED, FAILED, OPEN, TERMINAL_KINDS, Job, Ledger, TaskRef
from mesh.wire import common_pb2, facts_pb2, work_pb2
from tests.mesh.building import KEYS, Author

JOBS = [b"a" * 32, b"b" * 32]
PLANS = [b"p" * 32, b"q" * 32, b"r" * 32]
BLOBS = [common_pb2.BlobRef(sha256=bytes([number]) * 32, size_bytes=number) for number in range(3)]

_jobs = st.sampled_from(JOBS)
_plans = st.sampled_from(PLANS)
_blobs = st.sampled_from(BLOBS)
_small = st.integers(0, 2)


def _kind(name: str, message: st.SearchStrategy[Message]) -> st.SearchStrategy[tuple[str, Message]]:
    return message.map(lambda content: (name, content))


def _finished(job: bytes, plan: bytes, index: int, replica: int, blob: common_pb2.BlobRef | None) -> Message:
    finished = facts_pb2.TaskFinished(job_id=job, plan_sha256=plan, task_index=index, replica=replica)
    if blob is None:
        finished.failure.code = "x"
    else:
        finished.result.CopyFrom(blob)
    return finished


contents = st.one_of(
    _kind("job_submitted", st.builds(facts_pb2.JobSubmitted, job_id=_jobs, client_key=_plans)),
    _kind(
        "job_planned",
        st.builds(
            lambda job, plan, revision, count: facts_pb2.JobPlanned(
                job_id=job, plan=common_pb2.BlobRef(sha256=plan), revision=revision, task_count=count
            ),
            _jobs, _plans, _small, _small,
        ),
    ),
    _kind(
        "job_assigned",
        st.builds(
            lambda job, term, number: facts_pb2.JobAssigned(
                job_id=job, token=common_pb2.FencingToken(term=term, leader_id="x"), round=number
            ),
            _jobs, _small, _small,
        ),
    ),
    _kind("task_finished", st.builds(_finished, _jobs, _plans, _small, _small, st.none() | _blobs)),
    _kind("task_finished", st.builds(_finished, _jobs, _plans, _small, _small, _blobs)),
    _kind("job_completed", st.builds(facts_pb2.JobCompleted, job_id=_jobs, plan_sha256=_plans, result=_blobs)),
    _kind("job_cancelled", st.builds(facts_pb2.JobCancelled, job_id=_jobs)),
    _kind("job_failed", st.builds(facts_pb2.JobFailed, job_id=_jobs)),
)  # fmt: skip

said = st.lists(st.tuples(st.integers(0, 2), contents), max_size=25)


def written(what: list[tuple[int, tuple[str, Message]]]) -> list[Fact]:
    authors = [Author(KEYS[number], 1) for number in range(3)]
    return [authors[author].say(kind, content, clock) for clock, (author, (kind, content)) in enumerate(what)]


def folded(facts: list[Fact]) -> Ledger:
    ledger = Ledger()
    for fact in facts:
        assert ledger.apply(fact)
    return ledger


def read(ledger: Ledger) -> object:
    """Everything that a node may decide on."""
    return ledger.fingerprint(), [
        (
            job.job_id, job.state, job.submitted, job.plan, job.completion, job.results(), job.failures(),
            job.rounds(),
        )
        for job in sorted(ledger.jobs.values(), key=lambda job: job.job_id)
    ], [job.job_id for job in ledger.open_jobs()]  # fmt: skip


@given(said, st.randoms(use_true_random=False))
def test_any_order_and_any_repetition_reads_the_same(
    what: list[tuple[int, tuple[str, Message]]], shuffler: random.Random
) -> None:
    facts = written(what)
    expected = read(folded(facts))
    for _ in range(3):
        again = facts + shuffler.choices(facts, k=len(facts)) if facts else []
        shuffler.shuffle(again)
        assert read(folded(again)) == expected


@given(said, st.data())
def test_parts_that_are_folded_apart_join_to_the_same(
    what: list[tuple[int, tuple[str, Message]]], data: st.DataObject
) -> None:
    """Two sides of a partition fold what they hold; each then gets the other's facts, in that one's order."""
    facts = written(what)
    side = data.draw(st.lists(st.sampled_from("abx"), min_size=len(facts), max_size=len(facts)))
    left = [fact for fact, where in zip(facts, side, strict=True) if where in "ax"]
    right = [fact for fact, where in zip(facts, side, strict=True) if where in "bx"]
    assert read(folded(left + right)) == read(folded(right + left)) == read(folded(facts))


@given(said)
def test_a_fingerprint_tells_different_sets_of_facts_apart(what: list[tuple[int, tuple[str, Message]]]) -> None:
    facts = written(what)
    ledger = folded(facts)
    for fact in facts:
        if fact.kind in ("task_finished", "job_assigned", *TERMINAL_KINDS):
            job = ledger.jobs[getattr(fact.body, fact.kind).job_id]
            counts = fact.kind in TERMINAL_KINDS or not job.closed
            without = folded([other for other in facts if other is not fact])
            assert (without.fingerprint() != ledger.fingerprint()) == counts


@given(said)
def test_a_closed_job_reads_the_same_without_anything_but_its_ends(
    what: list[tuple[int, tuple[str, Message]]],
) -> None:
    facts = written(what)
    ledger = folded(facts)
    closed = {job.job_id for job in ledger.jobs.values() if job.closed}
    kept = [f for f in facts if f.kind in TERMINAL_KINDS or getattr(f.body, f.kind).job_id not in closed]
    without = folded(kept)
    assert without.fingerprint() == ledger.fingerprint()
    for job_id in closed:
        whole, rest = ledger.jobs[job_id], without.jobs[job_id]
        assert (whole.state, whole.end, whole.completion) == (rest.state, rest.end, rest.completion)
        assert ledger.alternatives(whole) == without.alternatives(rest)
        assert ledger.blobs_wanted(whole) == without.blobs_wanted(rest)
        assert ledger.record_of(whole) == without.record_of(rest)
        ledger.forget_details(job_id)
        assert (ledger.jobs[job_id].submitted, ledger.jobs[job_id].details_at) == (None, set())
    assert ledger.fingerprint() == without.fingerprint()
    assert [job.job_id for job in ledger.open_jobs()] == [job.job_id for job in without.open_jobs()]


@given(said)
def test_every_fact_is_found_again_in_its_place(what: list[tuple[int, tuple[str, Message]]]) -> None:
    facts = written(what)
    ledger = folded(facts)
    places = {Place(fact.stream_id, fact.sequence): fact for fact in facts}
    for job in ledger.jobs.values():
        assert {places[place].kind in TERMINAL_KINDS for place in job.ends_at} <= {True}
        assert {places[place].kind in TERMINAL_KINDS for place in job.details_at} <= {False}
    assert sum(len(job.ends_at) + len(job.details_at) for job in ledger.jobs.values()) == len(facts)


@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        ([], OPEN),
        (["failed"], FAILED),
        (["cancelled"], CANCELLED),
        (["completed"], COMPLETED),
        (["failed", "cancelled"], CANCELLED),
        (["completed", "failed"], COMPLETED),
        (["cancelled", "completed", "failed"], COMPLETED),
    ],
)
def test_completed_beats_cancelled_beats_failed_beats_open(kinds: list[str], state: int) -> None:
    content = {
        "failed": facts_pb2.JobFailed(job_id=JOBS[0]),
        "cancelled": facts_pb2.JobCancelled(job_id=JOBS[0]),
        "completed": facts_pb2.JobCompleted(job_id=JOBS[0]),
    }
    author = Author()
    facts = [author.say("job_submitted", facts_pb2.JobSubmitted(job_id=JOBS[0]))]
    facts += [author.say(f"job_{kind}", content[kind]) for kind in kinds]
    ledger = folded(facts)
    assert ledger.jobs[JOBS[0]].state == state
    assert bool(ledger.open_jobs()) == (state == OPEN)


def planned(plan: bytes, revision: int) -> Message:
    return facts_pb2.JobPlanned(job_id=JOBS[0], plan=common_pb2.BlobRef(sha256=plan), revision=revision, task_count=2)


def one_job(facts: list[Fact]) -> Job:
    return folded(facts).jobs[JOBS[0]]


def test_the_deepest_plan_wins_then_the_least_hash() -> None:
    author = Author()
    facts = [author.say("job_planned", planned(plan, 1)) for plan in (PLANS[2], PLANS[1])]
    job = one_job(facts)
    assert job.plan is not None
    assert job.plan.plan.sha256 == PLANS[1]
    job = one_job([*facts, author.say("job_planned", planned(PLANS[2], 2))])
    assert job.plan is not None
    assert (job.plan.plan.sha256, job.plan.revision) == (PLANS[2], 2)


def test_results_and_failures_are_the_winning_plans() -> None:
    author = Author()
    facts = [
        author.say("job_planned", planned(PLANS[0], 1)),
        author.say("task_finished", _finished(JOBS[0], PLANS[0], 1, 0, BLOBS[0])),
        author.say("task_finished", _finished(JOBS[0], PLANS[0], 0, 1, None)),
        author.say("task_finished", _finished(JOBS[0], PLANS[1], 0, 0, BLOBS[1])),
    ]
    job = one_job(facts)
    assert {ref: finished.result for ref, finished in job.results().items()} == {TaskRef(1, 0): BLOBS[0]}
    assert list(job.failures()) == [TaskRef(0, 1)]
    job = one_job([*facts, author.say("job_planned", planned(PLANS[1], 2))])
    assert {ref: finished.result for ref, finished in job.results().items()} == {TaskRef(0, 0): BLOBS[1]}
    assert job.failures() == {}


def test_of_two_results_and_two_completions_the_least_fact_hash_wins() -> None:
    facts = [Author().say("job_planned", planned(PLANS[0], 1))]
    results, completions = [], []
    for key, blob in zip(KEYS, BLOBS, strict=False):
        author = Author(key)
        results.append(author.say("task_finished", _finished(JOBS[0], PLANS[0], 0, 0, blob)))
        completions.append(
            author.say("job_completed", facts_pb2.JobCompleted(job_id=JOBS[0], plan_sha256=PLANS[0], result=blob))
        )
    job = one_job(facts + results + completions)
    assert job.results()[TaskRef(0, 0)] == min(results, key=lambda fact: fact.hash).body.task_finished
    assert job.completion == min(completions, key=lambda fact: fact.hash).body.job_completed


def test_a_job_whose_submission_is_still_on_its_way_is_known_and_not_worked_on() -> None:
    author = Author()
    ledger = folded([author.say("job_planned", planned(PLANS[0], 1))])
    assert ledger.jobs[JOBS[0]].submitted is None
    assert ledger.open_jobs() == []


def test_open_jobs_come_oldest_first() -> None:
    author = Author()
    late = author.say("job_submitted", facts_pb2.JobSubmitted(job_id=JOBS[0]), 200 << 16)
    early = author.say("job_submitted", facts_pb2.JobSubmitted(job_id=JOBS[1]), 100 << 16)
    jobs = folded([late, early]).open_jobs()
    assert [job.job_id for job in jobs] == [JOBS[1], JOBS[0]]
    assert [job.submitted[0].time_ms for job in jobs if job.submitted] == [100, 200]


def test_rounds_come_in_order_of_term_leader_and_round() -> None:
    author = Author()
    tokens = [(2, "a", 1), (1, "b", 2), (1, "a", 3), (1, "a", 1)]
    facts = [
        author.say(
            "job_assigned",
            facts_pb2.JobAssigned(
                job_id=JOBS[0], token=common_pb2.FencingToken(term=term, leader_id=leader), round=number
            ),
        )
        for term, leader, number in tokens
    ]
    rounds = [(said.token.term, said.token.leader_id, said.round) for _, said in one_job(facts).rounds()]
    assert rounds == sorted(tokens)


def test_other_facts_are_not_of_this_fold() -> None:
    assert not Ledger().apply(Author().note("x"))


def summarize_job() -> list[Fact]:
    """A job with a document, a plan, two results of one task, and a failure."""
    author = Author()
    request = work_pb2.JobRequest(summarize=work_pb2.SummarizeRequest(document=BLOBS[2], title="t" * 9000))
    submitted = facts_pb2.JobSubmitted(job_id=JOBS[0], request=request, blobs=[BLOBS[2]])
    return [
        author.say("job_submitted", submitted, 5 << 16),
        author.say("job_planned", planned(PLANS[0], 1)),
        author.say("task_finished", _finished(JOBS[0], PLANS[0], 0, 0, BLOBS[0])),
        author.say("task_finished", _finished(JOBS[0], PLANS[0], 0, 0, BLOBS[1])),
        author.say("task_finished", _finished(JOBS[0], PLANS[0], 1, 0, None)),
    ]


def test_an_open_job_wants_its_inputs_its_plan_and_one_result_a_task() -> None:
    facts = summarize_job()
    ledger = folded(facts)
    job = ledger.jobs[JOBS[0]]
    accepted = min(facts[2:4], key=lambda fact: fact.hash).body.task_finished.result
    assert {ref.sha256 for ref in ledger.blobs_wanted(job)} == {BLOBS[2].sha256, PLANS[0], accepted.sha256}
    assert {ref.sha256 for ref in ledger.blobs_named(job)} == {PLANS[0], *(ref.sha256 for ref in BLOBS)}


def test_a_completed_job_wants_every_answer_and_its_document() -> None:
    facts = summarize_job()
    ledger = folded(facts)
    record = ledger.record_of(ledger.jobs[JOBS[0]])
    assert (record.accepted_by, record.hybrid_clock, record.tasks) == (facts[0].author, 5 << 16, 2)
    ends = [
        Author(key).say("job_completed", facts_pb2.JobCompleted(job_id=JOBS[0], result=ref, record=record))
        for key, ref in zip(KEYS[1:4], [BLOBS[0], BLOBS[1], BLOBS[1]], strict=True)
    ]
    for end in ends:
        ledger.apply(end)
    job = ledger.jobs[JOBS[0]]
    assert {ref.sha256 for ref in ledger.blobs_wanted(job)} == {ref.sha256 for ref in BLOBS}
    winner = min(ends, key=lambda fact: fact.hash)
    [(said, other)] = ledger.alternatives(job)
    assert {other.result.sha256, winner.body.job_completed.result.sha256} == {BLOBS[0].sha256, BLOBS[1].sha256}
    assert said.hash > winner.hash
    ledger.forget_details(JOBS[0])
    assert job.request == record.request
    assert ledger.record_of(job) == record
    assert ledger.blobs_named(job) == ledger.blobs_wanted(job)


@pytest.mark.parametrize("kind", ["job_cancelled", "job_failed"])
def test_a_job_without_an_answer_wants_no_blobs_once_it_ended(kind: str) -> None:
    content = facts_pb2.JobCancelled(job_id=JOBS[0]) if kind == "job_cancelled" else facts_pb2.JobFailed(job_id=JOBS[0])
    ledger = folded([*summarize_job(), Author(KEYS[1]).say(kind, content)])
    assert ledger.blobs_wanted(ledger.jobs[JOBS[0]]) == []


def test_the_details_of_an_open_job_can_not_be_forgotten() -> None:
    ledger = folded(summarize_job())
    with pytest.raises(AssertionError, match="open job"):
        ledger.forget_details(JOBS[0])
    with pytest.raises(AssertionError, match="open job"):
        ledger.forget(JOBS[0])
