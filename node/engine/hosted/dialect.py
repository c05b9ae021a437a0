"""What a model server is asked and what it answers, in the engine's words, whatever API it speaks.

Two dialects implement `Dialect`: the OpenAI API (openai_api.py), and llama-server's own (llama_server.py), which says
and can do more. Which one a server speaks, and what of it it really does, is found out by asking (probe.py).
"""

import json
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mesh.wire import engine_pb2
from node.errors import ExitCode, KithError

#: Texts of one embeddings request: more take a server's slot for too long.
TEXTS_AT_ONCE = 32
#: A JSON schema or a grammar that comes with a request.
FORM_BYTES_MAX = 64 * 1024

_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]")


@dataclass(slots=True)
class Piece:
    """A step of an answer. Figures that the server does not give are 0."""

    text: str = ""
    tokens: int = 0  # 0 with text: not told
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[engine_pb2.TokenLogprob] = field(default_factory=list)
    reason: str = ""  # "stop" or "length": the answer is over
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    decode_s: float = 0.0


class Dialect(Protocol):
    """Belongs to one event loop. All methods raise `KithError`."""

    #: Its servers refuse a limit on tokens that does not fit into the context beside the prompt; else they stop there.
    refuses_long_limits: bool

    def generate(self, command: engine_pb2.GenerateRequest) -> AsyncGenerator[Piece, None]:
        """The answer in pieces. Closing the generator closes the way to the server, which then stops working."""

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """A vector of length 1 for each text, and the tokens read."""

    async def score(self, command: engine_pb2.ScoreRequest) -> engine_pb2.ScoreReply: ...

    async def count_tokens(self, texts: Sequence[str]) -> list[int]: ...


def estimate_tokens(text: str) -> int:
    """One for each Chinese, Japanese or Korean character, one for four bytes of anything else."""
    return TokenCount().add(Piece(text))


class TokenCount:
    """Tokens of an answer that comes in pieces: told by the server, else estimated from the text as a whole. Servers
    that do not tell mostly send token by token, and each of those rounded up counts half as much again (measured: 1.4
    to 1.7 times the tokens of English prose, Markdown and Python)."""

    def __init__(self) -> None:
        self._characters = self._bytes = 0  # those that count one each, and four a token
        self._estimated = 0

    def add(self, piece: Piece) -> int:
        """How many more with this one."""
        if piece.tokens or not piece.text:
            return piece.tokens
        characters = len(_CJK.findall(piece.text))
        self._characters += characters
        self._bytes += len(piece.text.encode("utf-8", "replace")) - 3 * characters
        before, self._estimated = self._estimated, self._characters - (-self._bytes // 4)
        return self._estimated - before


def estimate_prompt(command: engine_pb2.GenerateRequest) -> int:
    """Tokens of the whole prompt, estimated: the template's own words are left out."""
    words = [command.prompt, command.continue_from, command.tools_json]
    words += [message.content + message.tool_calls_json for message in command.messages]
    return sum(map(estimate_tokens, words)) + len(command.continue_tokens)


def messages_of(command: engine_pb2.GenerateRequest | engine_pb2.ScoreRequest) -> list[dict[str, Any]]:
    """The dialogue as OpenAI's API has it. Raises `KithError` (`bad-request`) for tool calls that are no JSON."""
    messages = []
    for each in command.messages:
        message: dict[str, Any] = {"role": each.role, "content": each.content}
        if each.tool_calls_json:
            message["tool_calls"] = read_json(each.tool_calls_json, list, "the tool calls of a message")
        if each.tool_call_id:
            message["tool_call_id"] = each.tool_call_id
        if each.name:
            message["name"] = each.name
        messages.append(message)
    return messages


def read_json(text: str, kind: type, what: str) -> Any:
    """Raises `KithError` (`bad-request`) unless the text is JSON of this kind."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        wrong = "no JSON"
    else:
        if isinstance(value, kind):
            return value
        wrong = f"no JSON {'object' if kind is dict else 'array'}"
    raise KithError("bad-request", f"{what}: this is {wrong}", "Correct it.", ExitCode.BAD_INPUT)


#: The names that "type" may have in a JSON schema.
_TYPES = {"null", "boolean", "object", "array", "number", "string", "integer"}
#: Keywords whose value is data, not schema.
_DATA = {"const", "enum", "default", "examples"}


def read_schema(text: str) -> dict[str, Any]:
    """A JSON schema. Raises `KithError` (`bad-request`) for one that nothing fits by a slip: a type that there is not,
    a reference to nowhere. Servers take such a schema and then hold the answer to nothing."""
    if len(text) > FORM_BYTES_MAX:
        message = f"the JSON schema: this is longer than {FORM_BYTES_MAX:,} bytes"
        raise KithError("bad-request", message, "Simplify it.", ExitCode.BAD_INPUT)
    schema: dict[str, Any] = read_json(text, dict, "the JSON schema")
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            waiting += [value for name, value in part.items() if name not in _DATA]
            wrong = ""
            kinds = part.get("type", [])
            kinds = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
            if unknown := [kind for kind in kinds if isinstance(kind, str) and kind not in _TYPES]:
                wrong = f"there is no type {unknown[0]!r}"
            reference = part.get("$ref")
            if isinstance(reference, str) and not _leads(schema, reference):
                wrong = f"{reference!r} leads nowhere in it"
            if wrong:
                raise KithError("bad-request", f"the JSON schema: {wrong}"[:200], "Correct it.", ExitCode.BAD_INPUT)
    return schema


def _leads(schema: Any, reference: str) -> bool:
    """Whether a reference within the schema (RFC 6901) finds something."""
    if not reference.startswith("#"):
        return False
    for step in reference[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(schema, dict) or name not in schema:
            return False
        schema = schema[name]
    return True


def logprob_of(entry: dict[str, Any]) -> engine_pb2.TokenLogprob:
    """From an entry as in OpenAI's `logprobs.content`. The token's number is 0 where the server tells none."""
    piece = entry.get("bytes")
    return engine_pb2.TokenLogprob(
        token=int(entry.get("id") or 0),
        piece=bytes(piece) if isinstance(piece, list) else str(entry.get("token", "")).encode("utf-8", "replace"),
        logprob=_finite(entry.get("logprob")),
        top=[logprob_of({**one, "top_logprobs": []}) for one in entry.get("top_logprobs") or []],
    )


def _finite(value: Any) -> float:
    """Servers send -9999 or null for "impossible"; JSON has no minus infinity."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else -9999.0


async def vectors_of(texts: Sequence[str], ask: Callable[[list[str]], Awaitable[Any]]) -> tuple[list[list[float]], int]:
    """As `unit_vectors`, of any number of texts; `ask` gets a part of them and gives the server's reply."""
    vectors: list[list[float]] = []
    tokens = 0
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = list(texts[start : start + TEXTS_AT_ONCE])
        some, read = unit_vectors(await ask(part), len(part))
        vectors += some
        tokens += read
    return vectors, tokens


def unit_vectors(reply: Any, count: int) -> tuple[list[list[float]], int]:
    """From an embeddings reply of OpenAI's API: the vectors in order, of length 1, and the tokens read.

    Raises `KithError` (`engine-failed`) for anything else.
    """
    try:
        entries = sorted(reply["data"], key=lambda entry: int(entry["index"]))
        vectors = [[float(value) for value in entry["embedding"]] for entry in entries]
        usage = reply.get("usage") or {}
        lengths = [math.sqrt(sum(value * value for value in vector)) for vector in vectors]
        if len(vectors) != count or not all(lengths) or not all(map(math.isfinite, lengths)):
            raise ValueError
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        message = "the server sends no embeddings that can be used"
        raise KithError("engine-failed", message, "Its log may say more.") from error
    scaled = [[value / length for value in vector] for vector, length in zip(vectors, lengths, strict=True)]
    return scaled, int(usage.get("prompt_tokens") or 0)
