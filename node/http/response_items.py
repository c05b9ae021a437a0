"""The items of /v1/responses: what a client sends as `input` into chat messages, what a model wrote into `output`."""

import json
import uuid
from collections.abc import Sequence
from typing import Any

from mesh.wire import engine_pb2
from node.http.fields import Refused, canonical, listing, mapping, text
from node.http.messages import ROLES, content_of
from node.limits import MESSAGES_MAX


def messages_of_input(value: Any) -> list[engine_pb2.ChatMessage]:
    """Raises `Refused`."""
    if isinstance(value, str):
        return [engine_pb2.ChatMessage(role="user", content=text(value, "input"))]
    messages: list[engine_pb2.ChatMessage] = []
    for i, item in enumerate(listing(value, "input", MESSAGES_MAX)):
        at = f"input[{i}]"
        given = mapping(item, at)
        kind = given.get("type", "message")
        if kind == "message":
            messages.append(_message(given, at))
        elif kind == "function_call":
            _add_call(messages, given, at)
        elif kind == "function_call_output":
            messages.append(
                engine_pb2.ChatMessage(
                    role="tool",
                    content=content_of(given.get("output"), f"{at}.output"),
                    tool_call_id=text(given.get("call_id"), f"{at}.call_id"),
                )
            )
        elif kind != "reasoning":  # what a model thought is no part of the dialogue
            raise Refused(f"{at} is of a type that this mesh does not have", at, code="unsupported")
    return messages


def message_item(written: str, logprobs: Sequence[dict[str, Any]], status: str, item_id: str = "") -> dict[str, Any]:
    part = text_part(written, logprobs)
    content = [part] if status != "in_progress" else []
    return {
        "id": item_id or f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def text_part(written: str, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": written, "annotations": [], "logprobs": list(logprobs)}


def call_item(name: str, call_id: str, arguments: str, status: str, item_id: str = "") -> dict[str, Any]:
    return {
        "id": item_id or f"fc_{uuid.uuid4().hex}",
        "type": "function_call",
        "status": status,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }


def messages_of_output(items: Sequence[dict[str, Any]]) -> list[engine_pb2.ChatMessage]:
    """What was answered, as a dialogue goes on from it."""
    return messages_of_input(list(items)) if items else []


def _message(given: dict[str, Any], at: str) -> engine_pb2.ChatMessage:
    role = ROLES.get(text(given.get("role"), f"{at}.role"))
    if role is None or role == "tool":
        raise Refused(f"{at}.role is none of system, developer, user, assistant", f"{at}.role")
    return engine_pb2.ChatMessage(role=role, content=content_of(given.get("content"), f"{at}.content"))


def _add_call(messages: list[engine_pb2.ChatMessage], given: dict[str, Any], at: str) -> None:
    """Calls belong to the assistant's message before them."""
    if not messages or messages[-1].role != "assistant":
        messages.append(engine_pb2.ChatMessage(role="assistant"))
    function = {
        "name": text(given.get("name"), f"{at}.name"),
        "arguments": text(given.get("arguments", "{}"), f"{at}.arguments"),
    }
    calls = json.loads(messages[-1].tool_calls_json or "[]")
    calls.append({"id": text(given.get("call_id"), f"{at}.call_id"), "type": "function", "function": function})
    messages[-1].tool_calls_json = canonical(calls, at)
