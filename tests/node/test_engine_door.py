"""The engine's door before a real engine: the wait for a turn is part of a request's time."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from mesh.wire import engine_pb2
from node.engine_door import EngineDoor
from node.errors import KithError
from node.limits import PRIORITY_MAX, WAITING_OF_ONE_MAX
from tests.node.engine.engines import PATIENCE, ask, running

SLOW: dict[str, Any] = {"slots": 1, "echo_tokens_per_s": 50.0}
WORDS = " ".join(f"word{number}" for number in range(200))


async def told(door: EngineDoor, who: str, request: engine_pb2.GenerateRequest) -> engine_pb2.GenerateEvent.Finished:
    events = [event async for event in door.generate(who, request)]
    return events[-1].finished


@contextlib.asynccontextmanager
async def taken(door: EngineDoor) -> Any:
    """While another caller's answer runs in the only place."""
    async with contextlib.aclosing(door.generate("a", ask(WORDS))) as events:
        await anext(events)
        yield


async def test_what_is_useful_for_a_moment_only_does_not_wait_for_its_turn() -> None:
    async with running(**SLOW) as watched:
        door = EngineDoor(watched.engine)
        request = ask("Hello there.")
        request.useful_seconds = 0.05
        score = engine_pb2.ScoreRequest(prompt="a", continuations=["b"], useful_seconds=0.05)
        embed = engine_pb2.EmbedRequest(texts=["a"], useful_seconds=0.05)
        async with taken(door), asyncio.timeout(PATIENCE):
            for asked in (told(door, "b", request), door.score("b", score), door.embed("b", embed)):
                with pytest.raises(KithError) as caught:
                    await asked
                assert caught.value.code == "too-late"
        assert (await told(door, "b", request)).reason == "stop"


async def test_the_engine_hears_on_whose_behalf_and_how_urgent_a_question_is() -> None:
    async with running() as watched:
        door = EngineDoor(watched.engine)
        given: list[engine_pb2.ScoreRequest | engine_pb2.EmbedRequest] = []
        score, embed = watched.engine.score, watched.engine.embed

        async def noted_score(request: engine_pb2.ScoreRequest) -> engine_pb2.ScoreReply:
            given.append(request)
            return await score(request)

        async def noted_embed(request: engine_pb2.EmbedRequest) -> engine_pb2.EmbedReply:
            given.append(request)
            return await embed(request)

        watched.engine.score = noted_score  # type: ignore[method-assign]
        watched.engine.embed = noted_embed  # type: ignore[method-assign]
        who: dict[str, Any] = {"owner": "somebody else", "priority": 9, "useful_seconds": 500.0}
        asked: list[Any] = [
            engine_pb2.ScoreRequest(prompt="a", continuations=["b"], **who),
            engine_pb2.EmbedRequest(texts=["a"], **who),
        ]
        await door.score("b", asked[0])
        await door.embed("b", asked[1])
        assert [(request.owner, request.priority) for request in given] == [("b", PRIORITY_MAX)] * 2
        assert all(0 < request.useful_seconds <= 500.0 for request in given)
        assert [request.owner for request in asked] == ["somebody else"] * 2, "as they were"


async def test_a_question_of_a_dialogue_has_its_turn_before_jobs_that_came_first() -> None:
    async with running(**SLOW) as watched:
        door = EngineDoor(watched.engine)
        order: list[str] = []

        async def score(name: str, priority: int) -> None:
            await door.score(name, engine_pb2.ScoreRequest(prompt="a", continuations=["b"], priority=priority))
            order.append(name)

        async with taken(door):
            asked = [asyncio.create_task(score(name, priority)) for name, priority in (("job", 0), ("panel", 1))]
            await asyncio.sleep(0)
            assert door.turns.waiting == 2
        await asyncio.gather(*asked)
        assert order == ["panel", "job"]


async def test_the_wait_for_a_turn_is_told_as_waiting_and_taken_from_the_usefulness() -> None:
    async with running(**SLOW) as watched:
        door = EngineDoor(watched.engine)
        given: list[float] = []
        generate = watched.engine.generate

        def noted(request: engine_pb2.GenerateRequest) -> Any:
            given.append(request.useful_seconds)
            return generate(request)

        watched.engine.generate = noted  # type: ignore[method-assign]
        request = ask("Hello there.")
        request.useful_seconds = 500.0
        async with taken(door):
            second = asyncio.create_task(told(door, "b", request))
            async with asyncio.timeout(PATIENCE):
                while not door.turns.waiting:  # noqa: ASYNC110 - a queue tells nobody
                    await asyncio.sleep(0)
            await asyncio.sleep(0.05)  # what is measured
        finished = await second
        assert finished.usage.queue_seconds > 0.05
        assert given[0] == 0.0
        assert 400.0 < given[1] < 499.96
        vectors = await door.embed("b", engine_pb2.EmbedRequest(texts=["x"]))
        assert vectors.usage.queue_seconds < finished.usage.queue_seconds


async def test_who_does_not_read_its_answer_keeps_nobody_waiting_once_it_is_written() -> None:
    """A client that stops reading, and stays, would hold the only place for as long as its connection lives."""
    async with running(slots=1, echo_tokens_per_s=2000.0) as watched:
        door = EngineDoor(watched.engine)
        async with contextlib.aclosing(door.generate("a", ask(WORDS))) as events:
            assert (await anext(events)).HasField("started")
            async with asyncio.timeout(PATIENCE):
                assert (await told(door, "b", ask("Hello there."))).reason == "stop"
            assert door.turns.running == 0
            text = "".join([event.delta.text async for event in events])
        assert text == WORDS, "what was written meanwhile is still there"


async def test_an_answer_that_is_left_ends_at_the_engine_and_gives_its_place_back() -> None:
    async with running(**SLOW) as watched:
        door = EngineDoor(watched.engine)
        async with taken(door):
            assert door.turns.running == 1
        assert door.turns.running == 0
        async with asyncio.timeout(PATIENCE):
            while (await watched.engine.stats()).slots_busy:
                pass
        assert (await watched.engine.stats()).tokens_generated < 200


async def test_what_ends_an_answer_comes_after_what_was_said() -> None:
    async with running(**SLOW) as watched:
        door = EngineDoor(watched.engine)
        events = door.generate("a", ask(WORDS))
        await anext(events)
        await anext(events)
        await watched.engine.stop()
        with pytest.raises(KithError) as caught:
            async for _ in events:
                pass
        assert caught.value.code == "engine-gone"
        assert door.turns.running == 0


@pytest.mark.parametrize("cancelled", [True, False])
async def test_who_waits_for_an_engine_that_ends_without_a_word_is_told(cancelled: bool) -> None:
    """As where a model is being loaded when the node stops."""
    async with running() as watched:
        door = EngineDoor(watched.engine)

        async def ends(request: engine_pb2.GenerateRequest) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
            if cancelled:
                raise asyncio.CancelledError
            if request.stop:  # never: it is a generator by this
                yield engine_pb2.GenerateEvent()

        watched.engine.generate = ends  # type: ignore[method-assign]
        with pytest.raises(KithError) as caught:
            async with asyncio.timeout(PATIENCE):
                await told(door, "a", ask("Hello there."))
        assert caught.value.code == "engine-gone"
        assert door.turns.running == 0


async def test_who_floods_with_counting_keeps_another_waiting_for_one_count_only() -> None:
    """The engine's process takes requests one after the other: megabytes that are counted hold up every prompt."""
    async with running() as watched:
        door = EngineDoor(watched.engine)
        order: list[str] = []
        count, goes_on = watched.engine.count_tokens, asyncio.Event()

        async def held(texts: Sequence[str]) -> list[int]:
            order.append(texts[0])
            await goes_on.wait()
            return await count(texts)

        watched.engine.count_tokens = held  # type: ignore[method-assign]
        flood = [asyncio.ensure_future(door.count_tokens("flood", [f"{number}"])) for number in range(20)]
        async with asyncio.timeout(PATIENCE):
            while not order:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0)
            other = asyncio.ensure_future(door.count_tokens("other", ["other"]))
            await asyncio.sleep(0)
            assert order == ["0"]
            goes_on.set()
            assert await other == [1]
            ended = await asyncio.gather(*flood, return_exceptions=True)
        assert order[:2] == ["0", "other"]
        refused = [error.code for error in ended if isinstance(error, KithError)]
        assert refused == ["busy"] * (20 - 1 - WAITING_OF_ONE_MAX)
