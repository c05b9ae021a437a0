"""Who is next."""

import asyncio

import pytest

from node.engine.hosted.places import Places
from node.errors import KithError


class Queue:
    """Requests by name; each holds its place until it is told to go."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.began: list[str] = []
        self.go: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, priority: int = 0, owner: str = "", cost: float = 1.0) -> None:
        self.go[name] = asyncio.Event()
        self.tasks[name] = asyncio.ensure_future(self._hold(name, priority, owner, cost))
        await settle()

    async def _hold(self, name: str, priority: int, owner: str, cost: float) -> None:
        async with self.places.one(priority, owner=owner, cost=cost):
            self.began.append(name)
            await self.go[name].wait()

    async def end(self, name: str) -> None:
        self.go[name].set()
        await self.tasks[name]
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_priority_then_arrival() -> None:
    queue = Queue(Places(1))
    for name, priority in (("a", 0), ("b", 0), ("c", 1), ("d", 0)):
        await queue.ask(name, priority)
    for name in ("a", "c", "b", "d"):
        assert queue.began[-1] == name
        await queue.end(name)
    assert queue.began == ["a", "c", "b", "d"]


async def test_of_equals_the_owner_who_had_the_least() -> None:
    queue = Queue(Places(1))
    for name, owner, cost in (("a", "x", 10.0), ("b", "x", 1.0), ("c", "y", 1.0), ("d", "y", 1.0)):
        await queue.ask(name, owner=owner, cost=cost)
    for name in ("a", "c", "d", "b"):
        assert queue.began[-1] == name
        await queue.end(name)


async def test_who_leaves_takes_no_place() -> None:
    queue = Queue(Places(1))
    for name in ("a", "b", "c"):
        await queue.ask(name)
    queue.tasks["b"].cancel()
    await settle()
    assert len(queue.places._waiting) == 1
    await queue.end("a")
    assert queue.began == ["a", "c"]
    queue.tasks["c"].cancel()
    await settle()
    await queue.ask("d")
    assert queue.began == ["a", "c", "d"]
    await queue.end("d")


async def test_place_given_to_one_that_leaves_at_that_moment_is_passed_on() -> None:
    queue = Queue(Places(1))
    for name in ("a", "b", "c"):
        await queue.ask(name)
    queue.go["a"].set()
    await asyncio.sleep(0)  # a has ended and b was given its place, but b has not run
    queue.tasks["b"].cancel()
    await settle()
    assert queue.began == ["a", "c"]
    await queue.end("c")


async def test_turn_that_comes_too_late_is_refused_and_given_back() -> None:
    places = Places(1)

    async def late() -> None:
        async with places.one(useful_s=1e-9):
            raise AssertionError("it went on")

    with pytest.raises(KithError, match="for its turn") as caught:
        await late()
    assert caught.value.code == "too-late"
    async with asyncio.timeout(5), places.one():
        pass
