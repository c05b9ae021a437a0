"""/v1/chat/completions: a dialogue's next message, whole or as it is written."""

import contextlib
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from mesh.wire import common_pb2, engine_pb2
from node.errors import KithError
from node.http.answering import Answering, Ask, Choice, Collected, Piece, add_usage, usage_of
from node.http.event_stream import ALIVE, DONE, Chunks, error_event, event
from node.http.fields import Refused, flag, integer, listing, mapping, refuse, text
from node.http.formats import schema_of
from node.http.messages import messages_of
from node.http.naming import ANY_MODEL
from node.http.sampling import apply_sampling, tokens_max
from node.http.tool_reading import Call
from node.http.tools import toolbox_of

CHOICES_MAX = 8
TOP_LOGPROBS_MAX = 20
OPTIONS_MAX = 32
#: Interactive: before the tasks of jobs.
PRIORITY = 1

NOT_HONOURED = {
    "functions": "it was replaced by tools",
    "function_call": "it was replaced by tool_choice",
    "audio": "the models of this mesh read and write text only",
    "web_search_options": "this mesh searches no web",
    "store": "chat completions are not kept; /v1/responses keeps its own for a while",
    "reasoning_effort": "how long a model thinks can not be set",
    "verbosity": "it can not be set; say it in the message",
}
HARMLESS = ("none", "medium")


def chat_ask(body: dict[str, Any]) -> Ask:
    """What a client asks for. Raises `Refused`."""
    refuse(body, NOT_HONOURED, HARMLESS)
    if body.get("modalities") not in (None, [], ["text"]):
        raise Refused("modalities holds another one than text", "modalities", code="unsupported")
    request = engine_pb2.GenerateRequest(priority=PRIORITY, messages=messages_of(body.get("messages")))
    request.max_tokens = tokens_max(body, "max_completion_tokens", "max_tokens")
    apply_sampling(body, request)
    ask = Ask([], text(body.get("model") or ANY_MODEL, "model"), toolbox_of(body), stream=flag(body, "stream"))
    ask.stream_usage = _stream_usage(body)
    if flag(body, "logprobs"):
        request.logprobs = True
        request.top_logprobs = integer(body, "top_logprobs", 0, 0, TOP_LOGPROBS_MAX)
        ask.needs["logprobs"] = "logprobs"
    elif body.get("top_logprobs"):
        raise Refused("top_logprobs needs logprobs to be true", "top_logprobs")
    apply_format(ask, request, schema_of(body.get("response_format"), "response_format"), "response_format")
    ask.options = _options(body.get("options"))
    ask.choices_each = integer(body, "n", 1, 1, CHOICES_MAX)
    ask.requests = choices_of(request, ask.choices_each)
    return ask


def apply_format(ask: Ask, request: engine_pb2.GenerateRequest, schema: str, param: str) -> None:
    """What the answer has to look like: a call where one is required, else the schema. Raises `Refused`."""
    if ask.tools.active and schema:
        raise Refused(
            f"{param} and tools that may be called exclude each other here", param, 'Send tool_choice "none" with it.'
        )
    if ask.tools.forced:
        request.json_schema = ask.tools.call_schema()
        ask.needs["json_schema"] = "tool_choice"
    elif ask.tools.active:
        ask.needs["tools"] = "tools"
    elif schema:
        request.json_schema = schema
        ask.needs["json_schema"] = param


def choices_of(request: engine_pb2.GenerateRequest, n: int) -> list[engine_pb2.GenerateRequest]:
    """The same request `n` times, with seeds that differ."""
    requests = []
    for i in range(n):
        one = engine_pb2.GenerateRequest()
        one.CopyFrom(request)
        one.sampling.seed = (request.sampling.seed + i) % (1 << 63)
        requests.append(one)
    return requests


def whole(answering: Answering, came: Collected) -> dict[str, Any]:
    """The body of an answer that is complete."""
    choices = [
        {
            "index": index,
            "message": _message(choice),
            "finish_reason": choice.reason,
            "logprobs": _logprobs(choice.logprobs) if choice.logprobs else None,
        }
        for index, choice in enumerate(came.choices)
    ]
    answer = _envelope(answering.model, "chat.completion") | {"choices": choices, "usage": usage_of(came.usage)}
    return answer | ({"kith": came.extension} if came.extension else {})


async def chunks(answering: Answering, ask: Ask) -> Chunks:
    """The same as events."""
    envelope = _envelope(answering.model, "chat.completion.chunk") | ({"usage": None} if ask.stream_usage else {})
    usage = common_pb2.Usage()
    begun: set[int] = set()
    sent = False
    calls = [0] * len(ask.requests)

    def chunk(piece: Piece, delta: dict[str, Any], reason: str | None = None) -> str:
        choice: dict[str, Any] = {"index": piece.index, "delta": delta, "finish_reason": reason, "logprobs": None}
        if piece.logprobs and reason is None:
            choice["logprobs"] = _logprobs(piece.logprobs)
        extension = {"kith": piece.extension} if piece.extension else {}
        return event(envelope | {"choices": [choice]} | extension)

    try:
        async with contextlib.aclosing(answering.pieces) as pieces:
            async for piece in pieces:
                sent = True
                if piece is None:
                    yield ALIVE
                    continue
                if piece.index not in begun:
                    begun.add(piece.index)
                    yield chunk(Piece(piece.index), {"role": "assistant", "content": ""})
                if piece.call is not None:
                    called = {"index": calls[piece.index], **_call(piece.call)}
                    calls[piece.index] += 1
                    yield chunk(piece, {"tool_calls": [called]})
                elif piece.text or piece.logprobs:
                    yield chunk(piece, {"content": piece.text})
                if piece.usage is not None:
                    add_usage(usage, piece.usage, prompt=ask.counts_prompt(piece))
                if piece.reason:
                    yield chunk(piece, {}, piece.reason)
    except KithError as error:
        if not sent:
            raise
        yield error_event(error)
        return
    if ask.stream_usage:
        yield event(envelope | {"choices": [], "usage": usage_of(usage)})
    yield DONE


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [_call(call) for call in choice.calls]
    return message


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs(tokens: Sequence[engine_pb2.TokenLogprob]) -> dict[str, Any]:
    return {"content": [logprob_of(token) for token in tokens], "refusal": None}


def logprob_of(token: engine_pb2.TokenLogprob) -> dict[str, Any]:
    """One token with its alternatives, in the form of chat completions and of responses."""
    return _token(token) | {"top_logprobs": [_token(one) for one in token.top]}


def _token(token: engine_pb2.TokenLogprob) -> dict[str, Any]:
    # JSON has no number for certainty's opposite.
    value = token.logprob if math.isfinite(token.logprob) else -9999.0
    return {"token": token.piece.decode(errors="replace"), "logprob": value, "bytes": list(token.piece)}


def _envelope(model: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": None,
    }


def _stream_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    return flag(mapping(options, "stream_options"), "include_usage")


def _options(value: Any) -> tuple[str, ...]:
    """Of a closed question to a panel: beyond OpenAI's format."""
    if value is None:
        return ()
    return tuple(text(one, "options") for one in listing(value, "options", OPTIONS_MAX))
