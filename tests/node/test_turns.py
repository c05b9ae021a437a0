"""The fair queue: whoever asks much waits for itself; nobody waits for a flood."""

import asyncio
from collections.abc import Callable

import pytest

from node.engine.waiting import AGED_S
from node.errors import KithError
from node.limits import WAITING_MAX, WAITING_OF_ONE_MAX
from node.turns import LATELY_S, Turns


class Scene:
    """Requests that end when they are told to, in a time that stands still unless moved."""

    def __init__(self, places: int = 1) -> None:
        self.now = 0.0
        self.turns = Turns(lambda: places, lambda: self.now)
        self.begun: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def ask(self, who: str, name: str, priority: int = 0, cost: float = 1.0) -> None:
        self._ends[name] = asyncio.Event()

        async def request() -> None:
            async with self.turns.of(who, priority=priority, cost=cost):
                self.begun.append(name)
                await self._ends[name].wait()

        self.tasks[name] = asyncio.create_task(request())
        await settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        assert self.turns.waiting == 0


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_caller_that_was_served_longest_ago_is_next() -> None:
    scene = Scene()
    for number in range(3):
        await scene.ask("flood", f"f{number}")
    await scene.ask("other", "o")
    await scene.end("f0")
    assert scene.begun == ["f0", "o"], "not f1, which came before it"
    await scene.end("o")
    assert scene.begun == ["f0", "o", "f1"]
    await scene.close()


async def test_a_caller_alone_has_all_places() -> None:
    scene = Scene(places=3)
    for number in range(4):
        await scene.ask("alone", f"a{number}")
    assert scene.begun == ["a0", "a1", "a2"]
    await scene.close()


async def test_a_place_is_kept_for_others_that_asked_lately() -> None:
    scene = Scene(places=3)
    await scene.ask("other", "o")
    await scene.end("o")
    for number in range(4):
        await scene.ask("flood", f"f{number}")
    assert scene.begun == ["o", "f0", "f1"]
    await scene.ask("other", "o2")
    assert scene.begun[-1] == "o2", "at once"
    await scene.end("f0")
    assert scene.begun[-1] == "f2"
    await scene.end("o2")
    scene.now += LATELY_S + 1
    await scene.end("f1")
    await scene.ask("flood", "f4")
    assert scene.begun[-2:] == ["f3", "f4"], "the other does not ask any more"
    await scene.close()


@pytest.fixture
def live_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Scene], None]:
    """Has the event loop live in a scene's time, so that its timers fire when that is moved."""

    def patch(scene: Scene) -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: scene.now)

    return patch


async def test_a_place_that_was_kept_is_given_when_that_ends_though_nothing_happens(
    live_in: Callable[[Scene], None],
) -> None:
    scene = Scene(places=3)
    live_in(scene)
    await scene.ask("b", "b0")
    await scene.end("b0")
    scene.now += 4.0
    await scene.ask("c", "c0")
    await scene.end("c0")
    for number in range(3):
        await scene.ask("a", f"a{number}")
    scene.now = LATELY_S - 1.0
    await settle()
    assert scene.begun == ["b0", "c0", "a0"], "the other two are kept"
    scene.now = LATELY_S
    await settle()
    assert scene.begun[2:] == ["a0", "a1"], "one is still kept"
    scene.now = LATELY_S + 4.0
    await settle()
    assert scene.begun[2:] == ["a0", "a1", "a2"]
    await scene.close()


async def test_whoever_is_kept_a_place_and_asks_again_is_kept_it_for_longer(live_in: Callable[[Scene], None]) -> None:
    scene = Scene(places=2)
    live_in(scene)
    await scene.ask("b", "b0")
    await scene.end("b0")
    for number in range(2):
        await scene.ask("a", f"a{number}")
    scene.now = 6.0
    await scene.ask("b", "b1")
    await scene.end("b1")
    scene.now = LATELY_S
    await settle()
    assert scene.begun == ["b0", "a0", "b1"]
    scene.now = LATELY_S + 6.0
    await settle()
    assert scene.begun[3:] == ["a1"]
    await scene.close()


async def test_no_timer_is_left_where_nothing_waits(live_in: Callable[[Scene], None]) -> None:
    scene = Scene(places=2)
    live_in(scene)
    await scene.ask("b", "b0")
    await scene.end("b0")
    for number in range(3):
        await scene.ask("a", f"a{number}")
    assert len(timers()) == 1
    scene.tasks["a2"].cancel()
    await settle()
    assert len(timers()) == 1, "a1 waits"
    scene.tasks["a1"].cancel()
    await settle()
    assert timers() == []
    await scene.ask("a", "a3")
    assert len(timers()) == 1
    await scene.end("a0")
    assert scene.begun == ["b0", "a0", "a3"]
    assert timers() == []
    await scene.close()


def timers() -> list[asyncio.TimerHandle]:
    """What the running event loop would still do later."""
    return [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]


async def test_the_most_urgent_is_next_and_of_equals_the_caller_who_had_the_least() -> None:
    scene = Scene()
    await scene.ask("a", "running")
    await scene.ask("a", "job")
    await scene.ask("a", "long", 1, cost=10.0)
    await scene.ask("a", "short", 1)
    await scene.ask("b", "b0", 1)
    await scene.ask("b", "b1", 1)
    for name in ("running", "long", "b0", "b1", "short"):
        await scene.end(name)
    assert scene.begun == ["running", "long", "b0", "b1", "short", "job"]
    await scene.close()


async def test_urgent_requests_without_end_leave_others_the_place_that_is_kept_for_them() -> None:
    scene = Scene(places=2)
    for number in range(6):
        await scene.ask("flood", f"f{number}", 1)
    await scene.ask("other", "o0")
    await scene.ask("other", "o1")
    await scene.end("f0")
    assert scene.begun == ["f0", "f1", "o0"]
    await scene.end("o0")
    assert scene.begun[3:] == ["o1"], "it has none while the flood has one"
    await scene.close()


async def test_what_is_not_urgent_is_after_a_while_where_there_is_a_single_place() -> None:
    scene = Scene()
    for number in range(6):
        await scene.ask("flood", f"f{number}", 1)
    await scene.ask("other", "o")
    await scene.end("f0")
    await scene.end("f1")
    assert scene.begun == ["f0", "f1", "f2"], "more urgent"
    scene.now += AGED_S
    await scene.ask("flood", "f6", 1)
    await scene.end("f2")
    assert scene.begun[3:] == ["o"]
    await scene.close()


async def test_too_many_are_told_when_to_come_again() -> None:
    scene = Scene()
    for number in range(WAITING_OF_ONE_MAX + 1):
        await scene.ask("flood", f"f{number}")
    with pytest.raises(KithError) as caught:
        async with scene.turns.of("flood"):
            pass
    assert caught.value.code == "busy"
    assert caught.value.retry_after_s > 0
    await scene.ask("other", "o")
    assert not scene.tasks["o"].done(), "another may still wait"
    await scene.close()


async def test_the_queue_has_an_end_for_all_together() -> None:
    scene = Scene()
    for number in range(WAITING_MAX + 1):
        await scene.ask(f"caller {number}", f"{number}")
    with pytest.raises(KithError):
        async with scene.turns.of("one more"):
            pass
    await scene.close()


async def test_a_request_that_is_cancelled_gives_back_its_turn_or_its_place_in_the_queue() -> None:
    scene = Scene()
    await scene.ask("a", "a0")
    await scene.ask("a", "a1")
    await scene.ask("b", "b0")
    scene.tasks["b0"].cancel()
    await settle()
    assert scene.turns.waiting == 1
    scene.tasks["a0"].cancel()
    await settle()
    assert scene.begun == ["a0", "a1"]
    await scene.close()


async def test_a_turn_that_comes_in_the_moment_of_a_cancellation_is_passed_on() -> None:
    scene = Scene()
    await scene.ask("a", "a0")
    await scene.ask("b", "b0")
    await scene.ask("c", "c0")
    scene._ends["a0"].set()
    await asyncio.sleep(0)  # a0 wakes, gives its turn to b0, which has not run yet
    scene.tasks["b0"].cancel()
    await settle()
    assert "c0" in scene.begun
    await scene.close()


async def test_a_turn_is_not_given_to_one_that_leaves_in_the_same_moment() -> None:
    scene = Scene()
    await scene.ask("a", "a0")
    await scene.ask("b", "b0")
    await scene.ask("c", "c0")
    scene._ends["a0"].set()
    scene.tasks["b0"].cancel()  # a0 wakes first, and b0 knows nothing yet
    await settle()
    assert scene.begun == ["a0", "c0"]
    assert scene.tasks["a0"].exception() is None
    await scene.close()


async def test_no_turn_in_time_is_too_late_and_the_next_one_gets_it() -> None:
    scene = Scene()
    await scene.ask("a", "a0")
    with pytest.raises(KithError) as caught:
        async with scene.turns.of("b", within_s=0.01):
            pass
    assert caught.value.code == "too-late"
    assert scene.turns.waiting == 0
    await scene.ask("c", "c0")
    scene.now += 2.0
    await scene.end("a0")
    assert scene.begun == ["a0", "c0"]
    await scene.end("c0")
    async with scene.turns.of("b", within_s=5.0) as waited_s:
        assert waited_s == 0.0
    await scene.close()


async def test_callers_that_are_gone_are_forgotten() -> None:
    scene = Scene()
    for number in range(10 * WAITING_MAX):
        await scene.ask(f"{number}", f"{number}")
        await scene.end(f"{number}")
    assert len(scene.turns._callers) <= 2 * WAITING_MAX + 1
    await scene.close()
