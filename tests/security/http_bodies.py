"""Bodies that clients of the HTTP door send, one for each path, with every field; and what reads them."""

import json
from collections.abc import Callable
from typing import Any

from node.http.chat import chat_ask
from node.http.completions import completions_ask
from node.http.response_store import ResponseStore
from node.http.responses import responses_ask
from tests.security.odd_input import Rng

_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_SAMPLING = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "frequency_penalty": 0.1,
    "presence_penalty": -0.1,
    "logit_bias": {"17": -100, "18": 5.5},
    "seed": 7,
    "stop": ["\n"],
    "user": "somebody",
    "stream_options": {"include_usage": True},
}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "kith",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "me"},
            {"role": "assistant", "content": None, "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": _SCHEMA}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "response_format": {"type": "text"},
        "max_completion_tokens": 5,
        "logprobs": True,
        "top_logprobs": 3,
        "n": 2,
        "options": ["yes", "no"],
        "modalities": ["text"],
    }
    | _SAMPLING,
    "/v1/completions": {
        "model": "kith",
        "prompt": ["One.", "Two."],
        "max_tokens": 5,
        "n": 2,
        "logprobs": 2,
        "echo": False,
    }
    | _SAMPLING,
    "/v1/embeddings": {"model": "kith", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 4},
    "/v1/responses": {
        "model": "kith",
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        ],
        "tools": [{"type": "function", "name": "weather", "parameters": _SCHEMA, "strict": True}],
        "tool_choice": "auto",
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": None},
        "metadata": {"a": "b"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "store": True,
        "max_output_tokens": 5,
        "truncation": "disabled",
    }
    | _SAMPLING,
}


def _responses(body: dict[str, Any]) -> object:
    return responses_ask(body, ResponseStore(lambda: 0.0), "me")


READERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "/v1/chat/completions": chat_ask,
    "/v1/completions": completions_ask,
    "/v1/responses": _responses,
}


def request_of(path: str) -> bytes:
    """The body as a whole HTTP request."""
    body = json.dumps(BODIES[path]).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def with_odd_values(rng: Rng, value: Any, odd: tuple[Any, ...]) -> Any:
    """A copy of a JSON value with some of what it holds, at any depth, replaced."""
    if rng.random() < 0.05:
        return rng.choice(odd)
    if isinstance(value, dict):
        return {key: with_odd_values(rng, inner, odd) for key, inner in value.items() if rng.random() < 0.9}
    if isinstance(value, list):
        return [with_odd_values(rng, inner, odd) for inner in value]
    return value
