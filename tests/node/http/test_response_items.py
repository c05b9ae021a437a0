"""Items of responses become chat messages."""

import json
from typing import Any

import pytest

from node.http.fields import Refused
from node.http.response_items import call_item, message_item, messages_of_input, messages_of_output


def test_a_text_is_the_users() -> None:
    [message] = messages_of_input("hi")
    assert (message.role, message.content) == ("user", "hi")


def test_what_was_answered_can_be_sent_back() -> None:
    output = [message_item("I look.", (), "completed"), call_item("f", "c1", "{}", "completed")]
    [message] = messages_of_output(output)
    assert message.content == "I look."
    assert json.loads(message.tool_calls_json)[0]["function"] == {"name": "f", "arguments": "{}"}
    assert messages_of_output([]) == []


def test_calls_and_their_outputs() -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]},
    ]
    user, assistant, rain, noon = messages_of_input(items)
    assert user.content == "a"
    assert [call["id"] for call in json.loads(assistant.tool_calls_json)] == ["c1", "c2"]
    assert (rain.role, rain.tool_call_id, rain.content) == ("tool", "c1", "rain")
    assert noon.content == "noon"


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (None, "input"),
        ([], "input"),
        ([1], "input[0]"),
        ([{"type": "item_reference", "id": "x"}], "input[0]"),
        ([{"role": "tool", "content": "x"}], "input[0].role"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "input[0].content[0]"),
        ([{"type": "function_call", "call_id": "c"}], "input[0].name"),
        ([{"type": "function_call_output", "output": "x"}], "input[0].call_id"),
    ],
)
def test_what_is_no_item_is_refused_by_its_place(value: Any, param: str) -> None:
    with pytest.raises(Refused) as caught:
        messages_of_input(value)
    assert caught.value.param == param
