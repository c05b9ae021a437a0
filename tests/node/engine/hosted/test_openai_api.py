"""What goes to an OpenAI-compatible server, and what is read from it; then the same against a real llama-server."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mesh.wire import engine_pb2
from node.engine.hosted.openai_api import OpenaiApi
from node.errors import KithError
from tests.node.engine import model_server
from tests.node.engine.hosted.talking import Told, chat, client_of, pieces_of, says, streams, text_of, told_server

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture
async def server() -> AsyncIterator[Told]:
    async with told_server() as one:
        yield one


def body_of(command: engine_pb2.GenerateRequest, kind: str = "") -> dict[str, Any]:
    client = client_of("http://127.0.0.1:9/v1")
    return OpenaiApi(client, "m", kind).body(command)


def test_body_holds_what_was_asked_and_no_more() -> None:
    command = chat("Hi", max_tokens=5, stop=["\n"], logprobs=True, top_logprobs=3)
    command.sampling.MergeFrom(
        engine_pb2.Sampling(
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            min_p=0.1,
            repeat_penalty=1.2,
            seed=2**40 + 9,
            frequency_penalty=0.1,
            presence_penalty=0.2,
            logit_bias={7: -100},
        )
    )
    command.json_schema = json.dumps(SCHEMA)
    assert body_of(command) == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "seed": 9,
        "max_tokens": 5,
        "top_p": 0.9,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "logit_bias": {"7": -100},
        "stop": ["\n"],
        "logprobs": True,
        "top_logprobs": 3,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
        },
        "messages": [{"role": "user", "content": "Hi"}],
    }
    more = body_of(command, "vllm")
    assert (more["top_k"], more["min_p"], more["repetition_penalty"]) == (40, 0.1, 1.2)


async def test_a_field_that_a_model_does_not_take_is_left_out_or_renamed_from_then_on(server: Told) -> None:
    """As OpenAI's reasoning models: they refuse one field after the other, each by name."""

    async def answer(request: Request, asked: Any) -> Response:
        if "max_tokens" in asked:
            return refusal("max_tokens", "unsupported_parameter")
        if asked.get("temperature", 1) != 1:
            return refusal("temperature", "unsupported_value")
        return await streams({"choices": [{"delta": {"content": "Yes."}, "finish_reason": "stop"}]})(request, asked)

    server.answers["/v1/chat/completions"] = answer
    dialect = OpenaiApi(server.client(), "m", "")
    command = chat("Hi", max_tokens=5, sampling=engine_pb2.Sampling(temperature=0.5))
    told = await asyncio.gather(*(pieces_of(dialect, command) for _ in range(2)))
    assert [text_of(pieces) for pieces in told] == ["Yes.", "Yes."]
    already = len(server.asked)
    await pieces_of(dialect, command)
    assert len(server.asked) == already + 1, "it was learnt"
    last = server.asked[-1][1]
    assert (last["max_completion_tokens"], "max_tokens" in last, "temperature" in last) == (5, False, False)


@pytest.mark.parametrize(("field", "code"), [("messages", "unsupported_value"), ("max_tokens", "too_large")])
async def test_another_refusal_is_told(server: Told, field: str, code: str) -> None:
    async def answer(request: Request, asked: Any) -> Response:
        return refusal(field, code)

    server.answers["/v1/chat/completions"] = answer
    with pytest.raises(KithError, match="not so") as caught:
        await pieces_of(OpenaiApi(server.client(), "m", ""), chat("Hi", max_tokens=5))
    assert (caught.value.code, len(server.asked)) == ("agent-refused", 1)


def refusal(field: str, code: str) -> Response:
    error = {"message": f"{field}: not so", "type": "invalid_request_error", "param": field, "code": code}
    return JSONResponse({"error": error}, 400)


def test_any_json_and_vllms_own_words() -> None:
    assert body_of(chat("Hi", json_schema="{}"))["response_format"] == {"type": "json_object"}
    assert body_of(chat("Hi", grammar="root ::= x"), "vllm")["structured_outputs"] == {"grammar": "root ::= x"}
    going_on = body_of(chat("Hi", continue_from="So"), "vllm")
    assert going_on["messages"][-1] == {"role": "assistant", "content": "So"}
    assert (going_on["continue_final_message"], going_on["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize(
    ("command", "words", "code"),
    [
        (chat("Hi", grammar="root ::= x"), "follow a grammar", "agent-refused"),
        (chat("Hi", continue_from="So"), "go on from a given beginning", "agent-refused"),
        (chat("Hi", continue_tokens=[1]), "go on from tokens", "agent-refused"),
        (chat("Hi", adapter="mine"), "LoRA", "agent-refused"),
        (engine_pb2.GenerateRequest(prompt="Hi", json_schema="{}"), "plain prompt to a schema", "agent-refused"),
        (chat("Hi", json_schema="{"), "no JSON", "bad-request"),
        (chat("Hi", tools_json="{}"), "no JSON array", "bad-request"),
    ],
)
def test_what_the_api_can_not_say_is_refused(command: engine_pb2.GenerateRequest, words: str, code: str) -> None:
    with pytest.raises(KithError, match=words) as caught:
        body_of(command)
    assert caught.value.code == code


async def test_tool_calls_come_written_out_after_the_text(server: Told) -> None:
    parts = [
        {"index": 0, "id": "a", "function": {"name": "add", "arguments": '{"x"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
        {"index": 1, "function": {"name": "stop"}},
    ]
    server.answers["/v1/chat/completions"] = streams(
        {"choices": [{"delta": {"content": "Well. "}}]},
        *({"choices": [{"delta": {"tool_calls": [part]}}]} for part in parts),
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}},
    )
    tools = '[{"type": "function", "function": {"name": "add"}}]'
    pieces = await pieces_of(OpenaiApi(server.client(), "m"), chat("Hi", tools_json=tools))
    assert text_of(pieces) == (
        'Well. <tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    )
    assert [piece.reason for piece in pieces if piece.reason] == ["stop"]
    assert (pieces[-1].prompt_tokens, pieces[-1].completion_tokens) == (9, 4)
    assert server.asked[-1][1]["tools"] == json.loads(tools)


@pytest.mark.parametrize(
    "parts",
    [
        # Ollama 0.20: each call whole, and all of them number 0.
        [
            {"index": 0, "id": "a", "function": {"name": "add", "arguments": '{"x": 1}'}},
            {"index": 0, "id": "b", "function": {"name": "add", "arguments": '{"x": 2}'}},
        ],
        # Gemini and others: no number, and no id that would tell.
        [
            {"id": "", "function": {"name": "add", "arguments": '{"x": 1}'}},
            {"id": "", "function": {"name": "add", "arguments": '{"x": 2}'}},
        ],
        # No number, but an id; the rest of the arguments belongs to the call that came last.
        [
            {"id": "a", "function": {"name": "add", "arguments": '{"x"'}},
            {"function": {"arguments": ": 1}"}},
            {"id": "b", "function": {"name": "add", "arguments": '{"x": '}},
            {"function": {"arguments": "2}"}},
        ],
        # The name is said again with each part.
        [
            {"index": 0, "id": "a", "function": {"name": "add", "arguments": ""}},
            {"index": 0, "id": "a", "function": {"name": "add", "arguments": '{"x": 1}'}},
            {"index": 1, "id": "b", "function": {"name": "add", "arguments": ""}},
            {"index": 1, "id": "b", "function": {"name": "add", "arguments": '{"x": 2}'}},
        ],
        # Parts of two calls, mixed.
        [
            {"index": 0, "id": "a", "function": {"name": "add", "arguments": '{"x"'}},
            {"index": 1, "id": "b", "function": {"name": "add", "arguments": '{"x"'}},
            {"index": 0, "function": {"arguments": ": 1}"}},
            {"index": 1, "function": {"arguments": ": 2}"}},
        ],
    ],
    ids=["one number", "no number, no id", "no number", "name again", "mixed"],
)
@pytest.mark.parametrize("reason", ["tool_calls", None])
async def test_calls_are_told_apart_however_a_server_numbers_them(
    server: Told, parts: list[Any], reason: str | None
) -> None:
    server.answers["/v1/chat/completions"] = streams(
        *({"choices": [{"delta": {"tool_calls": [part]}}]} for part in parts),
        {"choices": [{"delta": {}, "finish_reason": reason}]},
    )
    text = text_of(await pieces_of(OpenaiApi(server.client(), "m"), chat("Hi")))
    calls = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert calls == [{"name": "add", "arguments": {"x": number}} for number in (1, 2)]


async def test_arguments_that_are_no_json_stay_text(server: Told) -> None:
    part = {"index": 0, "function": {"name": "f", "arguments": "{x"}}
    server.answers["/v1/chat/completions"] = streams({"choices": [{"delta": {"tool_calls": [part]}}]})
    assert '"arguments": "{x"' in text_of(await pieces_of(OpenaiApi(server.client(), "m"), chat("Hi")))


@pytest.mark.parametrize(
    ("last", "done", "whole"),
    [
        ({"choices": [{"delta": {"content": "!"}}]}, False, False),
        ({"choices": [{"delta": {"content": "!"}}]}, True, True),  # Ollama may end so, without a reason
        ({"choices": [{"delta": {"content": "!"}, "finish_reason": "stop"}]}, False, True),
        ({"choices": [{"delta": {"content": "!"}, "finish_reason": "abort"}]}, True, False),
        ({"choices": [{"delta": {"content": "!"}, "finish_reason": "error"}]}, True, False),
    ],
)
async def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(
    server: Told, last: Any, done: bool, whole: bool
) -> None:
    """A proxy may end a stream properly though the server behind it died; vLLM gives up with a reason of its own."""
    server.answers["/v1/chat/completions"] = streams({"choices": [{"delta": {"content": "Well"}}]}, last, done=done)
    said: list[str] = []

    async def read() -> None:
        async for piece in OpenaiApi(server.client(), "m").generate(chat("Hi")):
            said.append(piece.text)

    if whole:
        await read()
        assert "".join(said) == "Well!"
    else:
        with pytest.raises(KithError, match="broke off its answer") as caught:
            await read()
        assert caught.value.code == "engine-failed"
        assert said[0] == "Well", "what came stays, for another agent to go on from"


async def test_logprobs_of_completions_are_read_too(server: Told) -> None:
    told = {"tokens": ["a", "é"], "token_logprobs": [-0.5, None], "top_logprobs": [{"b": -2.0, "a": -0.5}, None]}
    server.answers["/v1/completions"] = streams({"choices": [{"text": "aé", "logprobs": told}]})
    command = engine_pb2.GenerateRequest(prompt="x", logprobs=True, top_logprobs=9)
    [piece] = await pieces_of(OpenaiApi(server.client(), "m"), command)
    assert server.asked[-1][1]["logprobs"] == 5
    assert [(one.piece, one.logprob) for one in piece.logprobs] == [(b"a", -0.5), ("é".encode(), -9999.0)]
    assert [one.piece for one in piece.logprobs[0].top] == [b"a", b"b"]
    assert piece.tokens == 2


async def test_vllm_counts_tokens(server: Told) -> None:
    server.answers["/tokenize"] = says({"count": 3, "tokens": [1, 2, 3]})
    assert await OpenaiApi(server.client(), "m", "vllm", tokenizes=True).count_tokens(["a", "b"]) == [3, 3]
    assert server.asked[0] == ("/tokenize", {"model": "m", "prompt": "a", "add_special_tokens": False})


@pytest.fixture(scope="module")
def real(model_path: Path) -> Iterator[str]:
    pytest.importorskip("xllamacpp")
    with model_server.llama_server(model_path) as url:
        yield url


@pytest.mark.model
@pytest.mark.slow
async def test_a_real_server_is_understood(real: str) -> None:
    client = client_of(real, model_server.KEY)
    try:
        api = OpenaiApi(client, model_server.MODEL)
        pieces = await pieces_of(api, chat("Name the capital of France.", max_tokens=12, logprobs=True, top_logprobs=2))
        told = [one for piece in pieces for one in piece.logprobs]
        assert b"".join(one.piece for one in told).decode() == text_of(pieces)
        assert all(len(one.top) == 2 and one.logprob <= 0 for one in told)
        assert pieces[-1].completion_tokens in (len(told), len(told) + 1)  # its end is a token too
        assert [piece.reason for piece in pieces if piece.reason] in (["stop"], ["length"])
        held = await pieces_of(api, chat("How old are you?", max_tokens=40, json_schema=json.dumps(SCHEMA)))
        assert isinstance(json.loads(text_of(held))["a"], int)
        vectors, tokens = await api.embed(["a cat", "a dog", "the tax law of 1987"])
        near, far = (sum(x * y for x, y in zip(vectors[0], other, strict=True)) for other in vectors[1:])
        assert far < near < 1
        assert tokens > 6
    finally:
        await client.close()
