"""Chat messages of clients become the engine's; what is no text is refused."""

import json
from typing import Any

import pytest

from node.http.fields import Refused
from node.http.messages import content_of, messages_of

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra": "dropped"}


def test_a_dialogue_with_tools_arrives_whole() -> None:
    system, user, assistant, tool = messages_of(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "me", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ]
    )
    assert (system.role, system.content) == ("system", "Be brief.")
    assert (user.content, user.name) == ("ab", "me")
    assert assistant.content == ""
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert json.loads(assistant.tool_calls_json) == calls
    assert (tool.role, tool.tool_call_id, tool.content) == ("tool", "c1", "rain")


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ([1], "messages[0]"),
        ([{"role": "king", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "assistant", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": [{"text": 1}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "x", "name": 1}], "messages[0].name"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].function"),
    ],
)
def test_a_refusal_says_where(messages: Any, param: str) -> None:
    with pytest.raises(Refused) as caught:
        messages_of(messages)
    assert caught.value.param == param


def test_an_image_is_refused_in_words() -> None:
    with pytest.raises(Refused, match="text only"):
        content_of([{"type": "text", "text": "what is this?"}, {"type": "input_image"}], "content")
