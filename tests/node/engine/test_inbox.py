"""A slow reader costs no memory and loses nothing."""

import asyncio

import pytest

from mesh.wire import common_pb2, engine_pb2
from node.engine import inbox as inbox_module
from node.engine.inbox import Inbox
from node.errors import KithError

Event = engine_pb2.GenerateEvent


def delta(text: str) -> engine_pb2.EngineEvent:
    told = engine_pb2.TokenLogprob(token=len(text), logprob=-1)
    said = Event.Delta(text=text, tokens=1, token_ids=[len(text)], logprobs=[told])
    return engine_pb2.EngineEvent(generate=Event(delta=said))


async def test_unread_deltas_are_joined() -> None:
    inbox = Inbox()
    inbox.put(engine_pb2.EngineEvent(generate=Event(started=Event.Started(prompt_tokens=3))))
    for i in range(1000):
        inbox.put(delta(f"{i} "))
    inbox.put(engine_pb2.EngineEvent(generate=Event(finished=Event.Finished(reason="stop"))))
    assert (await inbox.get()).generate.started.prompt_tokens == 3
    joined = (await inbox.get()).generate.delta
    assert joined.text == "".join(f"{i} " for i in range(1000))
    assert joined.tokens == 1000
    assert list(joined.token_ids) == [one.token for one in joined.logprobs] == [len(f"{i} ") for i in range(1000)]
    assert (await inbox.get()).generate.finished.reason == "stop"
    assert inbox.ended


async def test_reader_waits_for_the_next_event() -> None:
    inbox = Inbox()
    reading = asyncio.ensure_future(inbox.get())
    await asyncio.sleep(0)
    assert not reading.done()
    inbox.put(delta("a"))
    assert (await reading).generate.delta.text == "a"


async def test_error_comes_after_what_arrived_before_it() -> None:
    inbox = Inbox()
    inbox.put(delta("a"))
    inbox.put(engine_pb2.EngineEvent(problem=common_pb2.Problem(code="engine-gone", message="It is gone.")))
    inbox.put(delta("late"))
    assert (await inbox.get()).generate.delta.text == "a"
    with pytest.raises(KithError, match="It is gone"):
        await inbox.get()


async def test_endless_text_ends_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "TEXT_BYTES_MAX", 100)
    inbox = Inbox()
    for _ in range(101):
        inbox.put(delta("x"))
    await inbox.get()
    assert inbox.overflowed
    with pytest.raises(KithError, match="beyond all bounds"):
        await inbox.get()


async def test_tokens_and_logprobs_are_joined_with_their_text(monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = Inbox()
    for token in range(5):
        logprobs = [engine_pb2.TokenLogprob(token=token, logprob=-1.0)]
        part = Event.Delta(text="x", tokens=1, token_ids=[token], logprobs=logprobs)
        inbox.put(engine_pb2.EngineEvent(generate=Event(delta=part)))
    joined = (await inbox.get()).generate.delta
    assert list(joined.token_ids) == [one.token for one in joined.logprobs] == list(range(5))
    monkeypatch.setattr(inbox_module, "TOKENS_MAX", 3)
    for _ in range(5):
        inbox.put(engine_pb2.EngineEvent(generate=Event(delta=Event.Delta(tokens=1, token_ids=[1]))))
    assert inbox.overflowed
