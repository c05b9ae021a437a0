"""Chat completions with OpenAI's own client: whole, streamed, with tools, formats and log-probabilities."""

import asyncio
import json
from typing import Any

import openai
import pytest

from mesh.wire import engine_pb2
from node.errors import KithError
from node.http.chat import CHOICES_MAX, chat_ask
from node.http.fields import parsed
from tests.node.http.conftest import Door
from tests.node.http.scripted import Scripted, agent, delta, finished, saying, started

HERONS: Any = [{"role": "user", "content": "The herons stand in the water. They wait for fish. Then they fly."}]
SAID = "The herons stand in the water. They wait for fish."
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLING = ("I look. <tool", '_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>')
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
JSON_SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"messages": []}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "stop": ["\\udfff"]}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e400}',
        b'{"messages": [{"role": "user", "content": "x"}], "n": 9}',
        b'{"messages": [{"role": "user", "content": "x"}], "stream_options": 1}',
        b'{"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}',
        b'{"messages": [{"role": "user", "content": "x"}], "options": "yes"}',
    ],
)
def test_a_bad_request_is_refused(raw: bytes) -> None:
    with pytest.raises(KithError) as caught:
        chat_ask(parsed(raw))
    assert caught.value.code == "bad-request"


@pytest.mark.parametrize(
    "field",
    [
        {"functions": [{}]},
        {"audio": {"voice": "x"}},
        {"store": True},
        {"reasoning_effort": "high"},
        {"verbosity": "low"},
        {"modalities": ["text", "audio"]},
        {"tools": [WEATHER], "response_format": JSON_SCHEMA},
    ],
)
def test_a_field_that_would_change_the_answer_is_refused_by_name(field: dict[str, Any]) -> None:
    with pytest.raises(KithError) as caught:
        chat_ask({"messages": HERONS} | field)
    assert getattr(caught.value, "param", "") in field


def test_choices_have_seeds_that_differ() -> None:
    ask = chat_ask({"messages": HERONS, "n": CHOICES_MAX, "seed": 5, "user": "me", "unheard_of": 1})
    assert [request.sampling.seed for request in ask.requests] == list(range(5, 5 + CHOICES_MAX))


# With a node


def test_whole_and_streamed_say_the_same(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="kith", messages=HERONS)
    whole = raw.parse()
    assert whole.choices[0].message.content == SAID
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens == 23
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["x-kith-node"]
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="kith", messages=HERONS, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == SAID
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_long_prompt_of_prose_is_answered(client: openai.OpenAI) -> None:
    """2,201 words, which are its tokens here, in a context of 4,096; by its length alone it would have 4,402."""
    messages: Any = [{"role": "user", "content": "Yes. " + "herons " * 2200}]
    answer = client.chat.completions.create(model="kith", messages=messages, max_tokens=4)
    assert answer.usage
    assert 2200 <= answer.usage.prompt_tokens < 2300


async def test_async_and_a_limit_and_choices(door: Door) -> None:
    async with door.async_client() as client:
        whole = await client.chat.completions.create(model=door.model, messages=HERONS, n=3, max_completion_tokens=2)
        assert [choice.message.content for choice in whole.choices] == ["The herons"] * 3
        assert {choice.finish_reason for choice in whole.choices} == {"length"}
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 6
        said = ["", "", ""]
        async for chunk in await client.chat.completions.create(
            model=f"{door.name}/{door.model}", messages=HERONS, n=3, stream=True
        ):
            said[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert said == [SAID] * 3


@pytest.mark.parametrize(
    ("field", "error", "param"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, openai.BadRequestError, "messages[0]"),
        ({"tools": [WEATHER]}, openai.BadRequestError, "tools"),
        ({"tools": [WEATHER], "tool_choice": "required"}, openai.BadRequestError, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format"),
        ({"logprobs": True}, openai.BadRequestError, "logprobs"),
        ({"extra_body": {"options": ["a", "b"]}}, openai.BadRequestError, "options"),
        ({"messages": [{"role": "user", "content": "x " * 20_000}]}, openai.BadRequestError, None),
        ({"messages": [{"role": "user", "content": "x " * 20_000}], "stream": True}, openai.BadRequestError, None),
        ({"messages": [{"role": "user", "content": "x" * (1 << 20)}]}, openai.APIStatusError, None),
    ],
)
def test_errors_are_the_clients_own_exceptions(
    client: openai.OpenAI, field: dict[str, Any], error: type[openai.APIStatusError], param: str | None
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**({"model": "kith", "messages": HERONS} | field))
    assert (caught.value.param or "").startswith(param or "")
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id
    assert caught.value.response.headers["x-should-retry"] == "false"


# With agents that can more


async def test_a_model_calls_a_tool_and_hears_its_answer() -> None:
    mesh = Scripted(says=saying(*CALLING))
    async with mesh.client() as client:
        whole = await client.chat.completions.create(model="kith", messages=HERONS, tools=[WEATHER])
        [choice] = whole.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "I look."
        assert choice.message.tool_calls
        call: Any = choice.message.tool_calls[0]
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
        assert json.loads(mesh.asked[0].tools_json) == [WEATHER]
        assert mesh.asked[0].owner == "key:somebody"
        mesh.says = saying("Rain.")
        answer: Any = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        messages: Any = [*HERONS, choice.message.model_dump(exclude_none=True), answer]
        again = await client.chat.completions.create(model="kith", messages=messages, tools=[WEATHER])
        assert again.choices[0].message.content == "Rain."
        assert again.choices[0].finish_reason == "stop"
        assert json.loads(mesh.asked[1].messages[1].tool_calls_json)[0]["id"] == call.id
        assert mesh.asked[1].messages[2].tool_call_id == call.id


async def test_a_streamed_call_is_put_together_by_the_client() -> None:
    async with (
        Scripted(says=saying(*CALLING)).client() as client,
        client.chat.completions.stream(model="kith", messages=HERONS, tools=[WEATHER]) as stream,
    ):
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.content == "I look."
    assert final.choices[0].message.tool_calls
    assert final.choices[0].message.tool_calls[0].function.name == "weather"


@pytest.mark.parametrize("knows_tools", [True, False])
async def test_a_call_that_is_required_is_held_to_a_schema(knows_tools: bool) -> None:
    abilities = ("chat", "grammar", "tools") if knows_tools else ("chat", "grammar")
    mesh = Scripted([agent("a", abilities=abilities)], saying('{"name": "weather", "arguments": {"city": "Oslo"}}'))
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    async with mesh.client() as client:
        whole = await client.chat.completions.create(model="kith", messages=HERONS, tools=[WEATHER], tool_choice=choice)
    assert whole.choices[0].message.content is None
    assert whole.choices[0].message.tool_calls
    [asked] = mesh.asked
    assert json.loads(asked.json_schema)["properties"]["name"] == {"const": "weather"}
    assert bool(asked.tools_json) == knows_tools
    assert ("weather" in asked.messages[0].content) != knows_tools


async def test_tools_that_may_not_be_called_are_not_told() -> None:
    mesh = Scripted(says=saying('{"name": "weather", "arguments": {}}'))
    async with mesh.client() as client:
        whole = await client.chat.completions.create(model="kith", messages=HERONS, tools=[WEATHER], tool_choice="none")
    assert whole.choices[0].message.tool_calls is None
    assert whole.choices[0].message.content
    assert not mesh.asked[0].tools_json


async def test_a_format_becomes_a_schema() -> None:
    mesh = Scripted(says=saying('{"a": 1}'))
    async with mesh.client() as client:
        whole = await client.chat.completions.create(model="kith", messages=HERONS, response_format=JSON_SCHEMA)
        assert json.loads(whole.choices[0].message.content or "") == {"a": 1}
        await client.chat.completions.create(model="kith", messages=HERONS, response_format={"type": "json_object"})
    assert json.loads(mesh.asked[0].json_schema) == SCHEMA
    assert mesh.asked[1].json_schema == "{}"


async def test_log_probabilities_whole_and_streamed() -> None:
    top = [engine_pb2.TokenLogprob(piece=b"Hi", logprob=-0.5), engine_pb2.TokenLogprob(piece=b"\xc3", logprob=-2)]
    token = engine_pb2.TokenLogprob(token=1, piece=b"Hi", logprob=-0.5, top=top)
    mesh = Scripted(says=lambda request, route: [started(), delta("Hi", token), finished()])
    async with mesh.client() as client:
        whole = await client.chat.completions.create(model="kith", messages=HERONS, logprobs=True, top_logprobs=2)
        assert whole.choices[0].logprobs
        assert whole.choices[0].logprobs.content
        [entry] = whole.choices[0].logprobs.content
        assert (entry.token, entry.logprob, entry.bytes) == ("Hi", -0.5, [72, 105])
        assert [(one.token, one.bytes) for one in entry.top_logprobs] == [("Hi", [72, 105]), ("�", [195])]
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="kith", messages=HERONS, logprobs=True, stream=True
            )
        ]
    assert [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert (mesh.asked[0].logprobs, mesh.asked[0].top_logprobs) == (True, 2)


async def test_token_ids_need_one_model() -> None:
    mesh = Scripted([agent("a", "m"), agent("b", "other")])
    async with mesh.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="kith", messages=HERONS, logit_bias={"5": 1})
        assert caught.value.param == "logit_bias"
        await client.chat.completions.create(model="m", messages=HERONS, logit_bias={"5": 1})
    assert dict(mesh.asked[0].sampling.logit_bias) == {5: 1.0}


async def test_an_error_within_a_stream_is_raised_by_the_client() -> None:
    gone = KithError("node-unreachable", "a went away", "Ask again.")
    mesh = Scripted(says=lambda request, route: [started(), delta("Hel"), gone])
    said = ""
    async with mesh.client() as client:
        stream = await client.chat.completions.create(model="kith", messages=HERONS, stream=True)
        with pytest.raises(openai.APIError, match="went away"):  # noqa: PT012
            async for chunk in stream:
                said += chunk.choices[0].delta.content or ""
    assert said == "Hel"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_worth_a_retry_is_retried_by_the_client(stream: bool) -> None:
    mesh = Scripted()
    busy = KithError("busy", "16 wait already", "Wait.", retry_after_s=0.2)
    mesh.says = lambda request, route: [busy] if len(mesh.asked) < 2 else saying("Hello")(request, route)
    async with mesh.client() as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="kith", messages=HERONS, stream=stream)
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.type == "rate_limit_error"
        mesh.asked.clear()
        again = client.with_options(max_retries=1)
        await again.chat.completions.create(model="kith", messages=HERONS, stream=stream)
    assert len(mesh.asked) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_defect_of_ours_is_told_and_not_asked_for_again(stream: bool) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("the prompt was: my secret")

    mesh = Scripted(says=broken)
    async with mesh.client() as client:
        patient = client.with_options(max_retries=2)
        with pytest.raises(openai.InternalServerError) as caught:
            await patient.chat.completions.create(model="kith", messages=HERONS, stream=stream)
    assert (caught.value.code, caught.value.type) == ("internal-error", "server_error")
    assert "secret" not in caught.value.response.text
    assert len(mesh.asked) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_ends_the_generation(stream: bool) -> None:
    mesh = Scripted(says=lambda request, route: [started(), delta("Hel"), asyncio.Event()])
    async with mesh.client() as client:
        if stream:
            answer = await client.chat.completions.create(model="kith", messages=HERONS, stream=True)
            await anext(answer)
            await answer.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                await client.with_options(timeout=0.3).chat.completions.create(model="kith", messages=HERONS)
        async with asyncio.timeout(5):
            await mesh.closed.wait()
    assert mesh.ended == ["closed"]
