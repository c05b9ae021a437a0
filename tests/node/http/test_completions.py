"""Text completions with OpenAI's own client."""

from typing import Any

import openai
import pytest

from mesh.wire import engine_pb2
from node.errors import KithError
from node.http.completions import TOKENS_DEFAULT, completions_ask
from tests.node.http.scripted import Scripted, delta, finished, saying, started


def test_several_prompts_and_choices_keep_their_order(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="kith", prompt=["One two. Three.", "Four five."], n=2)
    assert [choice.text for choice in whole.choices] == ["One two. Three."] * 2 + ["Four five."] * 2
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 10)


def test_streamed(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks = list(
        client.completions.create(model="kith", prompt="One two. Three.", stream=True, stream_options=options)
    )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "One two. Three."
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 6
    assert chunks[-2].choices[0].finish_reason == "stop"


async def test_log_probabilities_have_places_in_the_text() -> None:
    top = [engine_pb2.TokenLogprob(piece=b"ab", logprob=-0.1), engine_pb2.TokenLogprob(piece=b"x", logprob=-3)]
    first = engine_pb2.TokenLogprob(piece=b"ab", logprob=-0.1, top=top)
    second = engine_pb2.TokenLogprob(piece=b"c", logprob=-0.2)
    mesh = Scripted(says=lambda request, route: [started(), delta("ab", first), delta("c", second), finished()])
    async with mesh.client() as client:
        whole = await client.completions.create(model="kith", prompt="x", logprobs=2)
        logprobs = whole.choices[0].logprobs
        assert logprobs
        assert logprobs.tokens == ["ab", "c"]
        assert logprobs.token_logprobs == [-0.1, -0.2]
        assert logprobs.text_offset == [0, 2]
        assert logprobs.top_logprobs == [{"ab": -0.1, "x": -3.0}, {}]
        offsets: list[int] = []
        async for chunk in await client.completions.create(model="kith", prompt="x", logprobs=2, stream=True):
            if chunk.choices[0].logprobs:
                offsets += chunk.choices[0].logprobs.text_offset or []
        assert offsets == [0, 2]
    assert mesh.asked[0].top_logprobs == 2


async def test_an_error_before_and_within_a_stream() -> None:
    busy, gone = KithError("busy", "no room", retry_after_s=1), KithError("node-unreachable", "it went away")
    mesh = Scripted(says=lambda request, route: [busy])
    async with mesh.client() as client:
        with pytest.raises(openai.RateLimitError):
            await client.completions.create(model="kith", prompt="x", stream=True)
        mesh.says = lambda request, route: [started(), delta("a"), gone]
        stream = await client.completions.create(model="kith", prompt="x", stream=True)
        with pytest.raises(openai.APIError, match="went away"):
            [chunk async for chunk in stream]


async def test_a_panel_completes_as_well() -> None:
    async with Scripted(says=saying("four")).client() as client:
        whole: Any = await client.completions.create(model="kith/panel", prompt="two and two is")
    assert whole.choices[0].text == "four"
    assert whole.kith["panel"]["votes_for"] == 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": ["x"] * 17}, "prompt"),
        ({"prompt": ["x"] * 9, "n": 2}, "prompt"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
    ],
)
def test_what_can_not_be_done_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(KithError) as caught:
        completions_ask(body)
    assert getattr(caught.value, "param", "") == param


def test_a_completion_is_short_where_nothing_is_said() -> None:
    assert completions_ask({"prompt": "x"}).requests[0].max_tokens == TOKENS_DEFAULT
    assert completions_ask({"prompt": "x", "max_tokens": 3, "best_of": 1}).requests[0].max_tokens == 3
