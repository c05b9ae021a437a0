"""The door before a real model: grammars, tools, log-probabilities and vectors as they come from the engine."""

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from scripts.daemons import Daemon, end_all
from scripts.throwaway import ThrowawayMesh

pytestmark = [pytest.mark.model, pytest.mark.slow]

ASKED: Any = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Paris"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Animal(BaseModel):
    kind: Literal["bird", "fish"]
    legs: Literal[0, 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[openai.OpenAI]:
    """A client of a node with the default model."""
    options = ["--listen", "127.0.0.1:0", "--no-mdns", "--model", str(model_path), "--threads", "1", "--slots", "2"]
    node = Daemon(
        tmp_path_factory.mktemp("door") / "real",
        [*options, "--ctx", "1024", "--http", "127.0.0.1:0"],
        name="real",
        mesh=ThrowawayMesh(),
    )
    try:
        node.start()
        status = asyncio.run(node.ready(120))
        url = f"http://{status.http_address}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
            yield client
    finally:
        wrong = end_all([node])
        assert not wrong, "\n".join(wrong)


def test_chat_whole_and_streamed(model: openai.OpenAI) -> None:
    whole = model.chat.completions.create(model="kith", messages=ASKED, temperature=0, max_tokens=24)
    text = whole.choices[0].message.content or ""
    assert "Paris" in text
    stream = model.chat.completions.create(model="kith", messages=ASKED, temperature=0, max_tokens=24, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text


def test_choices_differ_and_a_seed_repeats(model: openai.OpenAI) -> None:
    def said(n: int) -> list[str]:
        asked: Any = [{"role": "user", "content": "Tell me a story."}]
        whole = model.chat.completions.create(model="kith", messages=asked, temperature=1.5, n=n, seed=7, max_tokens=16)
        return [choice.message.content or "" for choice in whole.choices]

    two = said(2)
    assert two[0] != two[1]
    assert said(1)[0]


def test_the_least_nucleus_holds_the_likeliest_token_alone(model: openai.OpenAI) -> None:
    def said(**how: Any) -> str:
        answer = model.chat.completions.create(model="kith", messages=ASKED, max_tokens=12, **how)
        return str(answer.choices[0].message.content)

    greedy = said(temperature=0)
    assert [said(temperature=2, top_p=0, seed=seed) for seed in (1, 2, 3)] == [greedy] * 3


def test_a_text_goes_on(model: openai.OpenAI) -> None:
    whole = model.completions.create(
        model="kith", prompt="The capital of France is", temperature=0, max_tokens=8, stop="\n"
    )
    assert "Paris" in whole.choices[0].text


def test_a_stop_text_ends_it(model: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "Count from one to five in words."}]
    whole = model.chat.completions.create(model="kith", messages=asked, temperature=0, stop=["e"], max_tokens=64)
    assert "e" not in (whole.choices[0].message.content or "")
    assert whole.choices[0].finish_reason == "stop"


def test_log_probabilities_are_of_a_distribution(model: openai.OpenAI) -> None:
    whole = model.chat.completions.create(
        model="kith", messages=ASKED, temperature=0, max_tokens=8, logprobs=True, top_logprobs=5
    )
    choice = whole.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 5
        assert sum(math.exp(one.logprob) for one in token.top_logprobs) <= 1 + 1e-3
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob), "greedy takes the likeliest"
    assert "".join(token.token for token in choice.logprobs.content).startswith(choice.message.content or "")


def test_an_answer_of_a_type(model: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "A heron: what kind of animal, and how many legs?"}]
    parsed = model.chat.completions.parse(model="kith", messages=asked, response_format=Animal, max_tokens=64)
    assert isinstance(parsed.choices[0].message.parsed, Animal)
    answer = model.responses.parse(model="kith", input="A trout.", text_format=Animal, max_output_tokens=64)
    assert isinstance(answer.output_parsed, Animal)


def test_any_json_object(model: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": 'Write a short JSON object with the key "name".'}]
    whole = model.chat.completions.create(
        model="kith", messages=asked, response_format={"type": "json_object"}, temperature=0, max_tokens=200
    )
    if whole.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(whole.choices[0].message.content or ""), dict)
    else:
        assert (whole.choices[0].message.content or "").lstrip().startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_is_required_is_made(model: openai.OpenAI, choice: Any) -> None:
    asked: Any = [{"role": "user", "content": "Does it rain in Oslo?"}]
    whole = model.chat.completions.create(
        model="kith", messages=asked, tools=[WEATHER], tool_choice=choice, max_tokens=64
    )
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.tool_calls
    call: Any = whole.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Paris")


def test_a_bias_makes_a_token_certain(model: openai.OpenAI) -> None:
    name = next(one.id for one in model.models.list() if not one.id.startswith("kith"))
    asked: Any = {"model": name, "messages": ASKED, "temperature": 0, "max_tokens": 8}
    plain = model.chat.completions.create(**asked)
    biased = model.chat.completions.create(**asked, logit_bias={"5000": 100})
    assert plain.choices[0].message.content != biased.choices[0].message.content


def test_vectors_of_like_texts_are_alike(model: openai.OpenAI) -> None:
    texts = ["A cat sat on the mat.", "A cat lay on the mat.", "Interest rates rose by two percent."]
    answer = model.embeddings.create(model="kith", input=texts)
    one, like, other = (entry.embedding for entry in answer.data)
    assert sum(x * x for x in one) == pytest.approx(1, abs=1e-3)
    assert sum(x * y for x, y in zip(one, like, strict=True)) > sum(x * y for x, y in zip(one, other, strict=True))
    assert answer.usage.prompt_tokens > 10


def test_a_panel_answers_a_closed_question(model: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "What colour is snow?"}]
    whole: Any = model.chat.completions.create(
        model="kith/panel", messages=asked, extra_body={"options": ["white", "green", "a violin"]}
    )
    assert whole.choices[0].message.content == "white"
    assert whole.kith["panel"]["votes_for"] >= 2


def test_a_panel_answers_an_open_question(model: openai.OpenAI) -> None:
    whole: Any = model.chat.completions.create(model="kith/panel", messages=ASKED, max_tokens=24)
    assert whole.choices[0].message.content
    assert len(whole.kith["panel"]["ballots"]) == 3
