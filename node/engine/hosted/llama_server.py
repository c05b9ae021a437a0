"""llama-server's own API, for what the OpenAI API can not say: tokens, grammars, templates, scores.

A dialogue is rendered by the server (/apply-template), so that an answer can go on exactly from tokens or from text: it
is a prompt like any other (/completion). Scores are exact log-probabilities: a grammar of token numbers makes greedy
sampling say the continuation, and the server tells what the model itself would have given each token.

Not guaranteed: token numbers where several tokens make up one character: the server streams the last of them only, and
from there on deltas carry none (`tokens` still counts them). Log-probabilities would lack the same ones, so an answer
with them comes in one piece. Source: tools/server/README.md of llama.cpp, release b11549.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from mesh.wire import common_pb2, engine_pb2
from node.engine.backend import unsupported
from node.engine.hosted.client import HttpClient
from node.engine.hosted.dialect import (
    FORM_BYTES_MAX,
    Piece,
    logprob_of,
    messages_of,
    read_json,
    read_schema,
    vectors_of,
)
from node.errors import ExitCode, KithError

#: Tokens that penalties look back on; as the llama engine does.
PENALTY_TOKENS = 256
#: llama.cpp reads this seed as "take a random one".
_RANDOM_SEED = 0xFFFFFFFF
#: Texts that are tokenized at once.
COUNTING_AT_ONCE = 4


class LlamaServer:
    """Implements `Dialect`."""

    refuses_long_limits = False

    def __init__(self, client: HttpClient, model: str) -> None:
        self._client = client
        self._model = model

    async def generate(self, command: engine_pb2.GenerateRequest) -> AsyncGenerator[Piece, None]:
        body = self.body(command, await self._prompt(command))
        if command.logprobs:
            yield _whole(await self._client.post("/completion", body, root=True), command)
            return
        told, numbered = 0, True  # tokens so far; are all their numbers known?
        stream = self._client.stream(
            "/completion", body | {"stream": True}, lambda chunk: bool(chunk.get("stop")), root=True
        )
        async with aclosing(stream) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if "prompt_progress" in chunk:
                    continue
                piece = _piece(chunk)
                piece.tokens = max(0, piece.completion_tokens - told)
                told += piece.tokens
                numbered = numbered and len(piece.token_ids) == piece.tokens
                if not numbered or not command.want_tokens:
                    piece.token_ids = []
                yield piece

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        async def ask(part: list[str]) -> Any:
            return await self._client.post("/v1/embeddings", {"model": self._model, "input": part}, root=True)

        return await vectors_of(texts, ask)

    async def score(self, command: engine_pb2.ScoreRequest) -> engine_pb2.ScoreReply:
        prompt = await self._rendered(command)
        tokens = await self._tokens(prompt, special=True)
        usage = common_pb2.Usage(prompt_tokens=len(tokens))
        reply = engine_pb2.ScoreReply()
        for text in command.continuations:
            continuation = await self._continuation(prompt, tokens, text)
            body = {
                "model": self._model,
                "prompt": tokens,
                "n_predict": len(continuation),
                "temperature": 0,
                "n_probs": 1,
                "grammar": "root ::= " + " ".join(f"<[{token}]>" for token in continuation),
                "cache_prompt": True,
            }
            entries = (await self._client.post("/completion", body, root=True)).get("completion_probabilities") or []
            if [entry.get("id") for entry in entries] != continuation:
                message = "the server did not say what it was to score"
                raise KithError("engine-failed", message, "Its version may not know grammars of tokens.")
            reply.log_probabilities.append(sum(logprob_of(entry).logprob for entry in entries))
            reply.token_counts.append(len(continuation))
            usage.completion_tokens += len(continuation)
        reply.usage.CopyFrom(usage)
        return reply

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        places = asyncio.Semaphore(COUNTING_AT_ONCE)

        async def count(text: str) -> int:
            async with places:
                return len(await self._tokens(text, special=False))

        async with asyncio.TaskGroup() as group:
            counting = [group.create_task(count(text)) for text in texts]
        return [one.result() for one in counting]

    def body(self, command: engine_pb2.GenerateRequest, prompt: str) -> dict[str, Any]:
        """Every sampler is set, so that the defaults of the server and of the model's file do not count."""
        sampling = command.sampling
        going_on: list[Any] = [prompt, *command.continue_tokens]
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": going_on if command.continue_tokens else prompt + command.continue_from,
            "n_predict": command.max_tokens or -1,
            "cache_prompt": True,
            "return_tokens": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p if 0 < sampling.top_p < 1 else 1.0,
            "min_p": sampling.min_p,
            "typical_p": 1.0,
            "repeat_penalty": sampling.repeat_penalty or 1.0,
            "repeat_last_n": PENALTY_TOKENS,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "seed": _seed_of(sampling),
            "stop": list(command.stop),
        }
        if sampling.logit_bias:
            body["logit_bias"] = [[token, bias] for token, bias in sampling.logit_bias.items()]
        if command.logprobs:
            body["n_probs"] = max(1, command.top_logprobs)
        if command.adapter:
            raise unsupported("openai", "use LoRA adapters")
        if (command.grammar or command.json_schema) and (command.continue_tokens or command.continue_from):
            raise unsupported("openai", "go on within a grammar or schema")
        if command.grammar:
            if len(command.grammar) > FORM_BYTES_MAX:
                message = f"the grammar is longer than {FORM_BYTES_MAX:,} characters"
                raise KithError("bad-request", message, "Simplify it.", ExitCode.BAD_INPUT)
            _check_grammar(command.grammar)
            body["grammar"] = command.grammar
        elif command.json_schema:
            schema = read_schema(command.json_schema)
            body["json_schema"] = schema or {"type": "object"}
        return body

    async def _prompt(self, command: engine_pb2.GenerateRequest) -> str:
        tools = read_json(command.tools_json, list, "the tools") if command.tools_json else []
        return await self._rendered(command, tools)

    async def _rendered(
        self, command: engine_pb2.GenerateRequest | engine_pb2.ScoreRequest, tools: Sequence[Any] = ()
    ) -> str:
        if not command.messages:
            return command.prompt
        body: dict[str, Any] = {"model": self._model, "messages": messages_of(command)}
        if tools:
            body["tools"] = list(tools)
        return str((await self._client.post("/apply-template", body, root=True))["prompt"])

    async def _continuation(self, prompt: str, prompt_tokens: list[int], text: str) -> list[int]:
        """Tokens of `text` as it reads after the prompt; on its own where the two would melt at the seam."""
        joined = await self._tokens(prompt + text, special=True)
        if len(joined) > len(prompt_tokens) and joined[: len(prompt_tokens)] == prompt_tokens:
            return joined[len(prompt_tokens) :]
        return await self._tokens(text, special=False)

    async def _tokens(self, text: str, special: bool) -> list[int]:
        """`special`: control tokens in the text count as such, and the begin token is added where the model has one."""
        body = {"model": self._model, "content": text, "add_special": special, "parse_special": special}
        return [int(token) for token in (await self._client.post("/tokenize", body, root=True))["tokens"]]


def _check_grammar(text: str) -> None:
    """Raises `KithError` (`bad-grammar`). Threat: llama.cpp's reader recurses without bounds, and its sampler does not
    end in some left recursion, which takes the whole process with it."""
    from node.engine.grammar import Grammar  # loads numpy, which most servers' clients do without

    Grammar(text)


def _piece(chunk: dict[str, Any]) -> Piece:
    piece = Piece(
        text=str(chunk.get("content") or ""),
        token_ids=[int(token) for token in chunk.get("tokens") or []],
        completion_tokens=int(chunk.get("tokens_predicted") or 0),
    )
    if chunk.get("stop"):
        piece.reason = "length" if chunk.get("stop_type") == "limit" else "stop"
        piece.prompt_tokens = int(chunk.get("tokens_evaluated") or 0)
        timings = chunk.get("timings") or {}
        piece.cached_tokens = int(timings.get("cache_n") or 0)
        piece.decode_s = float(timings.get("predicted_ms") or 0) / 1000
    return piece


def _whole(reply: Any, command: engine_pb2.GenerateRequest) -> Piece:
    """An answer that came at once."""
    piece = _piece(reply)
    piece.reason = piece.reason or "stop"
    piece.tokens = piece.completion_tokens
    piece.token_ids = piece.token_ids if command.want_tokens else []
    for entry in reply.get("completion_probabilities") or []:
        told = logprob_of(entry)
        del told.top[command.top_logprobs :]
        piece.logprobs.append(told)
    return piece


def _seed_of(sampling: engine_pb2.Sampling) -> int:
    """Folded to 32 bits; never the one that means "random"."""
    folded = (sampling.seed ^ (sampling.seed >> 32)) & 0xFFFFFFFF
    return folded if folded != _RANDOM_SEED else _RANDOM_SEED >> 1
