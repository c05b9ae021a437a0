"""What watchers hear: who runs what, why nothing runs, and no flood where jobs and nodes are many."""

import pytest

from mesh.dispatch import Dispatch, TaskKey
from mesh.effects import Deliver, Effect
from mesh.ledger import TaskRef
from mesh.telling import PROGRESS_EVERY_S, Telling
from mesh.wire import common_pb2, work_pb2
from tests.mesh.building import B, C
from tests.mesh.lone import Lone, to, token

TOKEN = token(1, B)


def told(effects: list[Effect]) -> list[work_pb2.JobProgress]:
    return [effect.message.job_progress for effect in effects if isinstance(effect, Deliver)]


def test_every_live_peer_and_the_own_shell_hear_what_runs_and_what_waits() -> None:
    node = Lone(peers=2)
    telling = Telling(node.replica, Dispatch(), {b"w" * 32: "a free agent"})
    agent = common_pb2.AgentRef(node_id=B, agent="default")
    telling.dispatch.assigned(TaskKey(b"r" * 32, TaskRef(3, 1)), b"p" * 32, agent, 0.0, 1, 1)
    effects = telling.tell(TOKEN, 10.0)
    assert sorted(to(effects, "job_progress")) == [B, B, C, C]
    running, waiting = told(effects)
    assert [(event.task_index, event.replica, event.agent) for event in running.running] == [(3, 1, agent)]
    assert (waiting.job_id, waiting.waiting_for) == (b"w" * 32, "a free agent")
    assert telling.tell(TOKEN, 10.0 + PROGRESS_EVERY_S / 2) == []
    assert telling.tell(TOKEN, 10.0 + PROGRESS_EVERY_S)


def test_where_jobs_are_many_each_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.telling.MESSAGES_MAX", 6)
    node = Lone(peers=2)
    jobs = [bytes([number]) * 32 for number in range(5)]
    telling = Telling(node.replica, Dispatch(), dict.fromkeys(jobs, "a plan"))
    heard = []
    for turn in range(1, 6):
        effects = telling.tell(TOKEN, turn * PROGRESS_EVERY_S)
        assert len(effects) == 6
        heard += [progress.job_id for progress in told(effects)]
    assert sorted(heard) == sorted(jobs * 2)
