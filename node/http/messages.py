"""Chat messages as clients write them, into the engine's.

Texts only: a part of a message that is an image, a sound or a file is refused, never left out.
"""

from typing import Any

from mesh.wire import engine_pb2
from node.http.fields import Refused, canonical, listing, mapping, text
from node.limits import MESSAGES_MAX

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
TEXT_PARTS = frozenset({"text", "input_text", "output_text", "summary_text", "refusal"})
PARTS_MAX = 1024
CALLS_MAX = 128


def messages_of(value: Any) -> list[engine_pb2.ChatMessage]:
    """Raises `Refused`."""
    return [_message(one, f"messages[{i}]") for i, one in enumerate(listing(value, "messages", MESSAGES_MAX))]


def content_of(value: Any, param: str) -> str:
    """A text, or a list of parts that are texts. Raises `Refused`."""
    if not isinstance(value, list):
        return text(value, param)
    parts = []
    for i, part in enumerate(value[: PARTS_MAX + 1]):
        at = f"{param}[{i}]"
        if i == PARTS_MAX:
            raise Refused(f"{param} has more than {PARTS_MAX:,} parts", param)
        kind = text(mapping(part, at).get("type", "text"), f"{at}.type")
        if kind not in TEXT_PARTS:
            raise Refused(f"{at} is of type {kind[:40]!r}: the models of this mesh read text only", at)
        parts.append(text(part.get("refusal" if kind == "refusal" else "text"), at))
    return "".join(parts)


def _message(value: Any, at: str) -> engine_pb2.ChatMessage:
    given = mapping(value, at)
    role = ROLES.get(text(given.get("role"), f"{at}.role"))
    if role is None:
        raise Refused(f"{at}.role is none of {', '.join(ROLES)}", f"{at}.role")
    calls = given.get("tool_calls") if role == "assistant" else None
    content = given.get("content")
    message = engine_pb2.ChatMessage(
        role=role, content="" if content is None and calls else content_of(content, f"{at}.content")
    )
    if given.get("name") is not None:
        message.name = text(given["name"], f"{at}.name")
    if calls:
        message.tool_calls_json = canonical(
            [
                _call(one, f"{at}.tool_calls[{i}]")
                for i, one in enumerate(listing(calls, f"{at}.tool_calls", CALLS_MAX))
            ],
            f"{at}.tool_calls",
        )
    if role == "tool":
        message.tool_call_id = text(given.get("tool_call_id", ""), f"{at}.tool_call_id")
    return message


def _call(value: Any, at: str) -> dict[str, Any]:
    """Checked, with nothing else in it: templates are strangers' code and read what they find."""
    given = mapping(value, at)
    function = mapping(given.get("function"), f"{at}.function")
    return {
        "id": text(given.get("id", ""), f"{at}.id"),
        "type": "function",
        "function": {
            "name": text(function.get("name"), f"{at}.function.name"),
            "arguments": text(function.get("arguments", "{}"), f"{at}.function.arguments"),
        },
    }
