"""Events of a response, against the types of OpenAI's own package."""

from typing import Any, cast

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from mesh.wire import common_pb2
from node.errors import KithError
from node.http.answering import Piece
from node.http.response_events import Event, Writing
from node.http.tool_reading import Call

ASKED = {
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "temperature": 0.7,
    "top_p": 1.0,
    "instructions": None,
    "metadata": {},
}
ADAPTER: TypeAdapter[Any] = TypeAdapter(cast(Any, ResponseStreamEvent))
USAGE = common_pb2.Usage(prompt_tokens=3, completion_tokens=2)


def written(*pieces: Piece) -> tuple[list[Event], Writing]:
    writing = Writing(dict(ASKED), "m")
    events = writing.begin()
    for piece in pieces:
        events += writing.feed(piece)
    events += writing.end()
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        ADAPTER.validate_python(event)
    Response.model_validate(writing.body())
    return events, writing


def kinds(events: list[Event]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_a_text() -> None:
    events, writing = written(Piece(), Piece(text="Hel"), Piece(text="lo"), Piece(reason="stop", usage=USAGE))
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    body = writing.body()
    assert body["status"] == "completed"
    assert body["output"][0]["content"][0]["text"] == "Hello"
    assert body["usage"]["total_tokens"] == 5
    assert events[0]["response"]["output"] == []


def test_a_text_a_call_and_a_text() -> None:
    events, writing = written(
        Piece(text="I look."), Piece(call=Call("f", '{"a": 1}')), Piece(text="Then"), Piece(reason="tool_calls")
    )
    assert [item["type"] for item in writing.output] == ["message", "function_call", "message"]
    assert "function_call_arguments.done" in kinds(events)
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in done] == [0, 1, 2]
    assert writing.output[1]["arguments"] == '{"a": 1}'


@pytest.mark.parametrize("text", ["", "Hel"])
def test_a_limit_makes_it_incomplete_and_nothing_is_an_empty_message(text: str) -> None:
    events, writing = written(Piece(text=text), Piece(reason="length", usage=USAGE))
    assert kinds(events)[-1] == "incomplete"
    body = writing.body()
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][0]["content"][0]["text"] == text


def test_an_error_makes_it_failed() -> None:
    writing = Writing(dict(ASKED), "m")
    events = [*writing.begin(), *writing.feed(Piece(text="Hel")), *writing.fail(KithError("busy", "no room"))]
    for event in events:
        ADAPTER.validate_python(event)
    assert kinds(events)[-1] == "failed"
    assert events[-1]["response"]["error"] == {"code": "rate_limit_exceeded", "message": "no room (busy)"}
    assert events[-1]["response"]["usage"] is None
