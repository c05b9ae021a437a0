"""What is found out about servers that do what they are told, and about those that only say yes."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from node.engine.hosted.llama_server import LlamaServer
from node.engine.hosted.openai_api import OpenaiApi
from node.engine.hosted.probe import explore
from node.errors import KithError
from tests.node.engine.hosted.talking import Told, says, streams, told_server

ONE_MODEL = {"data": [{"id": "small"}]}
MESSAGE = {"choices": [{"message": {"role": "assistant", "content": "Hello!"}, "text": "Hello!", "logprobs": None}]}


@pytest.fixture
async def server() -> AsyncIterator[Told]:
    async with told_server() as one:
        one.answers["/v1/models"] = says(ONE_MODEL)
        yield one


async def obeys(request: Request, body: Any) -> Response:
    """A server that can do it all."""
    message: dict[str, Any] = {"role": "assistant", "content": "Hello!"}
    if form := body.get("response_format"):
        word = form["json_schema"]["schema"]["properties"]["word"]["enum"][0]
        message["content"] = json.dumps({"word": word})
    if tools := body.get("tools"):
        message["tool_calls"] = [{"function": {"name": tools[0]["function"]["name"], "arguments": "{}"}}]
    told = {"token": "a", "logprob": -1.0}
    logprobs = {"content": [{**told, "top_logprobs": [told]}]} if body.get("logprobs") else None
    return JSONResponse({"choices": [{"message": message, "logprobs": logprobs}]})


async def test_server_that_says_yes_to_everything_claims_nothing(server: Told) -> None:
    server.answers["/v1/chat/completions"] = says(MESSAGE)
    server.answers["/v1/completions"] = says(MESSAGE)
    server.answers["/v1/embeddings"] = says({"data": [{"index": 0, "embedding": []}]})
    found = await explore(server.client(), "")
    assert (found.model, found.abilities, found.counts_tokens) == ("small", ("chat", "generate"), False)
    assert found.embedding_size == 0
    assert isinstance(found.dialect, OpenaiApi)


async def test_server_that_only_chats(server: Told) -> None:
    server.answers["/v1/chat/completions"] = says(MESSAGE)
    assert (await explore(server.client(), "")).abilities == ("chat",)


async def test_what_was_shown_is_claimed(server: Told) -> None:
    server.answers["/v1/chat/completions"] = obeys
    server.answers["/v1/embeddings"] = says({"data": [{"index": 0, "embedding": [3, 4]}]})
    found = await explore(server.client(), "small")
    assert set(found.abilities) == {"chat", "embed", "json_schema", "logprobs", "tools"}
    assert found.embedding_size == 2


async def test_vllm_is_known_by_its_name(server: Told) -> None:
    server.answers["/v1/models"] = says({"data": [{"id": "big", "owned_by": "vllm", "max_model_len": 32768}]})
    server.answers["/tokenize"] = says({"count": 4})
    server.answers["/v1/chat/completions"] = streams({"choices": [{"delta": {"content": "Hello."}}]})
    found = await explore(server.client(), "")
    assert set(found.abilities) == {"chat", "continue"}
    assert (found.kind, found.context_tokens, found.counts_tokens) == ("vLLM", 32768, True)
    assert await found.dialect.count_tokens(["x"]) == [4]


async def test_llama_server_is_known_by_what_it_tells(server: Told) -> None:
    meta = {"n_params": 9, "n_ctx_train": 8192, "n_vocab": 7, "ftype": "Q4_1", "size": 5}
    server.answers["/v1/models"] = says({"data": [{"id": "small", "meta": meta}]})
    server.answers["/props"] = says({"default_generation_settings": {"n_ctx": 512}, "chat_template": "x"})
    found = await explore(server.client(), "")
    assert isinstance(found.dialect, LlamaServer)
    assert (found.kind, found.context_tokens, found.trained_context_tokens) == ("llama-server", 512, 8192)
    assert (found.parameters, found.vocabulary_size, found.quantization) == (9, 7, "Q4_1")
    # Nothing that it was asked to show came, so nothing of it is claimed.
    assert set(found.abilities) == {"generate", "chat", "continue"}


async def test_list_that_is_not_there_leaves_the_name_to_the_user(server: Told) -> None:
    del server.answers["/v1/models"]
    assert (await explore(server.client(), "mine")).model == "mine"
    with pytest.raises(KithError, match="no model is named"):
        await explore(server.client(), "")


async def test_refused_key_ends_it(server: Told) -> None:
    server.answers["/v1/models"] = says({}, 401)
    with pytest.raises(KithError, match="refuses the key"):
        await explore(server.client(), "small")
