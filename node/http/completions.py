"""/v1/completions: text that goes on from a text, as it is, without a chat template."""

import contextlib
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from mesh.wire import common_pb2, engine_pb2
from node.errors import KithError
from node.http.answering import Answering, Ask, Choice, Collected, Piece, add_usage, usage_of
from node.http.chat import CHOICES_MAX, PRIORITY, choices_of
from node.http.event_stream import ALIVE, DONE, Chunks, error_event, event
from node.http.fields import Refused, flag, integer, mapping, refuse, text, texts
from node.http.naming import ANY_MODEL
from node.http.sampling import apply_sampling, tokens_max

#: OpenAI's, where a client says nothing.
TOKENS_DEFAULT = 16
PROMPTS_MAX = 16
LOGPROBS_MAX = 20

NOT_HONOURED = {
    "echo": "the prompt is not repeated",
    "suffix": "the models of this mesh write forward only",
}


def completions_ask(body: dict[str, Any]) -> Ask:
    """What a client asks for: `n` choices for each prompt. Raises `Refused`."""
    refuse(body, NOT_HONOURED)
    n = integer(body, "n", 1, 1, CHOICES_MAX)
    if integer(body, "best_of", n, 1, CHOICES_MAX) != n:
        raise Refused("best_of is not honoured: choices are not ranked", "best_of", "Leave it out.", "unsupported")
    ask = Ask([], text(body.get("model") or ANY_MODEL, "model"), stream=flag(body, "stream"), choices_each=n)
    options = body.get("stream_options")
    ask.stream_usage = options is not None and flag(mapping(options, "stream_options"), "include_usage")
    alternatives = integer(body, "logprobs", -1, 0, LOGPROBS_MAX)
    for prompt in _prompts(body.get("prompt")):
        request = engine_pb2.GenerateRequest(priority=PRIORITY, prompt=prompt)
        request.max_tokens = tokens_max(body, "max_tokens") or TOKENS_DEFAULT
        apply_sampling(body, request)
        if alternatives >= 0:
            request.logprobs, request.top_logprobs = True, alternatives
            ask.needs["logprobs"] = "logprobs"
        ask.requests += choices_of(request, n)
    if len(ask.requests) > PROMPTS_MAX:
        raise Refused(f"prompt and n make more than {PROMPTS_MAX} choices", "prompt")
    return ask


def whole(answering: Answering, came: Collected) -> dict[str, Any]:
    """The body of an answer that is complete."""
    choices = [_choice(index, one.text, one.reason, _logprobs(one, 0)) for index, one in enumerate(came.choices)]
    answer = _envelope(answering.model) | {"choices": choices, "usage": usage_of(came.usage)}
    return answer | ({"kith": came.extension} if came.extension else {})


async def chunks(answering: Answering, ask: Ask) -> Chunks:
    """The same as events."""
    envelope = _envelope(answering.model) | ({"usage": None} if ask.stream_usage else {})
    usage = common_pb2.Usage()
    offsets = [0] * len(ask.requests)
    begun = False
    try:
        async with contextlib.aclosing(answering.pieces) as pieces:
            async for piece in pieces:
                begun = True
                if piece is None:
                    yield ALIVE
                    continue
                if piece.usage is not None:
                    add_usage(usage, piece.usage, prompt=ask.counts_prompt(piece))
                if piece.text or piece.logprobs or piece.reason:
                    extension = {"kith": piece.extension} if piece.extension else {}
                    yield event(envelope | {"choices": [_chunk(piece, offsets[piece.index])]} | extension)
                offsets[piece.index] += len(piece.text)
    except KithError as error:
        if not begun:
            raise
        yield error_event(error)
        return
    if ask.stream_usage:
        yield event(envelope | {"choices": [], "usage": usage_of(usage)})
    yield DONE


def _chunk(piece: Piece, offset: int) -> dict[str, Any]:
    part = Choice(piece.text, logprobs=piece.logprobs)
    return _choice(piece.index, piece.text, piece.reason or None, _logprobs(part, offset))


def _choice(index: int, written: str, reason: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": index, "text": written, "finish_reason": reason, "logprobs": logprobs}


def _logprobs(choice: Choice, offset: int) -> dict[str, Any] | None:
    if not choice.logprobs:
        return None
    tokens = [token.piece.decode(errors="replace") for token in choice.logprobs]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(token.logprob) for token in choice.logprobs],
        "top_logprobs": [_alternatives(token.top) for token in choice.logprobs],
        "text_offset": offsets,
    }


def _alternatives(top: Sequence[engine_pb2.TokenLogprob]) -> dict[str, float]:
    return {token.piece.decode(errors="replace"): _finite(token.logprob) for token in reversed(top)}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -9999.0


def _envelope(model: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
    }


def _prompts(value: Any) -> list[str]:
    prompts = texts(value, "prompt", PROMPTS_MAX)
    if not all(prompts):
        raise Refused("prompt is empty", "prompt")
    return prompts
