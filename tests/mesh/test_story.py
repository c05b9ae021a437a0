"""The story of a job: all of its facts, each once, causes first; and what is left once its details were dropped."""

import random

from hypothesis import given
from hypothesis import strategies as st

from mesh.facts import Fact, Place
from mesh.ledger import Ledger
from mesh.story import places_of, story
from mesh.wire import common_pb2, facts_pb2
from tests.mesh.building import KEYS, Author
from tests.mesh.test_ledger import JOBS
from tests.mesh.test_retention import Keeper, finished_job

AGENT = common_pb2.AgentRef(node_id="c" * 32, agent="default")
TOKEN = common_pb2.FencingToken(term=3, leader_id="d" * 32)


def a_life() -> list[Fact]:
    """Three nodes: one accepts, one leads, one works and fails once; another job runs beside it."""
    client, leader, worker = (Author(key) for key in KEYS[:3])
    record = facts_pb2.AssignmentRecord(task_index=0, agent=AGENT)
    failed = facts_pb2.TaskFinished(job_id=JOBS[0], agent=AGENT, token=TOKEN)
    failed.failure.message = "the model is gone"
    done = facts_pb2.TaskFinished(job_id=JOBS[0], agent=AGENT, replica=1)
    done.result.sha256 = b"r" * 32
    return [
        client.say("job_submitted", facts_pb2.JobSubmitted(job_id=JOBS[0]), 1 << 16),
        leader.say("job_planned", facts_pb2.JobPlanned(job_id=JOBS[0], revision=1, task_count=2), 2 << 16),
        client.say("job_submitted", facts_pb2.JobSubmitted(job_id=JOBS[1]), 2 << 16),
        leader.say(
            "job_assigned",
            facts_pb2.JobAssigned(job_id=JOBS[0], round=4, method="cvxpy", token=TOKEN, assignments=[record]),
            3 << 16,
        ),
        worker.say("task_finished", failed, 3 << 16 | 1),
        worker.say("task_finished", done, 3 << 16 | 2),
        leader.say("job_completed", facts_pb2.JobCompleted(job_id=JOBS[0], token=TOKEN), 4 << 16),
    ]


def test_it_is_told_in_order_and_in_words() -> None:
    told = story(JOBS[0], a_life())
    assert [event.text for event in told] == [
        "accepted: unknown work, 0 blobs",
        "planned: revision 1, 2 tasks, plan ",
        "round 4 under dddddddd in term 3 by cvxpy: task 0 to cccccccc/default",
        "task 0 failed on cccccccc/default under dddddddd in term 3: the model is gone",
        "task 0.1 finished on cccccccc/default: 727272727272",
        "completed under dddddddd in term 3: result ",
    ]
    assert [event.time_ms for event in told] == [1, 2, 3, 3, 3, 4]
    assert [event.kind for event in story(JOBS[1], a_life())] == ["job_submitted"]
    assert story(b"?" * 32, a_life()) == []


def test_why_a_round_was_made_is_told() -> None:
    record = facts_pb2.AssignmentRecord(task_index=0, agent=AGENT)
    why = "no progress for 4 s on cccccccc"
    hedge = facts_pb2.JobAssigned(job_id=JOBS[0], round=5, method="hedge", method_reason=why, assignments=[record])
    [event] = story(JOBS[0], [Author().say("job_assigned", hedge, 1 << 16)])
    assert event.text == f"round 5 by hedge ({why}): task 0 to cccccccc/default"


@given(st.randoms(use_true_random=False))
def test_every_node_tells_the_same(shuffler: random.Random) -> None:
    facts = a_life() * 2
    shuffler.shuffle(facts)
    assert story(JOBS[0], facts) == story(JOBS[0], a_life())


def test_the_ledger_knows_where_to_read_it() -> None:
    facts = a_life()
    ledger = Ledger()
    for fact in facts:
        ledger.apply(fact)
    ranges = places_of(ledger.jobs[JOBS[0]])
    places = {Place(r.stream_id, sequence) for r in ranges for sequence in range(r.first, r.last + 1)}
    stored = [fact for fact in facts if Place(fact.stream_id, fact.sequence) in places]
    assert story(JOBS[0], stored) == story(JOBS[0], facts)


def test_what_is_left_after_retention_is_told() -> None:
    facts = finished_job(Author(), JOBS[0], 1)
    record = facts_pb2.JobRecord(accepted_by="a" * 32, hybrid_clock=7 << 16, tasks=3)
    record.request.seed = 1
    worker = Author(KEYS[1])
    facts.append(worker.say("job_failed", facts_pb2.JobFailed(job_id=JOBS[0], record=record), 9 << 16))
    keeper = Keeper(facts)
    keeper.forget(9e6)
    told = story(JOBS[0], keeper.facts)
    assert [event.kind for event in told] == ["recorded", "job_failed", "job_completed"]
    assert (told[0].time_ms, told[0].author) == (7, "a" * 32)
    assert "3 tasks" in told[0].text
