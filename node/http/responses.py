"""/v1/responses: OpenAI's newer form of a dialogue, which the node keeps between turns (response_store.py)."""

import contextlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from mesh.wire import engine_pb2
from node.errors import ExitCode, KithError
from node.http.answering import Answering, Ask
from node.http.chat import OPTIONS_MAX, PRIORITY, TOP_LOGPROBS_MAX, apply_format
from node.http.event_stream import ALIVE, Chunks, event
from node.http.fields import Refused, echoed, flag, integer, listing, mapping, refuse, text
from node.http.formats import schema_of
from node.http.naming import ANY_MODEL
from node.http.response_events import Writing
from node.http.response_items import messages_of_input, messages_of_output
from node.http.response_store import Held, ResponseStore
from node.http.sampling import apply_sampling, tokens_max
from node.http.tools import toolbox_of
from node.limits import MESSAGES_MAX

LOGPROBS = "message.output_text.logprobs"
NOT_HONOURED = {
    "background": "an answer ends with the connection; stream it, or submit a job",
    "conversation": "use previous_response_id",
    "prompt": "this mesh holds no prompt templates; send instructions",
    "truncation": "what does not fit is refused, never cut",
}
HARMLESS = ("disabled",)
_UNKNOWN = "response-unknown"


@dataclass
class ResponsesAsk:
    ask: Ask
    dialogue: list[engine_pb2.ChatMessage]  # without instructions
    keep: bool
    asked: dict[str, Any]  # for the body of the answer


def responses_ask(body: dict[str, Any], store: ResponseStore, who: Hashable) -> ResponsesAsk:
    """What a client asks for. Raises `KithError`: `Refused`, `response-unknown`."""
    refuse(body, NOT_HONOURED, HARMLESS)
    reasoning = mapping(body.get("reasoning") or {}, "reasoning")
    if any(value not in (None, "none") for value in reasoning.values()):
        raise Refused("how long a model thinks can not be set", "reasoning", "Leave it out.", "unsupported")
    dialogue = messages_of_input(body.get("input"))
    previous = body.get("previous_response_id")
    if previous is not None:
        dialogue = [*_held_before(store, text(previous, "previous_response_id"), who).messages, *dialogue]
    if len(dialogue) >= MESSAGES_MAX:
        raise Refused(f"the dialogue has more than {MESSAGES_MAX:,} messages", "input")
    request = engine_pb2.GenerateRequest(priority=PRIORITY, messages=dialogue)
    instructions = body.get("instructions")
    if instructions is not None:
        told = engine_pb2.ChatMessage(role="system", content=text(instructions, "instructions"))
        request = engine_pb2.GenerateRequest(priority=PRIORITY, messages=[told, *dialogue])
    request.max_tokens = tokens_max(body, "max_output_tokens")
    apply_sampling(body, request)
    form = mapping(body.get("text") or {}, "text")
    if form.get("verbosity") not in (None, "medium"):
        raise Refused("how much a model says can not be set", "text.verbosity", "Leave it out.", "unsupported")
    ask = Ask([request], text(body.get("model") or ANY_MODEL, "model"), toolbox_of(body), stream=flag(body, "stream"))
    apply_format(ask, request, schema_of(form.get("format"), "text.format"), "text.format")
    if _includes_logprobs(body.get("include")):
        request.logprobs = True
        request.top_logprobs = integer(body, "top_logprobs", 0, 0, TOP_LOGPROBS_MAX)
        ask.needs["logprobs"] = "include"
    elif body.get("top_logprobs"):
        raise Refused(f"top_logprobs needs {LOGPROBS!r} in include", "top_logprobs")
    if body.get("options") is not None:
        ask.options = tuple(text(one, "options") for one in listing(body["options"], "options", OPTIONS_MAX))
    keep = flag(body, "store", True)
    asked = {
        "instructions": instructions,
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": _metadata(body.get("metadata")),
        "parallel_tool_calls": ask.tools.parallel,
        "previous_response_id": previous,
        "reasoning": {"effort": None, "summary": None},
        "store": keep,
        "temperature": request.sampling.temperature,
        "text": {"format": echoed(form.get("format") or {"type": "text"}, "text.format")},
        "tool_choice": echoed(body.get("tool_choice") or "auto", "tool_choice"),
        "tools": echoed(body.get("tools") or [], "tools"),
        "top_logprobs": request.top_logprobs,
        "top_p": request.sampling.top_p or 1.0,
        "truncation": "disabled",
        "background": False,
    }
    return ResponsesAsk(ask, dialogue, keep, asked)


async def whole(answering: Answering, wanted: ResponsesAsk, store: ResponseStore, who: Hashable) -> dict[str, Any]:
    """The body of an answer that is complete. Raises `KithError`."""
    writing = Writing(wanted.asked, answering.model)
    async with contextlib.aclosing(answering.pieces) as pieces:
        async for piece in pieces:
            if piece is not None:
                writing.feed(piece)
    writing.end()
    _keep(writing, wanted, store, who)
    return writing.body()


async def chunks(answering: Answering, wanted: ResponsesAsk, store: ResponseStore, who: Hashable) -> Chunks:
    """The same as events."""
    writing = Writing(wanted.asked, answering.model)
    begun = False
    try:
        async with contextlib.aclosing(answering.pieces) as pieces:
            async for piece in pieces:
                if not begun:
                    begun = True
                    for one in writing.begin():
                        yield event(one, one["type"])
                if piece is None:
                    yield ALIVE
                    continue
                for one in writing.feed(piece):
                    yield event(one, one["type"])
    except KithError as error:
        if not begun:
            raise
        for one in writing.fail(error):
            yield event(one, one["type"])
        return
    last = writing.end()
    _keep(writing, wanted, store, who)
    for one in last:
        yield event(one, one["type"])


def held_response(store: ResponseStore, response_id: str, who: Hashable) -> Held:
    """Raises `KithError` (`response-unknown`)."""
    held = store.get(response_id, who)
    if held is None:
        remedy = "It is kept by the node that made it, for an hour, for the key that asked for it."
        raise KithError(_UNKNOWN, "this node does not hold that response, or not any more", remedy, ExitCode.NOT_FOUND)
    return held


def _held_before(store: ResponseStore, response_id: str, who: Hashable) -> Held:
    """What a dialogue goes on from. Raises `Refused` (`response-unknown`)."""
    try:
        return held_response(store, response_id, who)
    except KithError as error:
        remedy = "Send the whole dialogue as input."
        raise Refused(error.message, "previous_response_id", remedy, _UNKNOWN, ExitCode.NOT_FOUND) from None


def _keep(writing: Writing, wanted: ResponsesAsk, store: ResponseStore, who: Hashable) -> None:
    if wanted.keep:
        store.put(writing.id, who, writing.body(), [*wanted.dialogue, *messages_of_output(writing.output)])


def _includes_logprobs(value: Any) -> bool:
    if not value:
        return False
    for one in listing(value, "include", 16):
        if one not in (LOGPROBS, "reasoning.encrypted_content"):
            raise Refused(f"include holds something else than {LOGPROBS!r}", "include", code="unsupported")
    return LOGPROBS in value


def _metadata(value: Any) -> dict[str, str]:
    given = mapping(value or {}, "metadata")
    if len(given) > 16 or any(len(key) > 64 or len(str(one)) > 512 for key, one in given.items()):
        raise Refused("metadata has more than 16 entries, or long ones", "metadata")
    return {text(key, "metadata"): text(one, "metadata") for key, one in given.items()}
