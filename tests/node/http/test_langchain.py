"""LangChain's OpenAI integration works against the door as it is: what its users have, not what we would wish."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

from tests.node.http.conftest import Door
from tests.node.http.scripted import Scripted, agent, saying

HERONS = "The herons stand in the water. They wait for fish. Then they fly."
SAID = "The herons stand in the water. They wait for fish."


class City(BaseModel):
    """A city."""

    name: str


def weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


Models = Callable[..., ChatOpenAI]


@pytest.fixture
async def clients() -> AsyncIterator[dict[str, Any]]:
    """Those that LangChain makes by itself it never closes."""
    with httpx2.Client(trust_env=False) as one:
        async with httpx2.AsyncClient(trust_env=False) as other:
            yield {"http_client": one, "http_async_client": other, "max_retries": 0, "api_key": SecretStr("none")}


@pytest.fixture
def chat(clients: dict[str, Any]) -> Models:
    return lambda url, **fields: ChatOpenAI(base_url=url, model="kith", timeout=20, **clients, **fields)


@pytest.mark.parametrize("responses", [False, True], ids=["chat completions", "responses"])
def test_a_node_answers_whole_and_streamed(door: Door, chat: Models, responses: bool) -> None:
    model = chat(f"{door.url}/v1", use_responses_api=responses)
    whole = model.invoke([SystemMessage("Be brief."), HumanMessage(HERONS)])
    assert whole.text == SAID
    assert isinstance(whole, AIMessage)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 10
    assert "".join(chunk.text for chunk in model.stream(HERONS)) == SAID


@pytest.mark.parametrize("responses", [False, True], ids=["chat completions", "responses"])
async def test_async_and_batches(door: Door, chat: Models, responses: bool) -> None:
    model = chat(f"{door.url}/v1", use_responses_api=responses)
    assert [answer.text for answer in await model.abatch([HERONS, "One. Two."])] == [SAID, "One. Two."]
    assert "".join([chunk.text async for chunk in model.astream(HERONS)]) == SAID


@pytest.mark.parametrize("responses", [False, True], ids=["chat completions", "responses"])
async def test_tools_there_and_back(chat: Models, responses: bool) -> None:
    mesh = Scripted(says=saying('<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'))
    async with mesh.serving() as url:
        model = chat(url, use_responses_api=responses).bind_tools([weather])
        asked = HumanMessage("Rain?")
        called = await model.ainvoke([asked])
        assert isinstance(called, AIMessage)
        [call] = called.tool_calls
        assert (call["name"], call["args"]) == ("weather", {"city": "Oslo"})
        mesh.says = saying("It rains.")
        done = await model.ainvoke([asked, called, ToolMessage(weather("Oslo"), tool_call_id=call["id"])])
    assert done.text == "It rains."
    assert [message.role for message in mesh.asked[1].messages] == ["user", "assistant", "tool"]
    assert json.loads(mesh.asked[0].tools_json)[0]["function"]["description"] == "The weather of a city."


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_an_answer_of_a_type(chat: Models, method: Any) -> None:
    said = '{"name": "Oslo"}' if method == "json_schema" else '{"name": "City", "arguments": {"name": "Oslo"}}'
    mesh = Scripted([agent("a", abilities=("chat", "grammar"))], saying(said))
    async with mesh.serving() as url:
        found = await chat(url).with_structured_output(City, method=method).ainvoke("Which?")
    assert found == City(name="Oslo")
    assert mesh.asked[0].json_schema


async def test_embeddings_of_texts(clients: dict[str, Any]) -> None:
    mesh = Scripted(vectors=lambda text: [float(len(text)), 0.0])
    async with mesh.serving() as url:
        model = OpenAIEmbeddings(base_url=url, model="kith", check_embedding_ctx_length=False, **clients)
        assert await model.aembed_documents(["a", "bb"]) == [[1.0, 0.0], [2.0, 0.0]]
