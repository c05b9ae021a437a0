"""Tests of mesh/intake.py: whom a worker obeys, and what it tells about its tasks."""

from mesh import events
from mesh.dispatch import COPYING, INPUTS_MISSING, TaskKey
from mesh.effects import Author, Effect, Persist, Send, StartTask, StopTask
from mesh.identity import NodeId
from mesh.intake import ANNOUNCE_AGAIN_S, PROGRESS_EVERY_S, REPLICATE_S, Intake
from mesh.ledger import TaskRef
from mesh.wire import common_pb2, facts_pb2, work_pb2
from tests.mesh.building import B, C
from tests.mesh.lone import Lone, ref, to, token

JOB = b"j" * 32
PLAN = b"p" * 32


def key(index: int = 0) -> TaskKey:
    return TaskKey(JOB, TaskRef(index, 0))


def assign(
    index: int, by: common_pb2.FencingToken, attempt: int = 1, plan: bytes = PLAN, me: str = ""
) -> work_pb2.Assign:
    task = work_pb2.Task(index=index, prompt_tokens_estimate=100, output_tokens_max=50)
    agent = common_pb2.AgentRef(node_id=me, agent="default")
    return work_pb2.Assign(token=by, job_id=JOB, plan_sha256=plan, task=task, attempt=attempt, agent=agent)


def worker(slots: int = 1, peers: int = 2) -> Lone:
    """A node with a ready engine that follows B in term 5."""
    node = Lone(peers=peers, slots=slots)
    node.do(events.EngineChanged(ready=True))
    node.leads(B)
    return node


def intake(node: Lone) -> Intake:
    return node.replica.work.intake


def gives(node: Lone, index: int, by: NodeId = B, term: int = 5, attempt: int = 1, plan: bytes = PLAN) -> list[Effect]:
    return node.receive(by, assign=assign(index, token(term, by), attempt, plan, node.me))


def said(effects: list[Effect]) -> list[str]:
    """What a leader is told: the kind of each task event, or why a task is declined."""
    words = []
    for effect in effects:
        if isinstance(effect, Send) and effect.message.WhichOneof("message") == "task_event":
            event = effect.message.task_event
            kind = event.WhichOneof("event") or ""
            words.append(event.declined.code if kind == "declined" else kind)
    return words


def ends(node: Lone, index: int = 0, *, success: bool = True) -> list[Effect]:
    finished = facts_pb2.TaskFinished(job_id=JOB, plan_sha256=PLAN, task_index=index)
    if success:
        finished.result.CopyFrom(ref(f"result {index}"))
        node.do(events.BlobStored(finished.result))
    else:
        finished.failure.code = "engine-crashed"
    return node.do(events.TaskEnded(key(index), finished))


def finished_facts(node: Lone) -> list[facts_pb2.TaskFinished]:
    return [fact.body.task_finished for fact in node.stored if fact.kind == "task_finished"]


def holds(node: Lone, peer: NodeId, index: int = 0) -> list[Effect]:
    return node.receive(peer, blob_receipt=facts_pb2.BlobReceipt(sha256=[ref(f"result {index}").sha256]))


def test_only_the_leader_that_the_node_follows_is_obeyed() -> None:
    node = Lone(peers=2)
    node.do(events.EngineChanged(ready=True))
    assert said(gives(node, 0)) == ["not-leader"]
    node.leads(B)
    assert said(gives(node, 0, by=C, term=6)) == ["not-leader"]
    stranger = node.receive(C, assign=assign(0, token(5, B)))
    assert said(stranger) == ["not-leader"], "a token is nobody's but its leader's"
    done = gives(node, 0)
    assert said(done) == ["accepted"]
    assert [effect.key for effect in done if isinstance(effect, StartTask)] == [key()]


def test_a_leader_that_the_node_hears_but_does_not_see_alive_is_not_obeyed() -> None:
    node = worker()
    node.do(events.LinkClosed(B))
    intake(node).leader_changed(token(5, B))  # its beat was read all the same
    assert said(gives(node, 0)) == ["not-leader"]


def test_a_lower_token_is_declined_with_the_highest() -> None:
    node = worker(slots=2)
    node.leads(C, term=6)
    [effect] = [effect for effect in gives(node, 0) if isinstance(effect, Send)]
    event = effect.message.task_event
    assert event.declined.code == "stale-leader"
    assert event.token == token(6, C)


def test_slots_the_engine_and_draining_bound_what_is_taken() -> None:
    node = worker(slots=1)
    assert said(gives(node, 0)) == ["accepted"]
    assert said(gives(node, 1)) == ["busy"]
    ends(node)
    assert said(gives(node, 1)) == ["accepted"], "a result that waits for copies uses no engine"
    node.do(events.TaskStopped(key(1)))
    node.do(events.EngineChanged(ready=True, stalled=True))
    assert node.replica.membership.load.engine_stalled
    assert said(gives(node, 2)) == ["engine-stalled"]
    node.do(events.EngineChanged(ready=False))
    assert said(gives(node, 3)) == ["engine-not-ready"]
    node.do(events.EngineChanged(ready=True))
    node.do(events.Draining())
    assert node.replica.membership.load.draining
    assert said(gives(node, 4)) == ["node-draining"]


def test_an_assignment_that_comes_twice_is_run_once() -> None:
    node = worker()
    gives(node, 0)
    assert gives(node, 0) == []
    ends(node, success=False)
    assert gives(node, 0) == [], "also after the task ended"
    assert said(gives(node, 0, attempt=2)) == ["accepted"]


def test_what_has_an_end_is_not_done_again() -> None:
    node = worker()
    planned = facts_pb2.JobPlanned(job_id=JOB, plan=common_pb2.BlobRef(sha256=PLAN), task_count=1)
    node.says(C, "job_planned", planned)
    finished = facts_pb2.TaskFinished(job_id=JOB, plan_sha256=PLAN, task_index=0, result=ref("result 0"))
    node.says(C, "task_finished", finished)
    assert said(gives(node, 0)) == ["task-done"]
    assert said(gives(node, 1)) == ["accepted"]
    node.says(C, "job_cancelled", facts_pb2.JobCancelled(job_id=JOB))
    assert said(gives(node, 2)) == ["job-ended"]


def test_a_result_is_said_once_it_has_its_copies() -> None:
    node = worker()
    gives(node, 0)
    done = ends(node)
    assert sorted(to(done, "blob_offer")) == [B, C]
    [word] = [effect for effect in done if isinstance(effect, Send) and effect.peer == B and said([effect])]
    assert word.message.task_event.progress.phase == COPYING, "the leader hears that the engine is free"
    holds(node, B)
    assert finished_facts(node) == []
    told = holds(node, C)
    [finished] = finished_facts(node)
    assert finished.token == token(5, B)
    assert said(told) == ["ended"]
    assert not intake(node).running


def test_a_result_does_not_wait_for_copies_for_ever() -> None:
    node = worker()
    gives(node, 0)
    ends(node)
    assert intake(node).look(node.now + REPLICATE_S - 0.1) == []
    [author, *_] = intake(node).look(node.now + REPLICATE_S)
    assert isinstance(author, Author)
    # Its stream was lost before it was durable: it is said again.
    assert intake(node).look(node.now + REPLICATE_S + 1.0) == []
    assert [type(effect) for effect in intake(node).look(node.now + REPLICATE_S + ANNOUNCE_AGAIN_S)][:1] == [Author]


def test_a_failure_is_said_at_once_and_told_once_durable() -> None:
    node = worker()
    gives(node, 0)
    done = ends(node, success=False)
    assert [type(effect) for effect in done].index(Persist) < len(done)
    assert said(done) == ["ended"]
    [finished] = finished_facts(node)
    assert finished.failure.code == "engine-crashed"


def test_what_is_not_the_tasks_fault_gives_it_back_instead_of_failing_it() -> None:
    node = worker()
    gives(node, 0)
    finished = facts_pb2.TaskFinished(job_id=JOB, plan_sha256=PLAN, task_index=0)
    finished.failure.code = INPUTS_MISSING
    assert said(node.do(events.TaskEnded(key(), finished))) == [INPUTS_MISSING]
    assert finished_facts(node) == []
    assert not intake(node).running


def test_a_long_message_fits_into_a_fact() -> None:
    node = worker()
    gives(node, 0)
    finished = facts_pb2.TaskFinished(job_id=JOB, plan_sha256=PLAN, task_index=0)
    finished.failure.code, finished.failure.message, finished.failure.remedy = "x", "ä" * 9000, "ö" * 9000
    node.do(events.TaskEnded(key(), finished))
    [kept] = finished_facts(node)
    assert kept.failure.message.startswith("ää")


def test_progress_is_told_to_who_leads_now_and_not_too_often() -> None:
    node = worker()
    gives(node, 0)
    word = events.TaskProgressed(key(), work_pb2.TaskProgress(output_tokens=3))
    assert to(node.do(word), "task_event") == [B]
    node.now += PROGRESS_EVERY_S / 2
    assert to(node.do(word), "task_event") == []
    node.leads(C, term=6)
    node.now += PROGRESS_EVERY_S
    assert to(node.do(word), "task_event") == [C]
    assert node.replica.membership.load.queued_output_tokens == 47


def test_a_new_leader_hears_of_all_that_runs_and_of_nothing_when_nothing_does() -> None:
    node = worker(slots=2)
    [report] = [effect for effect in node.leads(C, term=6) if isinstance(effect, Send) and effect.peer == C][:1]
    assert report.message.HasField("work_report")
    assert not report.message.work_report.running
    gives(node, 0, by=C, term=6)
    gives(node, 1, by=C, term=6)
    ends(node, 1)
    effects = node.leads(B, term=7)
    [report] = [effect for effect in effects if isinstance(effect, Send) and effect.message.HasField("work_report")]
    running = report.message.work_report.running
    assert [(event.task_index, event.progress.phase) for event in running] == [(0, ""), (1, COPYING)]
    assert all(event.token == token(7, B) and event.plan_sha256 == PLAN for event in running)
    assert said(gives(node, 2, by=C, term=6)) == ["stale-leader"]


def test_a_task_that_runs_goes_on_under_whoever_assigns_it_next() -> None:
    node = worker()
    gives(node, 0)
    node.leads(C, term=6)
    done = gives(node, 0, by=C, term=6, attempt=2)
    assert said(done) == ["accepted"]
    assert not any(isinstance(effect, StartTask) for effect in done)
    [running] = intake(node).running.values()
    assert (running.assign.token, running.assign.attempt) == (token(6, C), 2)


def test_the_task_of_another_plan_makes_room() -> None:
    node = worker()
    gives(node, 0)
    done = gives(node, 0, attempt=2, plan=b"q" * 32)
    assert said(done) == ["other-plan"]
    assert [effect.key for effect in done if isinstance(effect, StopTask)] == [key()]
    node.do(events.TaskStopped(key()))
    assert said(gives(node, 0, attempt=3, plan=b"q" * 32)) == ["accepted"]


def test_only_the_highest_leader_cancels() -> None:
    node = worker()
    gives(node, 0)
    for by, sender, heard in ((token(4, C), C, False), (token(5, B), C, False), (token(5, B), B, True)):
        cancel = work_pb2.CancelTask(token=by, job_id=JOB)
        done = node.receive(sender, cancel_task=cancel)
        assert any(isinstance(effect, StopTask) for effect in done) is heard
    assert node.receive(B, cancel_task=work_pb2.CancelTask(token=token(5, B), job_id=JOB)) == [], "once is enough"
    assert said(node.do(events.TaskStopped(key()))) == [], "the leader asked for it"
    assert not intake(node).running


def test_the_outcome_of_a_task_that_was_to_stop_is_not_said() -> None:
    node = worker()
    gives(node, 0)
    node.receive(B, cancel_task=work_pb2.CancelTask(token=token(5, B), job_id=JOB))
    ends(node)
    assert finished_facts(node) == []
    assert not intake(node).running


def test_a_leader_hears_of_a_task_that_was_stopped_by_others() -> None:
    node = worker()
    gives(node, 0)
    assert said(node.do(events.TaskStopped(key()))) == ["stopped"]


def test_the_end_of_a_job_stops_what_runs_and_silences_what_waits() -> None:
    node = worker(slots=2)
    gives(node, 0)
    gives(node, 1)
    ends(node, 1)
    done = node.says(C, "job_cancelled", facts_pb2.JobCancelled(job_id=JOB))
    assert [effect.key for effect in done if isinstance(effect, StopTask)] == [key(0)]
    holds(node, B, 1)
    holds(node, C, 1)
    assert finished_facts(node) == []
