"""One answer from many agents: late, silent, gone, doubted; nothing is told twice and nothing is left out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.answer import (
    BUSY,
    LATE_MIN_S,
    MOVES_MAX,
    REASONS_CHARACTERS_MAX,
    STALL_MIN_S,
    Choice,
    State,
)
from node.errors import NO_ROOM
from tests.mesh.answers import OTHER, WORDS, A, B, C, Event, World, delta, finished, started


def test_an_answer_without_trouble_is_passed_on_as_it_is() -> None:
    world = World()
    world.begin()
    events = [started(), delta(0), delta(1, 2), finished(3)]
    world.say(1, *events, at=0.2)
    assert world.told == events
    assert world.answer.state is State.FINISHED
    assert (len(world.asked), world.dropped, world.asked[0].request) == (1, [], world.request)


def test_the_death_of_the_agent_is_a_move_and_the_next_goes_on_from_the_tokens() -> None:
    world = World()
    world.begin()
    world.say(1, started(), delta(0), delta(1, 2), at=1.0)
    world.break_(1, 1.5)
    assert world.answer.state is State.MOVING
    ask = world.asked[1]
    assert (ask.choice, ask.why, list(ask.request.continue_tokens)) == (B, "gone", [0, 1, 2])
    assert (ask.request.max_tokens, list(ask.request.stop), ask.request.priority) == (9, ["x"], 1)
    world.say(2, started(23, 0), delta(3), finished(1), at=2.0)
    assert world.text == "w0 w1 w2 w3 "
    kinds = [event.WhichOneof("event") for event in world.told]
    assert kinds == ["started", "delta", "delta", "delta", "finished"]
    assert (world.usage.prompt_tokens, world.usage.cached_tokens, world.usage.completion_tokens) == (7, 3, 4)
    assert world.usage.prefill_seconds == pytest.approx(1.0 + 0.5)


def test_another_vocabulary_goes_on_from_the_text_and_so_does_all_after_it() -> None:
    world = World(choices=(A, OTHER, B))
    world.begin()
    world.say(1, delta(0), at=1.0)
    world.choices = (A, OTHER)
    world.break_(1, 1.1)
    assert world.asked[1].request.continue_from == "w0 "
    assert not world.asked[1].request.continue_tokens
    world.say(2, delta(1), at=1.2)
    world.choices = (A, OTHER, B)
    world.break_(2, 1.3)
    assert (world.asked[2].choice, world.asked[2].request.continue_from) == (B, "w0 w1 ")


def test_without_token_ids_the_next_goes_on_from_the_text() -> None:
    world = World()
    world.begin()
    world.say(1, Event(delta=Event.Delta(text="w0 ", tokens=1)), at=1.0)
    world.break_(1, 1.1)
    assert (world.asked[1].request.continue_from, list(world.asked[1].request.continue_tokens)) == ("w0 ", [])


def test_what_the_client_began_itself_is_kept_in_every_move() -> None:
    world = World(choices=(A, B, C))
    world.request.continue_from = "Once "
    world.begin()
    world.break_(1, 0.1)
    assert world.asked[1].request.continue_from == "Once ", "nothing was told yet"
    world.say(2, delta(0, 1), at=0.2)
    world.break_(2, 0.3)
    rest = world.asked[2].request
    assert (rest.continue_from, list(rest.continue_tokens), rest.max_tokens) == ("Once w0 w1 ", [], 10)
    by_tokens = World(choices=(A, B))
    by_tokens.request.continue_tokens.extend([7, 8])
    by_tokens.begin()
    by_tokens.say(1, delta(0), at=0.1)
    by_tokens.break_(1, 0.2)
    rest = by_tokens.asked[1].request
    assert (list(rest.continue_tokens), rest.continue_from) == ([7, 8, 0], "")


def test_tokens_of_the_client_go_to_their_own_vocabulary_only() -> None:
    world = World(choices=(A, OTHER))
    world.request.continue_tokens.extend([5])
    world.begin()
    world.break_(1, 0.1)
    assert world.failed is not None
    assert len(world.asked) == 1


def test_a_late_first_token_is_hedged_once_and_the_loser_dropped() -> None:
    world = World(budget=5)
    world.begin()
    world.tick(LATE_MIN_S - 0.1)
    assert len(world.asked) == 1
    world.tick(LATE_MIN_S)
    world.tick(2 * LATE_MIN_S)
    world.tick(9 * LATE_MIN_S)
    assert [(ask.choice, ask.why) for ask in world.asked] == [(A, "first"), (B, "late")]
    assert world.answer.hedges == 1
    world.say(2, started(9, 0), delta(0), at=20.0)
    assert world.dropped == [1]
    world.say(1, delta(0), finished(1), at=20.0)
    assert world.text == "w0 "
    assert world.told[0].started.prompt_tokens == 9


def test_the_first_may_win_the_race() -> None:
    world = World()
    world.begin()
    world.tick(LATE_MIN_S)
    world.say(1, delta(0), finished(1), at=1.2)
    assert (world.dropped, world.text) == ([2], "w0 ")


def test_a_slow_agent_is_late_by_its_own_measure() -> None:
    slow = Choice("a", 4.0, 0.05)
    world = World(choices=(slow, B))
    world.begin()
    world.tick(7.9)
    assert len(world.asked) == 1
    world.tick(8.0)
    assert len(world.asked) == 2


def test_without_budget_nothing_is_hedged_until_there_is_some() -> None:
    world = World(budget=0)
    world.begin()
    world.tick(LATE_MIN_S)
    assert len(world.asked) == 1
    world.budget = 1
    assert world.answer.wake_at < 2 * LATE_MIN_S
    world.tick(world.answer.wake_at)
    assert len(world.asked) == 2


def test_a_stream_that_stands_still_is_gone_on_with_elsewhere() -> None:
    world = World()
    world.begin()
    world.say(1, delta(0), at=0.1)
    world.say(1, delta(1), at=0.2)
    world.tick(0.2 + STALL_MIN_S - 0.01)
    assert len(world.asked) == 1
    world.tick(0.21 + STALL_MIN_S)
    assert (world.asked[1].why, list(world.asked[1].request.continue_tokens)) == ("stalled", [0, 1])
    world.say(2, delta(2), finished(1), at=2.5)
    assert (world.dropped, world.text) == ([1], "w0 w1 w2 ")


def test_a_stream_that_moves_again_is_kept() -> None:
    world = World()
    world.begin()
    world.say(1, delta(0), at=0.1)
    world.tick(0.2 + STALL_MIN_S)
    world.say(1, delta(1), at=2.0)
    assert world.dropped == [2]
    world.say(2, delta(1), at=2.0)
    assert world.text == "w0 w1 "
    world.tick(2.0 + 3 * STALL_MIN_S)
    assert len(world.asked) == 2, "it is known now to pause for longer"


def test_stalls_that_pass_are_no_moves_so_a_death_after_many_of_them_is_one() -> None:
    world = World(budget=100, deadline=1e9)
    world.begin()
    now, pause = 0.1, 2 * STALL_MIN_S
    for word in range(1 + MOVES_MAX):
        world.say(1, delta(word), at=now)
        now += pause
        pause *= 5  # each longer than what is known of it by now
        world.tick(now)
    assert len(world.asked) == 2 + MOVES_MAX
    world.say(1, delta(1 + MOVES_MAX), at=now)
    world.break_(1, now)
    assert world.failed is None
    assert world.asked[-1].why == "gone"


def test_an_answer_at_which_agents_stand_still_one_after_the_other_is_given_up() -> None:
    many = [Choice(f"n{number}", 0.1, 0.1) for number in range(20)]
    world = World(choices=many, budget=100)
    world.begin()
    now = 0.1
    for word in range(8):
        world.say(len(world.asked), delta(word), at=now)
        now += 2 * STALL_MIN_S
        world.tick(now)
    assert len(world.asked) == 1 + MOVES_MAX


def test_who_fails_while_another_was_asked_already_counts_too() -> None:
    many = [Choice(f"n{number}", 0.1, 0.1) for number in range(20)]
    world = World(choices=many, budget=100)
    world.begin()
    now = 0.1
    for number in range(1, 1 + MOVES_MAX):
        world.say(number, delta(number), at=now)
        now += 2 * STALL_MIN_S
        world.tick(now)
        world.break_(number, now)
    world.say(1 + MOVES_MAX, delta(0), at=now)
    world.break_(1 + MOVES_MAX, now)
    assert world.failed is not None


def test_a_doubted_agent_is_left_when_it_is_silent_and_only_then() -> None:
    world = World(budget=0)
    world.begin()
    world.say(1, delta(0), at=0.1)
    world.tick(0.2, "a")
    assert len(world.asked) == 1, "it has just spoken"
    world.tick(0.4, "b")
    assert len(world.asked) == 1
    world.tick(0.4, "a")
    assert world.picks == 1, "each choice costs a look at all agents"
    assert (world.dropped, world.asked[1].choice) == ([1], B)


def test_doubt_alone_ends_no_answer() -> None:
    world = World(choices=(A,))
    world.begin()
    world.say(1, delta(0), at=0.1)
    world.tick(5.0, "a")
    world.say(1, delta(1), finished(2), at=6.0)
    assert world.text == "w0 w1 "


def test_nobody_left_is_said_and_what_was_sent_stays() -> None:
    world = World(choices=(A, B))
    world.begin()
    world.say(1, delta(0), at=0.1)
    world.break_(1, 0.2)
    world.break_(2, 0.3, code="busy")
    assert world.failed is not None
    assert world.failed.code == "node-unreachable"
    assert "1 tokens of the answer were sent" in world.failed.message
    assert world.text == "w0 "


def test_a_request_that_any_agent_refuses_is_not_sent_round() -> None:
    world = World()
    world.begin()
    world.break_(1, 0.1, final=True, code="bad-request")
    assert world.failed is not None
    assert (world.failed.code, len(world.asked)) == ("bad-request", 1)


def test_a_successor_that_refuses_is_not_the_end() -> None:
    world = World()
    world.begin()
    world.say(1, delta(0), at=0.1)
    world.break_(1, 0.2)
    world.break_(2, 0.3, final=True, code="bad-request")
    assert world.asked[2].choice == C


def test_where_all_refuse_the_reasons_of_all_are_told() -> None:
    world = World()
    world.begin()
    world.break_(1, 0.1, code="prompt-too-long", why="it holds 512 tokens")
    world.break_(2, 0.2, code="agent-refused", why="no seed")
    assert [ask.choice for ask in world.asked] == [A, B, C]
    world.break_(3, 0.3, code="agent-refused", why="no seed")
    assert world.failed is not None
    assert (world.failed.code, world.failed.message) == ("agent-refused", "no seed; it holds 512 tokens")
    alone = World(choices=[A])
    alone.begin()
    alone.break_(1, 0.1, code="prompt-too-long", why="it holds 512 tokens")
    assert alone.failed is not None
    assert (alone.failed.code, alone.failed.message) == ("prompt-too-long", "it holds 512 tokens")


def test_that_somebody_is_busy_is_told_before_that_another_is_gone() -> None:
    """The first is worth waiting for, and its client waits by itself."""
    world = World(choices=[A, B])
    world.begin()
    world.break_(1, 0.1, code="engine-failed", why="it is gone")
    world.break_(2, 0.2, code="busy", why="all places are taken")
    assert world.failed is not None
    assert world.failed.code == "busy"
    assert set(BUSY) == NO_ROOM


def test_refusals_are_no_moves_so_the_one_agent_that_can_do_it_is_asked() -> None:
    many = [Choice(f"n{number}", 0.1, 0.1) for number in range(MOVES_MAX + 5)]
    world = World(choices=many)
    world.begin()
    for attempt in range(1, len(many)):
        world.break_(attempt, 0.1 * attempt, code="agent-refused", why="no seed " * 30)
    assert world.failed is None
    world.say(len(many), started(), delta(1), finished(), at=3.0)
    assert world.text == WORDS[1]
    refused = World(choices=many)
    refused.begin()
    for attempt in range(1, len(many) + 1):
        refused.break_(attempt, 0.1 * attempt, code="agent-refused", why=f"{attempt} " * 100)
    assert refused.failed is not None
    assert len(refused.failed.message) <= REASONS_CHARACTERS_MAX


def test_who_may_still_do_it_later_is_told_of_before_those_that_refuse() -> None:
    world = World(choices=[A, B])
    world.begin()
    world.break_(1, 0.1, code="agent-refused", why="no seed")
    world.break_(2, 0.2, code="busy", why="many wait")
    assert world.failed is not None
    assert (world.failed.code, world.failed.message) == ("busy", "many wait")


def test_an_answer_that_brings_agents_down_is_given_up() -> None:
    many = [Choice(f"n{number}", 0.1, 0.1) for number in range(20)]
    world = World(choices=many)
    world.begin()
    for attempt in range(1, 20):
        world.break_(attempt, 0.1 * attempt)
    assert len(world.asked) == 1 + MOVES_MAX
    assert world.failed is not None


def test_one_that_died_before_it_could_say_that_it_was_done_is_finished() -> None:
    world = World()
    world.request.max_tokens = 2
    world.begin()
    world.say(1, started(), delta(0, 1), at=0.1)
    world.break_(1, 0.2)
    assert (world.told[-1].finished.reason, world.usage.completion_tokens) == ("length", 2)
    assert len(world.asked) == 1


def test_a_node_that_stops_hands_its_answer_on() -> None:
    world = World()
    world.begin()
    world.say(1, delta(0), finished(1, "cancelled"), at=0.1)
    assert world.asked[1].choice == B


def test_the_deadline_ends_it_everywhere() -> None:
    world = World()
    world.begin()
    world.tick(LATE_MIN_S)
    world.tick(100.0)
    assert world.failed is not None
    assert (world.failed.code, sorted(world.dropped)) == ("timed-out", [1, 2])
    assert world.answer.state is State.FINISHED
    world.say(1, delta(0), at=101.0)
    assert not world.told


def test_a_slow_client_makes_nobody_late() -> None:
    world = World()
    world.begin()
    world.say(1, delta(0), at=0.1)
    world.answer.waited(50.0)
    world.tick(50.2)
    assert len(world.asked) == 1
    world.say(1, delta(1), at=50.3)
    world.tick(50.3 + STALL_MIN_S)
    assert len(world.asked) == 2, "the client's pause is not taken for the agent's"


def test_usefulness_counts_from_the_beginning() -> None:
    world = World()
    world.request.useful_seconds = 10.0
    world.begin()
    world.break_(1, 4.0)
    assert world.asked[1].request.useful_seconds == pytest.approx(6.0)
    world.say(2, delta(0), at=9.0)
    world.break_(2, 20.0)
    assert world.asked[2].request.useful_seconds == 0.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["token", "token", "token", "end", "error", "stall", "doubt"]),
            st.floats(0.001, 4.0),
            st.integers(0, 1),
        ),
        max_size=60,
    ),
    st.integers(0, 3),
    st.booleans(),
)
def test_whatever_happens_the_text_is_whole_and_told_once(
    script: list[tuple[str, float, int]], budget: int, ids: bool
) -> None:
    """Agents that all write the same words, in any order of events."""
    vocabularies = [b"v", b"v", b"w", b"", b"v"]
    world = World(
        choices=[Choice(f"n{n}", 0.1 * n, 0.05, "m", vocabulary) for n, vocabulary in enumerate(vocabularies)],
        budget=budget,
        deadline=60.0,
    )
    now = 0.0
    world.begin(now)
    at: dict[int, int] = {}  # attempt → its next word
    for what, after, which in script:
        now += after
        for ask in world.asked:
            rest = ask.request
            begun = len(rest.continue_tokens) or len(rest.continue_from.split())
            assert rest.max_tokens == len(WORDS) - begun
            at.setdefault(ask.attempt, begun)
        number = [ask.attempt for ask in world.asked][-1 - which :][0]
        ended = world.answer.state is State.FINISHED
        before = list(world.told)
        if what == "token" and at[number] < len(WORDS):
            event = delta(at[number])
            if not ids:
                event.delta.ClearField("token_ids")
            at[number] += 1
            world.say(number, event, at=now)
        elif what == "end" and at[number] == len(WORDS):
            world.say(number, finished(len(WORDS)), at=now)
        elif what == "error":
            world.break_(number, now)
        elif what in ("stall", "doubt"):
            world.tick(now, *(choice.agent for choice in world.answer.live.values() if what == "doubt"))
        assert not ended or world.told == before
        assert "".join(WORDS).startswith(world.text)
        assert world.answer.hedges <= 1
        assert len(world.answer.live) <= 2
    if world.told and world.told[-1].HasField("finished"):
        assert world.text == "".join(WORDS)
    world.tick(60.0)
    assert world.answer.state is State.FINISHED
    assert not world.answer.live
