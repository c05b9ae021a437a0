"""What one request can ask of the real model: every field, through the real child process."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mesh.wire import engine_pb2
from node.engine.process import EngineProcess
from node.engine.text_stream import TextStream
from node.errors import KithError
from tests.node.engine.engines import Watched, answer, ask, running

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

PLAIN = "Here is a poem about the sea and the wind:\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(model_path: Path) -> AsyncIterator[Watched]:
    async with running(model_path, slots=2, ctx=512) as watched:
        yield watched


@dataclass
class Answer:
    text: str = ""
    reason: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[engine_pb2.TokenLogprob] = field(default_factory=list)
    prompt_tokens: int = 0


async def whole(engine: EngineProcess, request: engine_pb2.GenerateRequest) -> Answer:
    found = Answer()
    async for event in engine.generate(request):
        found.text += event.delta.text
        found.tokens += event.delta.token_ids
        found.logprobs += event.delta.logprobs
        found.prompt_tokens = event.started.prompt_tokens or found.prompt_tokens
        found.reason = event.finished.reason
    return found


def request(max_tokens: int = 16, prompt: str = PLAIN, **fields: Any) -> engine_pb2.GenerateRequest:
    of_sampling = engine_pb2.Sampling.DESCRIPTOR.fields_by_name
    sampling = engine_pb2.Sampling(**{name: fields.pop(name) for name in list(fields) if name in of_sampling})
    return engine_pb2.GenerateRequest(
        prompt=prompt, max_tokens=max_tokens, want_tokens=True, sampling=sampling, **fields
    )


async def test_it_says_what_it_can_do(watched: Watched) -> None:
    loaded = watched.engine.loaded
    assert loaded is not None
    assert {"generate", "chat", "score", "embed", "grammar", "logprobs", "continue"} <= set(loaded.abilities)
    assert "tools" not in loaded.abilities  # this model's template knows none
    assert len(loaded.vocabulary_sha256) == 32
    assert loaded.embedding_size == 576


async def test_tokens_and_logprobs_come_with_the_text(watched: Watched) -> None:
    found = await whole(watched.engine, request(logprobs=True, top_logprobs=5))
    assert len(found.tokens) == len(found.logprobs) == 16
    assert [one.token for one in found.logprobs] == found.tokens
    assert b"".join(one.piece for one in found.logprobs).decode() == found.text
    for one in found.logprobs:
        assert len(one.top) == 5
        assert one.logprob == pytest.approx(one.top[0].logprob)  # greedy takes the likeliest
        assert one.top[0].token == one.token
        values = [top.logprob for top in one.top]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.0001


async def test_logprobs_are_those_of_scoring(watched: Watched) -> None:
    found = await whole(watched.engine, request(8, logprobs=True))
    score = engine_pb2.ScoreRequest(prompt=PLAIN, continuations=[found.text])
    reply = await watched.engine.score(score)
    assert reply.token_counts[0] == 8
    assert sum(one.logprob for one in found.logprobs) == pytest.approx(reply.log_probabilities[0], abs=0.1)


async def test_logprobs_do_not_depend_on_sampling(watched: Watched) -> None:
    plain = await whole(watched.engine, request(1, logprobs=True, top_logprobs=3))
    hot = await whole(watched.engine, request(1, logprobs=True, top_logprobs=3, temperature=5.0, top_k=2, seed=1))
    assert [one.token for one in plain.logprobs[0].top] == [one.token for one in hot.logprobs[0].top]
    assert [one.logprob for one in hot.logprobs[0].top] == pytest.approx(
        [one.logprob for one in plain.logprobs[0].top], abs=0.02
    )


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.9, "seed": 3, "top_k": 40},
        {"temperature": 0.8, "seed": 2**63 + 5, "top_p": 0.9, "frequency_penalty": 0.5, "presence_penalty": 0.3},
        {"repeat_penalty": 1.3},
    ],
)
async def test_an_answer_that_is_cut_goes_on_as_if_it_were_not(watched: Watched, sampling: dict[str, Any]) -> None:
    # Long enough for the prefix cache: read anew, in other batches, its numbers would differ in the last digits.
    prompt = 3 * PLAIN
    full = await whole(watched.engine, request(24, prompt, **sampling))
    assert len(full.tokens) >= 20
    for cut in (1, 7, 16):
        rest = await whole(watched.engine, request(24 - cut, prompt, continue_tokens=full.tokens[:cut], **sampling))
        assert rest.tokens == full.tokens[cut:]
        assert full.text.endswith(rest.text)
        assert rest.prompt_tokens == full.prompt_tokens + cut


async def test_half_a_character_is_finished_by_who_goes_on(watched: Watched) -> None:
    """The bytes of an emoji are several tokens; nobody was shown half of it."""
    emoji = [token for token, _ in await pieces(watched.engine, "😀")]
    assert len(emoji) > 1
    first = await whole(watched.engine, request(1, grammar=EMOJI))
    assert (first.text, first.tokens, first.reason) == ("", emoji[:1], "length")
    rest = await whole(watched.engine, request(8, continue_tokens=emoji[:1], grammar=EMOJI))
    assert (rest.text, rest.tokens, rest.reason) == ("😀", emoji[1:], "stop")


EMOJI = 'root ::= "😀"'


async def pieces(engine: EngineProcess, text: str) -> list[tuple[int, bytes]]:
    """How the model cuts a text that a grammar makes it say."""
    found = await whole(engine, request(64, grammar=f'root ::= "{text}"', logprobs=True))
    assert found.text == text
    return [(one.token, one.piece) for one in found.logprobs]


async def test_stop_string_across_the_cut(watched: Watched) -> None:
    full = await whole(watched.engine, request(24, logprobs=True))
    stop = full.text[len(full.text) // 2 :][:9]
    expected = full.text[: full.text.index(stop)]
    for cut in range(6, 16):
        stream = TextStream([stop])
        shown = "".join(stream.feed(one.piece) for one in full.logprobs[:cut])
        rest = await whole(watched.engine, request(24, stop=[stop], continue_tokens=full.tokens[:cut]))
        assert shown + rest.text == expected
        assert rest.reason == "stop"


async def test_stop_string_across_what_was_said_as_text(watched: Watched) -> None:
    full = await whole(watched.engine, request(24))
    at = full.text.index(" ", len(full.text) // 2)
    stop = full.text[at - 3 : at + 3]
    rest = await whole(watched.engine, request(24, stop=[stop], continue_from=full.text[:at]))
    assert (rest.text, rest.reason) == ("", "stop")


async def test_what_was_said_can_be_a_whole_answer(watched: Watched) -> None:
    yes = [token for token, _ in await pieces(watched.engine, "yes")]
    found = await whole(watched.engine, request(8, grammar='root ::= "yes"', continue_tokens=yes))
    assert (found.text, found.reason, found.tokens) == ("", "stop", [])


async def test_frequency_penalty_ends_repetition(watched: Watched) -> None:
    prompt = "one two one two one two one two one two"
    plain = await whole(watched.engine, request(30, prompt))
    varied = await whole(watched.engine, request(30, prompt, frequency_penalty=2.0, presence_penalty=1.0))
    assert len(set(varied.tokens)) > 2 * len(set(plain.tokens))


async def test_logit_bias_bans_and_forces(watched: Watched) -> None:
    plain = await whole(watched.engine, request(4))
    banned = await whole(watched.engine, request(4, logit_bias={plain.tokens[0]: -100.0}))
    assert banned.tokens[0] != plain.tokens[0]
    forced = await whole(watched.engine, request(4, logit_bias={1234: 100.0}))
    assert forced.tokens == [1234] * 4
    hot = await whole(watched.engine, request(4, logit_bias={1234: 100.0}, temperature=1.0, seed=5))
    assert hot.tokens == [1234] * 4


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer"},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
}


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.5, "seed": 11}, {"temperature": 1.0, "seed": 2, "top_p": 0.8}]
)
async def test_json_schema_is_followed(watched: Watched, sampling: dict[str, Any]) -> None:
    found = await whole(
        watched.engine, request(120, "Describe a pet as JSON.\n", json_schema=json.dumps(SCHEMA), **sampling)
    )
    if found.reason == "stop":
        value = json.loads(found.text)
        assert set(value) == {"name", "age", "kind"}
        assert value["kind"] in ("cat", "dog")
    else:
        assert found.reason == "length"
        assert found.text.lstrip().startswith("{")


async def test_json_cut_by_length_says_so(watched: Watched) -> None:
    found = await whole(watched.engine, request(3, json_schema=json.dumps(SCHEMA)))
    assert found.reason == "length"
    assert len(found.tokens) == 3


async def test_grammar_goes_on_after_a_cut(watched: Watched) -> None:
    asked = request(60, "A pet:\n", json_schema=json.dumps(SCHEMA))
    full = await whole(watched.engine, asked)
    asked.continue_tokens.extend(full.tokens[:5])
    rest = await whole(watched.engine, asked)
    assert full.tokens[5:] == rest.tokens[: len(full.tokens) - 5]
    asked.continue_tokens[:] = [1, 2, 3]
    with pytest.raises(KithError, match="answer so far"):
        await whole(watched.engine, asked)


async def test_grammar_that_turns_out_too_ambiguous_ends_only_its_own_request(watched: Watched) -> None:
    bad = request(60, "aaaaaaaaaaaa", grammar='root ::= "a" root "b" | "a" root "c" | "a" root "d" | "a"')
    with pytest.raises(KithError, match="ambiguous"):
        await whole(watched.engine, bad)
    assert (await answer(watched.engine, ask("Say hello.", 4)))[0]


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"grammar": "root ::= nothing"}, "bad-grammar", "not defined"),
        ({"grammar": 'root ::= root "x" | "y"'}, "bad-grammar", "goes round"),
        ({"json_schema": "{"}, "bad-schema", "no JSON"),
        ({"json_schema": "{}", "grammar": 'root ::= "a"'}, "bad-request", "not both"),
        ({"continue_tokens": [49_152]}, "bad-request", "49,152 tokens"),
        ({"continue_tokens": [5] * 600}, "prompt-too-long", "holds 512"),
        ({"logprobs": True, "top_logprobs": 21}, "bad-request", "alternatives"),
        ({"logit_bias": {60_000: 1.0}}, "bad-request", "names the token 60000"),
        ({"logit_bias": {6: 101.0}}, "bad-request", "logit_bias is out of range"),
        ({"frequency_penalty": float("nan")}, "bad-request", "frequency_penalty is out of range"),
        ({"presence_penalty": 11.0}, "bad-request", "presence_penalty is out of range"),
        ({"adapter": "pirate"}, "bad-request", "no adapter 'pirate'"),
        ({"tools_json": "[]"}, "bad-request", "tools need messages"),
    ],
)
async def test_bad_wishes_are_refused(watched: Watched, fields: dict[str, Any], code: str, reason: str) -> None:
    with pytest.raises(KithError, match=reason) as caught:
        await whole(watched.engine, request(4, **fields))
    assert caught.value.code == code


async def test_tools_are_refused_by_a_template_that_knows_none(watched: Watched) -> None:
    asked = ask("What is the weather?", 4)
    asked.tools_json = '[{"type": "function", "function": {"name": "weather"}}]'
    with pytest.raises(KithError, match="knows no tools"):
        await answer(watched.engine, asked)


async def test_a_request_that_comes_too_late_is_refused_and_not_begun(watched: Watched) -> None:
    long = [asyncio.ensure_future(whole(watched.engine, request(200, seed=n))) for n in range(2)]
    while (await watched.engine.stats()).slots_busy < 2:
        pass
    with pytest.raises(KithError) as caught:
        await whole(watched.engine, request(4, useful_seconds=0.01))
    assert caught.value.code == "too-late"
    assert not any(one.done() for one in long)
    assert len((await whole(watched.engine, request(4, useful_seconds=300.0))).tokens) == 4
    await asyncio.gather(*long)


async def test_an_owner_with_one_request_goes_before_the_queue_of_another(watched: Watched) -> None:
    order: list[str] = []

    async def one(owner: str) -> None:
        await whole(watched.engine, request(6, owner=owner))
        order.append(owner)

    many = [asyncio.ensure_future(one("many")) for _ in range(8)]
    while (await watched.engine.stats()).queue_length < 6:
        pass
    few = asyncio.ensure_future(one("few"))
    await asyncio.gather(*many, few)
    assert order.index("few") <= 4
