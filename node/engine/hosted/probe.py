"""What a model server is and what it can really do, found out by asking, so that a profile says the truth.

Idea: an ability is claimed when a small request shows it, not when a document does: a server that ignores what it does
not know answers 200 all the same. So the schema asks for a word that nobody says by chance, the grammar too, a tool has
to be called, log-probabilities have to be there. It costs about a hundred tokens when an engine starts.

Not tried, known by name: vLLM goes on from a given beginning. Not offered where it can not be tried: anything else.
Some servers do it and others begin anew, which looks like success.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.wire import engine_pb2
from node.abilities import EMBEDDER_ABILITIES
from node.engine.hosted.client import HttpClient, Refused
from node.engine.hosted.dialect import Dialect
from node.engine.hosted.llama_server import LlamaServer
from node.engine.hosted.openai_api import OpenaiApi
from node.errors import KithError

#: Longest wait for one trial, seconds: the first one may wait for the model to be loaded.
TRIAL_SECONDS = 60.0
#: A word that no model says unless it is made to.
WORD = "qzvx7"
MODELS_LISTED = 10


@dataclass(frozen=True)
class Found:
    """A server as it was found. Figures that it does not tell are 0."""

    dialect: Dialect
    kind: str  # for people: "llama-server", "vLLM", "Ollama", or "an OpenAI-compatible server"
    model: str
    abilities: tuple[str, ...]
    counts_tokens: bool  # exactly; else they are estimated
    context_tokens: int = 0  # of one request
    trained_context_tokens: int = 0
    parameters: int = 0
    model_bytes: int = 0
    vocabulary_size: int = 0
    embedding_size: int = 0
    quantization: str = ""
    has_chat_template: bool = False


async def explore(client: HttpClient, wanted: str) -> Found:
    """Find the model named `wanted` (or the only one) and try what the server can do with it. Raises `KithError`."""
    entry = await _find_model(client, wanted)
    model, owner = str(entry["id"]), str(entry.get("owned_by") or "")
    props = await _properties(client)
    if props is not None:
        return await _llama_server(client, model, entry, props)
    kind = owner if owner == "vllm" else ""
    plain = OpenaiApi(client, model, kind)
    tokenizes = kind == "vllm" and await _works(lambda: OpenaiApi(client, model, kind, True).count_tokens([WORD]))
    abilities = ["chat"]
    size = await _embedding_size(plain)
    if size:
        abilities.append("embed")
    for ability, trial in _TRIALS.items():
        if await _works(lambda trial=trial: trial(client, model)):  # type: ignore[misc]
            abilities.append(ability)
    if kind == "vllm":
        abilities.append("continue")
        if await _says_word(plain, engine_pb2.GenerateRequest(grammar=f'root ::= "{WORD}"')):
            abilities.append("grammar")
    context = entry.get("max_model_len")
    return Found(
        dialect=OpenaiApi(client, model, kind, tokenizes),
        kind={"vllm": "vLLM", "library": "Ollama"}.get(owner, "an OpenAI-compatible server"),
        model=model,
        abilities=tuple(abilities),
        counts_tokens=tokenizes,
        context_tokens=context if isinstance(context, int) else 0,
        embedding_size=size,
        has_chat_template=True,
    )


async def explore_embedder(client: HttpClient) -> Found:
    """A llama-server whose only model is made for vectors. Nothing is tried but these. Raises `KithError`."""
    entry = await _find_model(client, "")
    dialect = LlamaServer(client, str(entry["id"]))
    vectors, _ = await dialect.embed([WORD])
    return _found(dialect, entry, await client.get("/props", root=True), EMBEDDER_ABILITIES, len(vectors[0]))


async def _llama_server(client: HttpClient, model: str, entry: dict[str, Any], props: dict[str, Any]) -> Found:
    dialect = LlamaServer(client, model)
    abilities = ["generate", "chat", "continue"]
    score = engine_pb2.ScoreRequest(prompt="one two", continuations=[" three four"])
    if await _works(lambda: dialect.score(score)):
        abilities.append("score")
    if await _says_word(dialect, engine_pb2.GenerateRequest(grammar=f'root ::= "{WORD}"')):
        abilities += ["grammar", "json_schema"]
    if await _tells_logprobs(dialect):
        abilities.append("logprobs")
    size = await _embedding_size(dialect)
    if size:
        abilities.append("embed")
    if (props.get("chat_template_caps") or {}).get("supports_tools"):
        abilities.append("tools")
    return _found(dialect, entry, props, tuple(abilities), size)


def _found(
    dialect: LlamaServer, entry: dict[str, Any], props: dict[str, Any], abilities: tuple[str, ...], embedding_size: int
) -> Found:
    """By what llama-server tells of itself."""
    meta = entry.get("meta") or {}
    return Found(
        dialect=dialect,
        kind="llama-server",
        model=str(entry["id"]),
        abilities=abilities,
        counts_tokens=True,
        context_tokens=int(props["default_generation_settings"].get("n_ctx") or meta.get("n_ctx") or 0),
        trained_context_tokens=int(meta.get("n_ctx_train") or 0),
        parameters=int(meta.get("n_params") or 0),
        model_bytes=int(meta.get("size") or 0),
        vocabulary_size=int(meta.get("n_vocab") or 0),
        embedding_size=embedding_size,
        quantization=str(meta.get("ftype") or ""),
        has_chat_template=bool(props.get("chat_template")),
    )


async def _find_model(client: HttpClient, wanted: str) -> dict[str, Any]:
    """The model's entry in the server's list, checked against it where there is one. Raises `KithError`."""
    listed: list[dict[str, Any]] = []
    try:
        data = (await client.get("/models"))["data"]
        listed = [entry for entry in data if isinstance(entry, dict) and entry.get("id")]
    except (TypeError, LookupError):
        pass
    except Refused as error:
        if error.status in (401, 403):
            raise
    by_name = {str(entry["id"]): entry for entry in listed}
    if wanted and (wanted in by_name or not listed):
        return by_name.get(wanted, {"id": wanted})
    known = ", ".join(list(by_name)[:MODELS_LISTED]) or "none that it would list"
    if wanted:
        raise KithError("bad-model", f"{client.url} has no model {wanted!r}; it has {known}", "Name one by --model.")
    if len(listed) == 1:
        return listed[0]
    raise KithError("bad-model", f"no model is named; {client.url} has {known}", "Name one by --model.")


async def _properties(client: HttpClient) -> dict[str, Any] | None:
    """What llama-server tells of itself; None from others."""
    try:
        props = await client.get("/props", root=True)
    except KithError:
        return None
    known = isinstance(props, dict) and isinstance(props.get("default_generation_settings"), dict)
    return props if known else None


async def _works(trial: Callable[[], Awaitable[Any]]) -> bool:
    """Whether it ends without an operating error, and not with False."""
    try:
        return (await trial()) is not False
    except (KithError, LookupError, TypeError, ValueError, AttributeError):
        return False


async def _says_word(dialect: Dialect, form: engine_pb2.GenerateRequest) -> bool:
    command = engine_pb2.GenerateRequest(
        messages=[engine_pb2.ChatMessage(role="user", content="Hello.")], max_tokens=24
    )
    command.MergeFrom(form)

    async def trial() -> bool:
        said = [piece.text async for piece in dialect.generate(command)]
        return "".join(said).strip() == WORD

    return await _works(trial)


async def _tells_logprobs(dialect: Dialect) -> bool:
    command = engine_pb2.GenerateRequest(prompt="one two", max_tokens=1, logprobs=True, top_logprobs=1)

    async def trial() -> bool:
        return any([piece.logprobs async for piece in dialect.generate(command)])

    return await _works(trial)


async def _embedding_size(dialect: Dialect) -> int:
    """Of the vectors; 0: none are made."""
    try:
        vectors, _ = await dialect.embed(["a"])
    except KithError:
        return 0
    return len(vectors[0])


async def _completes(client: HttpClient, model: str) -> bool:
    body = {"model": model, "prompt": "one two", "max_tokens": 1}
    reply = await client.post("/completions", body, within_s=TRIAL_SECONDS)
    return isinstance(reply["choices"][0]["text"], str)


async def _holds_schema(client: HttpClient, model: str) -> bool:
    schema = {
        "type": "object",
        "properties": {"word": {"type": "string", "enum": [WORD]}},
        "required": ["word"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    message = await _chat(client, model, "Hello.", max_tokens=40, response_format=form)
    return bool(json.loads(message["message"]["content"]) == {"word": WORD})


async def _chat_logprobs(client: HttpClient, model: str) -> bool:
    choice = await _chat(client, model, "Hello.", max_tokens=1, logprobs=True, top_logprobs=1)
    return bool(choice["logprobs"]["content"][0]["top_logprobs"])


async def _calls_tools(client: HttpClient, model: str) -> bool:
    function = {"name": WORD, "description": "Rings the bell.", "parameters": {"type": "object", "properties": {}}}
    choice = await _chat(
        client,
        model,
        f"Ring the bell: call the tool {WORD}.",
        max_tokens=64,
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
    )
    calls: Sequence[Any] = choice["message"].get("tool_calls") or []
    return bool(calls) and calls[0]["function"]["name"] == WORD


async def _chat(client: HttpClient, model: str, text: str, **more: Any) -> dict[str, Any]:
    """The first choice of a short answer that is no stream."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **more}
    reply = await client.post("/chat/completions", body, within_s=TRIAL_SECONDS)
    return dict(reply["choices"][0])


_TRIALS: dict[str, Callable[[HttpClient, str], Awaitable[bool]]] = {
    "generate": _completes,
    "json_schema": _holds_schema,
    "logprobs": _chat_logprobs,
    "tools": _calls_tools,
}
