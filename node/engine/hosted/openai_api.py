"""The OpenAI API as a client speaks it: chat, completions, embeddings. Requests are allow-lists of what differs from a
server's defaults, because strict servers refuse fields that they do not know.

A server's tool calls come in fields of their own; here they are written out after the text, as most local models write
them: `<tool_call>{"name": …, "arguments": …}</tool_call>`. What a server thinks before it answers is left out. An
answer is whole where the server gives a reason for its end, or says [DONE].

Not guaranteed: numbers of tokens (the API has none: `token` of a log-probability is 0), or that a server does what it
says; probe.py tries it. Source: OpenAI's API reference; vLLM's extra parameters in its OpenAI-compatible server's page.
"""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from mesh.wire import engine_pb2
from node.engine.backend import unsupported
from node.engine.hosted.client import HttpClient, Refused
from node.engine.hosted.dialect import (
    Piece,
    estimate_tokens,
    logprob_of,
    messages_of,
    read_json,
    read_schema,
    vectors_of,
)

#: Completions (not chat) give at most so many alternatives a token.
TOP_OF_COMPLETIONS_MAX = 5
#: Fields that some models refuse by name, and what to say instead; empty: nothing, and the model does as it does.
NOT_ALWAYS_TAKEN = {
    "max_tokens": "max_completion_tokens",
    "temperature": "",
    "top_p": "",
    "seed": "",
    "frequency_penalty": "",
    "presence_penalty": "",
}
#: Reasons for an end that is none: vLLM's, and that of proxies whose server failed.
GIVEN_UP = frozenset({"abort", "error"})


@dataclass(slots=True)
class _Call:
    """A tool call as far as it came. `number`, `id`: what the server calls it; None, empty: it does not say."""

    number: int | None
    id: str
    name: str = ""
    arguments: str = ""


class OpenaiApi:
    """Implements `Dialect`.

    Args:
        kind: "vllm" for what only vLLM knows: more samplers, going on from a beginning, grammars.
        tokenizes: the server counts tokens at vLLM's /tokenize.
    """

    refuses_long_limits = True

    def __init__(self, client: HttpClient, model: str, kind: str = "", tokenizes: bool = False) -> None:
        self._client = client
        self._model = model
        self._vllm = kind == "vllm"
        self._tokenizes = tokenizes
        self._not_taken: set[str] = set()

    async def generate(self, command: engine_pb2.GenerateRequest) -> AsyncGenerator[Piece, None]:
        while True:
            body = self.body(command)
            try:
                async with aclosing(self._generate(command, body)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            except Refused as refused:  # it has said nothing yet
                if refused.field not in NOT_ALWAYS_TAKEN or refused.field not in body:
                    raise
                self._not_taken.add(refused.field)

    async def _generate(self, command: engine_pb2.GenerateRequest, body: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        path = "/chat/completions" if command.messages else "/completions"
        calls: list[_Call] = []
        chunks = self._client.stream(path, body, lambda chunk: bool(_reason(_first_choice(chunk))))
        async with aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                choice = _first_choice(chunk)
                if (reason := _reason(choice)) in GIVEN_UP:
                    raise self._client.broken_off(reason)
                _gather_calls(choice, calls)
                piece = _piece(chunk, choice)
                if piece.reason and calls:
                    piece.text += _written(calls)
                    calls = []
                yield piece
        if calls:
            yield Piece(text=_written(calls), reason="stop")

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        async def ask(part: list[str]) -> Any:
            body = {"model": self._model, "input": part, "encoding_format": "float"}
            return await self._client.post("/embeddings", body)

        return await vectors_of(texts, ask)

    async def score(self, command: engine_pb2.ScoreRequest) -> engine_pb2.ScoreReply:
        raise unsupported("openai", "score with this server")

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        if not self._tokenizes:
            return [estimate_tokens(text) for text in texts]
        counts = []
        for text in texts:
            body = {"model": self._model, "prompt": text, "add_special_tokens": False}
            counts.append(int((await self._client.post("/tokenize", body, root=True))["count"]))
        return counts

    def body(self, command: engine_pb2.GenerateRequest) -> dict[str, Any]:
        """Raises `KithError`: `agent-refused` for what this API can not say, `bad-request`."""
        sampling = command.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": sampling.temperature,
            "seed": sampling.seed & 0x7FFFFFFF,
        }
        if command.max_tokens:
            body["max_tokens"] = command.max_tokens
        if 0 < sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.frequency_penalty:
            body["frequency_penalty"] = sampling.frequency_penalty
        if sampling.presence_penalty:
            body["presence_penalty"] = sampling.presence_penalty
        if sampling.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if command.stop:
            body["stop"] = list(command.stop)
        if self._vllm:
            body |= _vllm_sampling(sampling)
        if command.logprobs and command.messages:
            body |= {"logprobs": True, "top_logprobs": command.top_logprobs}
        elif command.logprobs:
            body["logprobs"] = min(command.top_logprobs, TOP_OF_COMPLETIONS_MAX)
        if command.tools_json:
            body["tools"] = read_json(command.tools_json, list, "the tools")
        self._add_form(body, command)
        self._add_prompt(body, command)
        for field in self._not_taken & body.keys():
            value = body.pop(field)
            if instead := NOT_ALWAYS_TAKEN[field]:
                body[instead] = value
        return body

    def _add_form(self, body: dict[str, Any], command: engine_pb2.GenerateRequest) -> None:
        if command.adapter:
            raise unsupported("openai", "use LoRA adapters")
        if (command.grammar or command.json_schema) and (command.continue_tokens or command.continue_from):
            raise unsupported("openai", "go on within a grammar or schema")
        if command.grammar:
            if not self._vllm:
                raise unsupported("openai", "follow a grammar with this server")
            body["structured_outputs"] = {"grammar": command.grammar}
        if command.json_schema:
            if not command.messages and not self._vllm:
                raise unsupported("openai", "hold a plain prompt to a schema with this server")
            schema = read_schema(command.json_schema)
            named = {"name": "answer", "schema": schema, "strict": True}
            form = {"type": "json_schema", "json_schema": named} if schema else {"type": "json_object"}
            body["response_format"] = form

    def _add_prompt(self, body: dict[str, Any], command: engine_pb2.GenerateRequest) -> None:
        if command.continue_tokens and not command.continue_from:
            raise unsupported("openai", "go on from tokens")
        if not command.messages:
            body["prompt"] = command.prompt + command.continue_from
            return
        body["messages"] = messages_of(command)
        if command.continue_from:
            if not self._vllm:
                raise unsupported("openai", "go on from a given beginning with this server")
            body["messages"].append({"role": "assistant", "content": command.continue_from})
            body |= {"continue_final_message": True, "add_generation_prompt": False}


def _vllm_sampling(sampling: engine_pb2.Sampling) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.min_p:
        body["min_p"] = sampling.min_p
    if sampling.repeat_penalty not in (0.0, 1.0):
        body["repetition_penalty"] = sampling.repeat_penalty
    return body


def _first_choice(chunk: dict[str, Any]) -> dict[str, Any]:
    choices = chunk.get("choices") or [{}]
    return choices[0] if isinstance(choices, list) and isinstance(choices[0], dict) else {}


def _reason(choice: dict[str, Any]) -> str:
    """Why the answer ends; empty: it goes on."""
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) else ""


def _piece(chunk: dict[str, Any], choice: dict[str, Any]) -> Piece:
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    reason = _reason(choice)
    piece = Piece(
        text=text if isinstance(text, str) else "",
        reason=reason if reason in ("", "length") else "stop",
        logprobs=_logprobs(choice.get("logprobs")),
    )
    if isinstance(usage := chunk.get("usage"), dict):
        piece.prompt_tokens = int(usage.get("prompt_tokens") or 0)
        piece.completion_tokens = int(usage.get("completion_tokens") or 0)
        details = usage.get("prompt_tokens_details")
        piece.cached_tokens = int(details.get("cached_tokens") or 0) if isinstance(details, dict) else 0
    piece.tokens = len(piece.logprobs)
    return piece


def _logprobs(told: Any) -> list[engine_pb2.TokenLogprob]:
    """Of a chat (`content`) or of a completion (parallel lists)."""
    if not isinstance(told, dict):
        return []
    if isinstance(content := told.get("content"), list):
        return [logprob_of(entry) for entry in content]
    tokens, values = told.get("tokens") or [], told.get("token_logprobs") or []
    tops = told.get("top_logprobs") or [{}] * len(tokens)
    return [
        logprob_of({"token": token, "logprob": value, "top_logprobs": _ranked(top)})
        for token, value, top in zip(tokens, values, tops, strict=False)
    ]


def _ranked(top: Any) -> list[dict[str, Any]]:
    pairs = sorted(top.items(), key=lambda pair: -pair[1]) if isinstance(top, dict) else []
    return [{"token": token, "logprob": value} for token, value in pairs]


def _gather_calls(choice: dict[str, Any], calls: list[_Call]) -> None:
    """Tool calls come in parts: the name once, the arguments bit by bit. Servers number them as they like: Ollama calls
    all of them 0, others give no number, some no id. So a part begins a call where anything says that it is another."""
    delta = choice.get("delta")
    for part in (delta.get("tool_calls") or []) if isinstance(delta, dict) else []:
        function = part.get("function") or {}
        number, own_id, name = part.get("index"), part.get("id") or "", function.get("name") or ""
        like = [call for call in calls if number is None or call.number == number]
        call = like[-1] if like else None
        if call is None or (call.id != own_id if own_id else name and not call.id and call.arguments):
            call = _Call(number, own_id)
            calls.append(call)
        if call.name != name:
            call.name += name
        call.arguments += function.get("arguments") or ""


def _written(calls: Sequence[_Call]) -> str:
    """As models write them. Arguments that are no JSON stay the text that they are."""
    lines = []
    for call in calls:
        try:
            arguments = json.loads(call.arguments or "{}")
        except ValueError:
            arguments = call.arguments
        written = json.dumps({"name": call.name, "arguments": arguments}, ensure_ascii=False)
        lines.append(f"<tool_call>\n{written}\n</tool_call>")
    return "\n".join(lines)
