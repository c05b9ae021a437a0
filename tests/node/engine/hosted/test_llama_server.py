"""llama-server's own API: bodies, and what a real server makes of them."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.wire import engine_pb2
from node.engine.hosted.llama_server import LlamaServer
from node.errors import KithError
from tests.node.engine import model_server
from tests.node.engine.hosted.talking import Told, chat, client_of, pieces_of, says, streams, text_of, told_server

QUESTION = "Tell me about the capital of France."


@pytest.fixture(scope="module")
def real(model_path: Path) -> Iterator[str]:
    pytest.importorskip("xllamacpp")
    with model_server.llama_server(model_path) as url:
        yield url


@pytest.fixture
async def dialect(real: str) -> AsyncIterator[LlamaServer]:
    client = client_of(real, model_server.KEY)
    yield LlamaServer(client, model_server.MODEL)
    await client.close()


@pytest.fixture
async def server() -> AsyncIterator[Told]:
    async with told_server() as one:
        yield one


@pytest.mark.parametrize("form", [{"json_schema": "{}"}, {"grammar": 'root ::= "x"'}])
@pytest.mark.parametrize("beginning", [{"continue_from": "{"}, {"continue_tokens": [1]}])
def test_a_form_that_was_begun_elsewhere_is_not_begun_anew(form: Any, beginning: Any) -> None:
    """The server would start the grammar at its own first token."""
    with pytest.raises(KithError, match="within a grammar"):
        LlamaServer(client_of("http://127.0.0.1:9"), "m").body(
            engine_pb2.GenerateRequest(prompt="x", **form, **beginning), "x"
        )


def test_every_sampler_is_set() -> None:
    body = LlamaServer(client_of("http://127.0.0.1:9"), "m").body(engine_pb2.GenerateRequest(prompt="x"), "x")
    expected = {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 1, "n_predict": -1, "seed": 0}
    assert {name: body[name] for name in expected} == expected
    command = engine_pb2.GenerateRequest(prompt="x", sampling=engine_pb2.Sampling(seed=0xFFFFFFFF, logit_bias={5: -9}))
    body = LlamaServer(client_of("http://127.0.0.1:9"), "m").body(command, "x")
    assert body["seed"] != 0xFFFFFFFF
    assert body["logit_bias"] == [[5, -9]]


async def test_numbers_end_where_the_server_leaves_some_out(server: Told) -> None:
    server.answers["/completion"] = streams(
        {"content": "", "tokens": [0], "prompt_progress": {"total": 2}},
        {"content": "a", "tokens": [1], "tokens_predicted": 1},
        {"content": "我", "tokens": [9], "tokens_predicted": 3},  # two tokens, one number
        {"content": "b", "tokens": [2], "tokens_predicted": 4},
        {"content": "", "tokens": [], "tokens_predicted": 4, "tokens_evaluated": 7, "stop": True, "stop_type": "eos"},
    )
    dialect = LlamaServer(server.client(), "m")
    pieces = await pieces_of(dialect, engine_pb2.GenerateRequest(prompt="x", want_tokens=True))
    assert [(piece.text, piece.tokens, piece.token_ids) for piece in pieces] == [
        ("a", 1, [1]), ("我", 2, []), ("b", 1, []), ("", 0, [])
    ]  # fmt: skip
    assert (pieces[-1].reason, pieces[-1].prompt_tokens) == ("stop", 7)


async def test_server_that_scores_something_else_is_noticed(server: Told) -> None:
    server.answers["/tokenize"] = says({"tokens": [1]})
    server.answers["/completion"] = says({"completion_probabilities": [{"id": 2, "logprob": -1}]})
    with pytest.raises(KithError, match="did not say what it was to score"):
        await LlamaServer(server.client(), "m").score(engine_pb2.ScoreRequest(prompt="x", continuations=["y"]))


@pytest.mark.model
@pytest.mark.slow
class TestReal:
    async def test_an_answer_goes_on_exactly(self, dialect: LlamaServer) -> None:
        whole = await pieces_of(dialect, chat(QUESTION, max_tokens=24, want_tokens=True))
        tokens = [token for piece in whole for token in piece.token_ids]
        assert len(tokens) == 24
        by_tokens = await pieces_of(dialect, chat(QUESTION, max_tokens=14, continue_tokens=tokens[:10]))
        begun = text_of(whole)[: -len(text_of(by_tokens))]
        assert begun + text_of(by_tokens) == text_of(whole)
        by_text = await pieces_of(dialect, chat(QUESTION, max_tokens=14, continue_from=begun))
        assert text_of(by_text) == text_of(by_tokens)
        assert by_text[-1].cached_tokens > 10

    async def test_scores_are_the_models_own_log_probabilities(self, dialect: LlamaServer) -> None:
        told = await pieces_of(
            dialect, engine_pb2.GenerateRequest(prompt="The capital of France is", max_tokens=3, logprobs=True)
        )
        [piece] = told
        said = sum(one.logprob for one in piece.logprobs)
        score = await dialect.score(
            engine_pb2.ScoreRequest(prompt="The capital of France is", continuations=[text_of(told), " Berlin"])
        )
        assert score.log_probabilities[0] == pytest.approx(said, abs=0.02)
        assert score.log_probabilities[1] < said
        assert list(score.token_counts) == [3, 1]
        assert all(not one.top for one in piece.logprobs)

    async def test_grammars_and_schemas_hold(self, dialect: LlamaServer) -> None:
        command = chat(QUESTION, max_tokens=20, grammar='root ::= "none " [0-9] [0-9]')
        assert text_of(await pieces_of(dialect, command)).startswith("none ")
        properties = {"a": {"enum": ["q7"]}}
        schema = {"type": "object", "properties": properties, "required": ["a"], "additionalProperties": False}
        held = await pieces_of(dialect, chat(QUESTION, max_tokens=30, json_schema=json.dumps(schema)))
        assert json.loads(text_of(held)) == {"a": "q7"}
        anything = text_of(await pieces_of(dialect, chat(QUESTION, json_schema="{}", max_tokens=5)))
        assert anything.lstrip().startswith("{")

    async def test_refusals(self, dialect: LlamaServer) -> None:
        with pytest.raises(KithError, match="failed to parse grammar") as caught:
            await pieces_of(dialect, chat(QUESTION, grammar="root = 1"))
        assert caught.value.code == "agent-refused"
        with pytest.raises(KithError) as caught:
            await pieces_of(dialect, engine_pb2.GenerateRequest(prompt="a " * 1500))
        assert caught.value.code == "prompt-too-long"

    async def test_leaving_frees_the_server(self, dialect: LlamaServer, real: str) -> None:
        stream = dialect.generate(chat("Write a long story.", max_tokens=900))
        async for piece in stream:
            if piece.text:
                break
        await stream.aclose()
        # The server has a single slot: this waits until it is free, and 900 tokens would take longer than a test may.
        assert text_of(await pieces_of(dialect, chat("Hi", max_tokens=2)))

    async def test_counts_and_vectors(self, dialect: LlamaServer) -> None:
        assert await dialect.count_tokens(["hello world", "", "hello world hello"]) == [2, 0, 3]
        vectors, tokens = await dialect.embed(["a cat"] * 33)
        assert len(vectors) == 33
        assert vectors[0] == pytest.approx(vectors[32], abs=0.05)
        assert tokens == 66
