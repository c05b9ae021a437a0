"""Responses with OpenAI's own client: whole, streamed, kept, with tools and formats."""

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from mesh.wire import engine_pb2
from node.errors import KithError
from node.http.response_store import ResponseStore
from node.http.responses import responses_ask
from tests.node.http.scripted import Scripted, delta, finished, saying, started

HERONS = "The herons stand in the water. They wait for fish. Then they fly."
SAID = "The herons stand in the water. They wait for fish."
WEATHER: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


class City(BaseModel):
    name: str


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_can_not_be_honoured_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    given = body if not body else {"input": "x"} | body
    with pytest.raises(KithError) as caught:
        responses_ask(given, ResponseStore(lambda: 0.0), "me")
    assert getattr(caught.value, "param", "") == param


def test_whole_and_streamed_say_the_same(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="kith", input=HERONS, metadata={"a": "b"})
    assert whole.output_text == SAID
    assert whole.status == "completed"
    assert whole.usage is not None
    assert whole.usage.total_tokens == 23
    assert whole.metadata == {"a": "b"}
    with client.responses.stream(model="kith", input=HERONS) as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert said == final.output_text == SAID
    assert final.usage == whole.usage
    cut = client.responses.create(model="kith", input=HERONS, max_output_tokens=2)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_errors_are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="kith", input="x", previous_response_id="resp_unheard_of")
    assert caught.value.code == "response-unknown"
    assert caught.value.param == "previous_response_id"
    for asked in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            asked("resp_unheard_of")
        assert caught.value.param is None, "the path names it, no field"
        assert "previous" not in caught.value.message
        assert "as input" not in caught.value.message
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="kith", input="x", tools=[WEATHER])


async def test_a_dialogue_goes_on_from_what_the_node_keeps() -> None:
    mesh = Scripted(says=saying("Hello."))
    async with mesh.client() as client:
        first = await client.responses.create(model="kith", input="Hi.", instructions="Be brief.")
        second = await client.responses.create(model="kith", input="And?", previous_response_id=first.id, store=False)
        assert second.previous_response_id == first.id
        said = [(message.role, message.content) for message in mesh.asked[1].messages]
        assert said == [("user", "Hi."), ("assistant", "Hello."), ("user", "And?")], "instructions are not carried on"
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="kith", input="x", previous_response_id=second.id)
        assert (await client.responses.retrieve(first.id)).output_text == "Hello."
        other = client.with_options(default_headers={"x-who": "another"})
        with pytest.raises(openai.NotFoundError):
            await other.responses.retrieve(first.id)
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)


async def test_a_streamed_dialogue_is_kept_as_well() -> None:
    mesh = Scripted(says=saying("Hello."))
    async with mesh.client() as client:
        async with client.responses.stream(model="kith", input="Hi.") as stream:
            first = await stream.get_final_response()
        assert (await client.responses.retrieve(first.id)).output_text == "Hello."


async def test_a_tool_is_called_and_its_output_taken() -> None:
    mesh = Scripted(says=saying('<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'))
    async with mesh.client() as client:
        first = await client.responses.create(model="kith", input="Rain?", tools=[WEATHER])
        [call] = first.output
        assert call.type == "function_call"
        assert json.loads(call.arguments) == {"city": "Oslo"}
        async with client.responses.stream(model="kith", input="Rain?", tools=[WEATHER]) as stream:
            streamed = await stream.get_final_response()
        assert streamed.output[0].type == "function_call"
        mesh.says = saying("Rain.")
        output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
        second = await client.responses.create(
            model="kith", input=output, previous_response_id=first.id, tools=[WEATHER]
        )
        assert second.output_text == "Rain."
        roles = [message.role for message in mesh.asked[-1].messages]
        assert roles == ["user", "assistant", "tool"]
        assert json.loads(mesh.asked[-1].messages[1].tool_calls_json)[0]["id"] == call.call_id


async def test_a_type_is_parsed_from_what_a_schema_holds_the_answer_to() -> None:
    mesh = Scripted(says=saying('{"name": "Oslo"}'))
    async with mesh.client() as client:
        parsed = await client.responses.parse(model="kith", input="Which?", text_format=City)
    assert parsed.output_parsed == City(name="Oslo")
    assert json.loads(mesh.asked[0].json_schema)["properties"].keys() == {"name"}


async def test_log_probabilities() -> None:
    token = engine_pb2.TokenLogprob(piece=b"Hi", logprob=-0.5)
    mesh = Scripted(says=lambda request, route: [started(), delta("Hi", token), finished()])
    async with mesh.client() as client:
        whole: Any = await client.responses.create(
            model="kith", input="x", include=["message.output_text.logprobs"], top_logprobs=1
        )
    assert whole.output[0].content[0].logprobs[0].logprob == -0.5


async def test_an_error_within_a_stream_is_a_failed_response() -> None:
    mesh = Scripted(
        says=lambda request, route: [started(), delta("Hel"), KithError("node-unreachable", "it went away")]
    )
    async with mesh.client() as client:
        events = [event async for event in await client.responses.create(model="kith", input="x", stream=True)]
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert "went away" in last.response.error.message
