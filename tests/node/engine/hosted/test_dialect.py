"""Messages, schemas, log-probabilities and vectors between the wire and JSON."""

import json
import math
from typing import Any

import pytest

from mesh.wire import engine_pb2
from node.engine.hosted.dialect import (
    FORM_BYTES_MAX,
    estimate_prompt,
    estimate_tokens,
    logprob_of,
    messages_of,
    read_json,
    read_schema,
    unit_vectors,
)
from node.errors import KithError
from node.limits import TOOLS_CHARACTERS_MAX


def test_estimate_counts_characters_where_words_have_no_spaces() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("abcd efgh") == 3
    assert estimate_tokens("你好世界") == 4


def test_estimate_of_a_prompt_counts_all_that_is_read() -> None:
    command = engine_pb2.GenerateRequest(prompt="abcd", continue_tokens=[1, 2, 3], tools_json="[12]")
    assert estimate_prompt(command) == 1 + 3 + 1


def test_messages_keep_what_tools_need() -> None:
    call = '[{"id": "a", "function": {"name": "f", "arguments": "{}"}}]'
    command = engine_pb2.GenerateRequest(
        messages=[
            engine_pb2.ChatMessage(role="assistant", tool_calls_json=call),
            engine_pb2.ChatMessage(role="tool", content="4", tool_call_id="a", name="f"),
        ]
    )
    assert messages_of(command) == [
        {"role": "assistant", "content": "", "tool_calls": json.loads(call)},
        {"role": "tool", "content": "4", "tool_call_id": "a", "name": "f"},
    ]


@pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 100_000])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(KithError) as caught:
        read_json(text, dict, "it")
    assert caught.value.code == "bad-request"


def test_long_calls_and_tools_are_taken_and_a_long_schema_is_not() -> None:
    """Who wrote a file by a tool has a call as long as the file in its dialogue, and goes on with it."""
    written = json.dumps([{"id": "a", "function": {"name": "write", "arguments": "x" * 4 * FORM_BYTES_MAX}}])
    command = engine_pb2.GenerateRequest(messages=[engine_pb2.ChatMessage(role="assistant", tool_calls_json=written)])
    assert messages_of(command)[0]["tool_calls"] == json.loads(written)
    tools = json.dumps([{"type": "function", "function": {"name": "f", "description": "x" * 3 * FORM_BYTES_MAX}}])
    assert len(tools) < TOOLS_CHARACTERS_MAX
    assert read_json(tools, list, "the tools") == json.loads(tools)
    with pytest.raises(KithError, match="longer than"):
        read_schema(json.dumps({"type": "object", "description": "x" * FORM_BYTES_MAX}))


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ({"type": "nope"}, "no type 'nope'"),
        ({"anyOf": [{"type": "string"}, {"items": {"type": ["null", "text"]}}]}, "no type 'text'"),
        ({"$ref": "#/$defs/b", "$defs": {"a": {}}}, "leads nowhere"),
        ({"$ref": "http://elsewhere/x.json"}, "leads nowhere"),
    ],
)
def test_schema_with_a_slip_is_refused(schema: dict[str, Any], wrong: str) -> None:
    with pytest.raises(KithError, match=wrong):
        read_schema(json.dumps(schema))


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"type": {"type": ["string", "null"]}, "$ref": {"enum": [{"type": "x"}]}}},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": {"type": "nope"}}}},
        {"items": {"$ref": "#"}},
    ],
)
def test_good_schemas_pass(schema: dict[str, Any]) -> None:
    assert read_schema(json.dumps(schema)) == schema


def test_logprob_takes_bytes_before_text_and_is_finite() -> None:
    told = logprob_of({"id": 7, "token": "?", "bytes": [230, 136], "logprob": -0.5, "top_logprobs": [{"token": "é"}]})
    assert (told.token, told.piece, told.logprob) == (7, b"\xe6\x88", -0.5)
    assert (told.top[0].piece, told.top[0].logprob) == ("é".encode(), -9999.0)
    assert logprob_of({"token": "a", "logprob": -math.inf}).logprob == -9999.0


def test_vectors_come_in_order_and_of_length_one() -> None:
    entry = [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": [3, 4]}]
    vectors, tokens = unit_vectors({"data": entry, "usage": {"prompt_tokens": 5}}, 2)
    assert vectors == [[0.6, 0.8], [0, 1]]
    assert tokens == 5


@pytest.mark.parametrize(
    "reply",
    [{}, [], {"data": []}, {"data": [{"index": 0, "embedding": [0, 0]}]}, {"data": [{"index": 0, "embedding": "AA"}]}],
)
def test_what_is_no_vector_is_refused(reply: Any) -> None:
    with pytest.raises(KithError, match="no embeddings"):
        unit_vectors(reply, 1)
