"""Several generations become one stream; closing it closes them."""

import asyncio
import contextlib

import pytest

from mesh.wire import common_pb2, engine_pb2
from node.errors import KithError
from node.http import answering
from node.http.answering import Ask, Piece, Pieces, add_usage, collected, merged, pieces_of, routed, usage_of
from node.http.naming import Named
from node.http.tools import toolbox_of
from tests.node.http.scripted import Scripted, delta, finished, saying, started

REQUEST = engine_pb2.GenerateRequest(prompt="x")
TOOLS = toolbox_of({"tools": [{"type": "function", "name": "f"}]})


async def test_pieces_of_choices_are_put_together_and_one_prompt_counts_once() -> None:
    mesh = Scripted(says=saying("a", "b"))
    ask = Ask([REQUEST, REQUEST], "kith", choices_each=2)
    under_way = routed(mesh.router, Named(()), ask, "me")
    whole = await collected(under_way, ask)
    assert [choice.text for choice in whole.choices] == ["ab", "ab"]
    assert usage_of(whole.usage)["prompt_tokens"] == 3
    assert usage_of(whole.usage)["completion_tokens"] == 4
    assert under_way.headers == {"x-kith-node": "aaaaaaaa"}


async def test_prompts_that_differ_all_count() -> None:
    mesh = Scripted()
    ask = Ask([REQUEST, REQUEST], "kith")
    whole = await collected(routed(mesh.router, Named(()), ask, "me"), ask)
    assert whole.usage.prompt_tokens == 6


async def test_calls_end_an_answer_as_calls() -> None:
    mesh = Scripted(says=saying("<tool_", 'call>{"name": "f"}</tool_call>'))
    route = mesh.choose(REQUEST)
    pieces = [one async for one in pieces_of(mesh.router, route, REQUEST, 0, TOOLS, "me")]
    assert [piece.call.name for piece in pieces if piece and piece.call] == ["f"]
    assert pieces[-1] is not None
    assert pieces[-1].reason == "tool_calls"


async def test_an_answer_that_was_cut_is_no_finished_call() -> None:
    mesh = Scripted(says=saying('{"name": "f", "arg', reason="length"))
    pieces = [one async for one in pieces_of(mesh.router, mesh.choose(REQUEST), REQUEST, 0, TOOLS, "me")]
    assert pieces[-1] is not None
    assert pieces[-1].reason == "length"
    assert "".join(piece.text for piece in pieces if piece) == '{"name": "f", "arg'


async def test_log_probabilities_are_kept_while_text_is_held_back() -> None:
    token = engine_pb2.TokenLogprob(piece=b" ", logprob=-1)
    mesh = Scripted(says=lambda request, route: [delta(" ", token), delta("x", token), finished()])
    pieces = [one async for one in pieces_of(mesh.router, mesh.choose(REQUEST), REQUEST, 0, TOOLS, "me")]
    assert sum(len(piece.logprobs) for piece in pieces if piece) == 2


async def test_the_first_error_ends_all() -> None:
    never = asyncio.Event()
    mesh = Scripted()
    mesh.says = lambda request, route: [started(), never] if len(mesh.asked) == 1 else [KithError("busy", "no room")]
    ask = Ask([REQUEST, REQUEST], "kith")
    with pytest.raises(KithError, match="no room"):
        await collected(routed(mesh.router, Named(()), ask, "me"), ask)
    assert sorted(mesh.ended) == ["closed", "failed"]


async def test_a_defect_is_no_answer() -> None:
    async def broken() -> Pieces:
        yield Piece(text="a")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        [one async for one in merged([broken()])]


async def test_ticks_come_while_nothing_does_and_closing_ends_the_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "TICK_S", 0.01)
    mesh = Scripted(says=lambda request, route: [started(), asyncio.Event()])
    pieces = routed(mesh.router, Named(()), Ask([REQUEST], "kith"), "me").pieces
    async with asyncio.timeout(5), contextlib.aclosing(pieces):
        assert await anext(pieces) == Piece()
        assert await anext(pieces) is None
        assert await anext(pieces) is None
    assert mesh.ended == ["closed"]


async def test_a_slow_reader_holds_the_stream_back() -> None:
    read = 0

    async def quick() -> Pieces:
        nonlocal read
        for _ in range(10 * answering.PIECES_MAX):
            read += 1
            yield Piece(text="a")

    pieces = merged([quick()])
    async with contextlib.aclosing(pieces):
        await anext(pieces)
        for _ in range(100):
            await asyncio.sleep(0)
        assert read <= answering.PIECES_MAX + 3


def test_usage_adds_up() -> None:
    total = common_pb2.Usage()
    part = common_pb2.Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=3)
    add_usage(total, part)
    add_usage(total, part, prompt=False)
    assert usage_of(total) == {
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
