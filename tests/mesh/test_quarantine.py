"""Tasks that run alone, as the leader places them: nothing beside them, and none of them kept waiting for ever."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.dispatch import LATE_S
from mesh.effects import Allocate
from mesh.events import Allocated
from mesh.identity import NodeId
from mesh.placement import ITS_OWN, ROUND_TASKS_MAX, Ready
from mesh.wire import common_pb2, membership_pb2
from tests.mesh.building import B, C
from tests.mesh.lone import to
from tests.mesh.test_placement import Round, free, record


def tasks(round_: Round, *alone: bool) -> list[Ready]:
    return [replace(one, alone=is_alone) for one, is_alone in zip(round_.ready(*range(len(alone))), alone, strict=True)]


def asked_of(round_: Round, ready: list[Ready]) -> Allocate:
    asked = round_.ask(ready)
    assert asked is not None
    return asked


def test_nothing_is_put_beside_a_task_that_runs_alone() -> None:
    round_ = Round(slots=2)
    both = tasks(round_, False, True)
    asked = asked_of(round_, both)
    assert to(round_.answer(asked, B, B), "assign") == [B], "of two in one engine only the one that is to be alone"
    assert [flight.key for flight in round_.dispatch.on_node(B)] == [both[1].key]
    asked = asked_of(round_, both)
    assert free(asked) == {round_.node.me: 2, B: 0, C: 2}


def test_an_engine_at_work_is_kept_until_it_is_empty() -> None:
    round_ = Round(slots=2)
    first, second, alone = ready = tasks(round_, False, False, True)
    round_.answer(asked_of(round_, ready[:1]), B)
    asked = asked_of(round_, [first, alone])
    assert to(round_.answer(asked, B), "assign") == []
    assert round_.placement.waiting_for == {}, "the job runs"
    asked = asked_of(round_, ready)
    assert free(asked)[B] == 0
    assert {task.key: task.forbidden for task in asked.tasks} == {
        second.key: {(B, "default")}, alone.key: {(B, "default")},
    }  # fmt: skip
    round_.answer(asked)
    round_.dispatch.done(first.key)
    asked = asked_of(round_, [second, alone])
    assert free(asked)[B] == 1
    assert {task.key: task.forbidden for task in asked.tasks} == {second.key: {(B, "default")}, alone.key: set()}
    assert to(round_.answer(asked, B, C), "assign") == [B, C], "who waited for it comes first"


def test_what_runs_alone_stays_alone_while_its_job_is_not_looked_at() -> None:
    round_ = Round(slots=2)
    alone, other = tasks(round_, True, False)
    assert to(round_.answer(asked_of(round_, [alone]), B), "assign") == [B]
    assert free(asked_of(round_, [other]))[B] == 0


def test_who_waits_for_one_engine_takes_another_that_is_empty_first() -> None:
    round_ = Round(slots=2)
    ready = tasks(round_, False, True)
    round_.answer(asked_of(round_, ready[:1]), B)
    round_.answer(asked_of(round_, ready), B)
    assert to(round_.answer(asked_of(round_, ready), C), "assign") == [C]
    assert free(asked_of(round_, tasks(round_, False, True, False)))[B] == 1, "B is kept for nobody any more"


def test_an_engine_of_a_node_that_takes_no_work_is_not_kept() -> None:
    round_ = Round(slots=2)
    ready = tasks(round_, False, True)
    round_.answer(asked_of(round_, ready[:1]), B)
    round_.answer(asked_of(round_, ready), B)
    round_.node.replica.membership.members[B].load_told(membership_pb2.NodeLoad(engine_stalled=True))
    round_.answer(asked_of(round_, ready))
    round_.node.replica.membership.members[B].load_told(membership_pb2.NodeLoad())
    assert free(asked_of(round_, ready))[B] == 1, "it is chosen anew"


def test_people_read_that_a_task_waits_for_an_engine_to_itself() -> None:
    round_ = Round(slots=2)
    other = tasks(round_, False)[0]
    key = other.key._replace(job_id=b"o" * 32)
    round_.dispatch.assigned(key, b"p" * 32, common_pb2.AgentRef(node_id=B, agent="default"), 0.0, 1, 1)
    round_.answer(asked_of(round_, tasks(round_, True)), B)
    for _ in range(2):
        assert set(round_.placement.waiting_for.values()) == {ITS_OWN}
        for agent in (round_.node.me, C):
            round_.dispatch.resting[agent] = 1.0
        assert round_.ask(tasks(round_, True)) is None


def test_nobody_reads_that_an_ordinary_task_waits_for_an_engine_to_itself() -> None:
    round_ = Round(slots=2)
    plain, alone = tasks(round_, False, True)
    key = plain.key._replace(job_id=b"o" * 32)
    round_.dispatch.assigned(key, b"p" * 32, common_pb2.AgentRef(node_id=B, agent="default"), 0.0, 1, 1)
    round_.answer(asked_of(round_, [alone]), B)
    assert set(round_.placement.waiting_for.values()) == {ITS_OWN}
    asked = asked_of(round_, [plain])
    assert round_.placement.waiting_for == {plain.job.job_id: "a free agent"}
    round_.placement.quarantine._kept[(B, "default")] = alone.key
    round_.answer(asked, B)
    assert round_.placement.waiting_for == {plain.job.job_id: "a free agent"}


def test_for_whom_an_engine_is_kept_is_not_left_out_of_a_full_round() -> None:
    round_ = Round(slots=2)
    first, *others, alone = ready = tasks(round_, *[False] * (ROUND_TASKS_MAX + 1), True)
    round_.answer(asked_of(round_, [first]), B)
    round_.answer(asked_of(round_, [alone]), B)
    asked = asked_of(round_, ready)
    assert len(asked.tasks) == ROUND_TASKS_MAX
    assert [task.key for task in asked.tasks] == [alone.key, *(one.key for one in others[: ROUND_TASKS_MAX - 1])]


def test_no_engine_is_kept_for_a_task_that_waits_for_its_inputs() -> None:
    round_ = Round(slots=2)
    first, alone = tasks(round_, False, True)
    round_.answer(asked_of(round_, [first]), B)
    round_.answer(asked_of(round_, [alone]), B)
    round_.dispatch.held_back[alone.key] = (2.0, 1)
    asked = asked_of(round_, tasks(round_, False, True, False))
    assert free(asked)[B] == 1


def test_only_one_of_several_gets_or_waits_for_an_engine_at_a_time() -> None:
    round_ = Round(slots=2)
    first, second, third, plain = ready = tasks(round_, True, True, True, False)
    asked = asked_of(round_, ready)
    assert [task.key for task in asked.tasks] == [first.key, plain.key]
    round_.answer(asked, B, C)
    assert round_.ask(ready) is None, "while it runs the others have no turn"
    round_.dispatch.done(first.key)
    for node in (B, round_.node.me):
        round_.dispatch.resting[node] = 1.0
    asked = asked_of(round_, [second, third, plain])
    assert [task.key for task in asked.tasks] == [second.key]
    round_.answer(asked, C)
    assert round_.placement.quarantine.waits(second.key)
    assert round_.ask([second, third, plain]) is None
    round_.dispatch.done(plain.key)
    asked = asked_of(round_, [second, third])
    assert [task.key for task in asked.tasks] == [second.key]


def test_who_can_run_nowhere_does_not_hold_the_turn_of_others() -> None:
    round_ = Round(slots=2)
    ready = tasks(round_, True, True)
    for _ in range(2):
        asked = asked_of(round_, ready)
        round_.answer(asked)
    turns = [task.key for task in asked.tasks]
    assert turns == [ready[1].key]


def test_whoever_has_its_turn_is_not_left_out_of_a_full_round() -> None:
    round_ = Round(slots=2)
    *_, alone = ready = tasks(round_, *[False] * ROUND_TASKS_MAX, True)
    asked = asked_of(round_, ready)
    assert len(asked.tasks) == ROUND_TASKS_MAX
    assert asked.tasks[0].key == alone.key


def test_an_empty_engine_is_chosen_before_one_at_work() -> None:
    round_ = Round(slots=2)
    plain, alone = tasks(round_, False, True)
    round_.answer(asked_of(round_, [plain]), B)
    for forbidden in ({(B, "default")}, set(), {(B, "default")}):
        asked = asked_of(round_, [plain, alone])
        assert asked.tasks[0].forbidden == forbidden, "perhaps it can run in none that is empty"
        round_.answer(asked)


def test_an_engine_is_not_kept_for_a_task_that_may_not_run_there() -> None:
    """It failed elsewhere as well, and then another node came that it did not fail on."""
    round_ = Round(slots=2)
    me = round_.node.me
    *plain, alone = tasks(round_, *[False] * 4, True)
    round_.answer(asked_of(round_, plain[:3]), me, B, C)
    round_.answer(asked_of(round_, [*plain[:3], alone]), me)
    assert round_.placement.quarantine.waits(alone.key)
    failed = replace(alone, failed_on=frozenset({(me, "default"), (B, "default")}))
    asked = asked_of(round_, [*plain[:3], failed])
    [task] = asked.tasks
    assert task.forbidden == {(me, "default"), (B, "default")}
    round_.answer(asked, C)
    assert free(asked_of(round_, [*plain, failed])) == {me: 1, B: 1, C: 0}, "that one is kept now"


@pytest.mark.parametrize("beside", [True, False])
def test_the_copy_of_a_task_that_is_merely_late_takes_no_room_from_what_never_started(*, beside: bool) -> None:
    round_ = Round(slots=2)
    late, plain, *others = tasks(round_, True, False, False)
    round_.dispatch.resting[round_.node.me] = 99.0
    round_.answer(asked_of(round_, [late]), B)
    round_.accept(late.key, B, 0.0)
    if beside:
        round_.answer(asked_of(round_, [late, plain]), C)
        round_.accept(plain.key, C, LATE_S)
    now = LATE_S + 0.1
    ready = [late, plain, *others]
    asked = round_.ask(ready, now)
    assert asked is not None
    assert beside == (late.key not in {task.key for task in asked.tasks}), "no engine is empty"
    effects = round_.answer(asked, *[C] * len(asked.tasks), now=now)
    assert late.key not in {flight.key for flight in round_.dispatch.on_node(C)}
    assert to(effects, "assign") == [C] * (1 if beside else 2), "what never started does"
    assert not round_.placement.quarantine.waits(late.key)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 3), st.data())
def test_whatever_the_solver_says_who_is_to_be_alone_is_alone_and_all_have_their_turn(
    alone: list[bool], slots: int, data: st.DataObject
) -> None:
    round_ = Round(slots=slots)
    left = {one.key: one for one in tasks(round_, *alone)}
    for _ in range(3 * len(alone)):
        if (asked := round_.ask(list(left.values()))) is not None:
            room = free(asked)
            placements = []
            for task in asked.tasks:
                able = sorted(node for node, slots in room.items() if slots and (node, "default") not in task.forbidden)
                if able:
                    node = NodeId(data.draw(st.sampled_from(able)))
                    room[node] -= 1
                    placements.append((task.key, record(task, node)))
            answered = Allocated(asked.round_number, tuple(placements), (), "m")
            round_.placement.answered(answered, round_.token, 0.0)
        for node in round_.nodes:
            inside = round_.dispatch.on_node(node)
            assert len(inside) <= 1 or not any(left[flight.key].alone for flight in inside)
        if flying := sorted(round_.dispatch.in_flight):
            key = data.draw(st.sampled_from(flying))
            round_.dispatch.done(key)
            del left[key]
    assert not left
