"""What the watchdog makes of answers, silence and standing still."""

from dataclasses import dataclass, field

import pytest

from node.engine.watchdog import (
    HANG_STEPS,
    LOOK_S,
    OWN_PAUSE_S,
    REST_S,
    SILENT_S,
    STILL_S,
    STILL_STEPS,
    Verdict,
    Watchdog,
)


@dataclass
class Watched:
    """A watchdog that looks every LOOK_S; `verdicts` are (seconds since the start, verdict), the changes only."""

    dog: Watchdog
    now: float = 1000.0
    verdicts: list[tuple[float, Verdict]] = field(default_factory=list)

    def run(self, seconds: float, *, answers: bool = True, busy: bool = True, moves: bool = True) -> None:
        for _ in range(round(seconds / LOOK_S)):
            self.look(LOOK_S, answers=answers, busy=busy, moves=moves)

    def look(self, after: float, *, answers: bool = True, busy: bool = True, moves: bool = True) -> None:
        self.now += after
        steps = self.dog.steps + (1 if moves else 0)
        verdict = self.dog.look(self.now, answers, busy, steps)
        if not self.verdicts or self.verdicts[-1][1] is not verdict:
            self.verdicts.append((self.now - 1000.0, verdict))


def watched(step_s: float = 0.0) -> Watched:
    return Watched(Watchdog(1000.0, frozen_s=20.0, hang_s=60.0, step_s=step_s))


def test_an_engine_that_answers_and_moves_or_rests_is_well() -> None:
    one = watched()
    one.run(200, moves=True)
    one.run(200, busy=False, moves=False)
    assert one.verdicts == [(LOOK_S, Verdict.MOVES)]


@pytest.mark.parametrize("busy", [True, False])
def test_silence_is_a_stall_after_two_seconds_and_the_end_after_twenty(busy: bool) -> None:
    one = watched()
    one.run(10, busy=busy)
    one.run(30, answers=False, busy=busy)
    assert one.verdicts[1:] == [(10 + SILENT_S, Verdict.STALLED), (30.0, Verdict.HUNG)]


def test_an_engine_that_freezes_while_it_rests_is_found_out_as_soon() -> None:
    """It is asked less often then, and more often once an answer is late."""
    assert REST_S + LOOK_S < OWN_PAUSE_S
    one = watched()
    one.look(REST_S, busy=False)
    one.look(REST_S + LOOK_S, answers=False, busy=False)
    while one.verdicts[-1][1] is Verdict.MOVES:
        one.look(LOOK_S, answers=False, busy=False)
    assert one.verdicts[-1][0] - REST_S < SILENT_S + LOOK_S


def test_an_engine_that_answers_again_moves_again() -> None:
    one = watched()
    one.run(15, answers=False)
    one.run(5)
    assert [verdict for _, verdict in one.verdicts] == [Verdict.MOVES, Verdict.STALLED, Verdict.MOVES]


def test_standing_still_while_it_answers_counts_later() -> None:
    one = watched()
    one.run(1)
    one.run(70, moves=False)
    assert one.verdicts[1:] == [(1 + STILL_S, Verdict.STALLED), (61.0, Verdict.HUNG)]


def test_a_slow_machine_may_take_long_over_one_step() -> None:
    one = watched(step_s=30.0)
    one.run(1)
    one.run(30 * HANG_STEPS + 10, moves=False)
    assert one.verdicts[1:] == [(1 + 30 * STILL_STEPS, Verdict.STALLED), (1 + 30 * HANG_STEPS, Verdict.HUNG)]


def test_a_thread_that_prepares_requests_is_watched_for_itself() -> None:
    one = watched()
    verdicts = []
    for number in range(int(70 / LOOK_S)):
        now = 1000.0 + LOOK_S * (number + 1)
        # The others are served, and steps are made, while one request is never ready.
        verdicts.append(one.dog.look(now, True, True, number, preparing=True, prepared=min(number, 4)))
    moving = int((STILL_S + 1) / LOOK_S)
    assert set(verdicts[:moving]) == {Verdict.MOVES}
    assert verdicts[moving] is Verdict.STALLED
    assert verdicts.index(Verdict.HUNG) == int(61 / LOOK_S)


def test_a_thread_with_nothing_to_prepare_does_not_hang() -> None:
    one = watched()
    for number in range(400):
        assert one.dog.look(1000.0 + LOOK_S * (number + 1), True, False, 3, False, 7) is Verdict.MOVES


@pytest.mark.parametrize("pause", [5.0, 3600.0])
def test_a_pause_of_the_daemon_is_not_the_engines_fault(pause: float) -> None:
    one = watched()
    one.run(5)
    one.look(pause, answers=False)
    one.run(0.5, answers=False)
    one.run(5)
    assert one.verdicts == [(LOOK_S, Verdict.MOVES)]
