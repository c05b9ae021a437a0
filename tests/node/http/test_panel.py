"""Several agents, one answer: who sits, how it is counted, and who said what."""

import asyncio
import json
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import openai
import pytest

from mesh.wire import engine_pb2
from node.errors import KithError
from node.http.chat import PRIORITY
from node.http.naming import live_agents, resolve
from node.http.panel import SEATS_MAX, SEATS_MIN, closed_by, seated
from node.route import Route
from tests.node.http.scripted import ALL, Says, Scripted, agent, delta, finished, saying, started

ASKED: Any = [{"role": "user", "content": "What is the capital of Norway?"}]
THREE = [agent("a", "m1"), agent("b", "m2"), agent("c", "m3")]


def each(**answers: str) -> Says:
    """What each node says."""
    return lambda request, route: [started(), delta(answers[route.node_name]), finished()]


async def panel_of(mesh: Scripted, **fields: Any) -> tuple[str, dict[str, Any]]:
    async with mesh.client() as client:
        whole: Any = await client.chat.completions.create(**({"model": "kith/panel", "messages": ASKED} | fields))
    return whole.choices[0].message.content, whole.kith["panel"]


def seats_of(mesh: Scripted) -> list[str]:
    named = resolve("kith/panel", live_agents(mesh.replica()))
    seats = seated(mesh.router, named, engine_pb2.GenerateRequest(prompt="x"), "me")
    return [f"{seat.live.node_name}/{seat.live.agent.model}" for seat in seats]


def test_distinct_models_sit_first_and_a_lone_agent_sits_again() -> None:
    many = Scripted([agent("a", "m"), agent("b", "m"), agent("c", "m"), *(agent(x, x) for x in "defg")])
    seats = seats_of(many)
    assert len(seats) == SEATS_MAX == len(set(seats))
    assert len({seat.partition("/")[2] for seat in seats}) == 5
    assert seats_of(Scripted([agent("a", "m")])) == ["a/m"] * SEATS_MIN
    assert seats_of(Scripted([agent("a", "m"), agent("b", "m")])) == ["a/m", "b/m", "a/m"]


async def test_a_majority_of_words() -> None:
    mesh = Scripted(THREE, each(a="Oslo.", b="It is Bergen.", c="The capital of Norway is Oslo."))
    text, panel = await panel_of(mesh)
    assert text == "Oslo."
    assert panel["method"] == "majority"
    assert panel["votes_for"] == 2
    assert not panel["correlated"]
    assert [(ballot["node"], ballot["chosen"]) for ballot in panel["ballots"]] == [
        ("a", True),
        ("b", False),
        ("c", True),
    ]


async def test_without_a_majority_they_score_each_others_answers() -> None:
    likes = {"Oslo": -1.0, "Bergen": -3.0, "Narvik": -2.0}

    def scores(request: engine_pb2.ScoreRequest, route: Route) -> list[float]:
        return [likes[text] for text in request.continuations]

    text, panel = await panel_of(Scripted(THREE, each(a="Bergen", b="Narvik", c="Oslo"), scores))
    assert text == "Oslo"
    assert panel["method"] == "scores"
    assert panel["votes_for"] == 1
    assert {ballot["answer"] for ballot in panel["ballots"] if ballot["score"] > 0} == {"Oslo"}


async def test_agents_that_can_not_score_agree_by_words() -> None:
    able = tuple(ability for ability in ALL if ability != "score")
    agents = [agent(node, node, able) for node in "abc"]
    says = each(a="a cold grey stone", b="the sea is blue and wide", c="the sea is blue and deep and wide")
    text, panel = await panel_of(Scripted(agents, says))
    assert text.startswith("the sea")
    assert panel["method"] == "overlap"


async def test_who_does_not_answer_is_named_and_the_others_decide() -> None:
    says = each(a="Oslo", c="Oslo")
    gone = KithError("node-unreachable", "b went away", "")
    mesh = Scripted(THREE, lambda request, route: [gone] if route.node_name == "b" else says(request, route))
    text, panel = await panel_of(mesh)
    assert text == "Oslo"
    assert panel["ballots"][1]["problem"] == "b went away"
    assert panel["votes_for"] == 2


async def test_where_nobody_answers_there_is_an_error() -> None:
    mesh = Scripted(THREE, lambda request, route: [KithError("engine-gone", "it ended")])
    async with mesh.client() as client:
        with pytest.raises(openai.InternalServerError, match="nobody of the panel"):
            await client.chat.completions.create(model="kith/panel", messages=ASKED)


def of_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize("how", ["options", "schema"])
async def test_a_closed_question_is_scored_and_counted(how: str) -> None:
    def scores(request: engine_pb2.ScoreRequest, route: Route) -> list[float]:
        wanted = "Bergen" if route.node_name == "b" else "Oslo"
        return [0.0 if text == wanted else -5.0 for text in request.continuations]

    schema = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Bergen", "Oslo"]}}}
    format_: Any = of_schema(schema)
    fields: Any = {"extra_body": {"options": ["Bergen", "Oslo"]}} if how == "options" else {"response_format": format_}
    text, panel = await panel_of(Scripted(THREE, scores=scores), **fields)
    assert (text if how == "options" else json.loads(text)["city"]) == "Oslo"
    assert panel["method"] == "majority"
    assert panel["votes_for"] == 2
    assert panel["ballots"][1]["answer"] == "Bergen"
    assert panel["ballots"][0]["probabilities"]["Oslo"] > 0.9


@pytest.mark.parametrize("fields", [{}, {"extra_body": {"options": ["Bergen", "Oslo"]}}])
@pytest.mark.parametrize("abilities", [ALL, tuple(ability for ability in ALL if ability != "score")])
async def test_all_that_a_panel_asks_is_as_urgent_as_its_question(
    fields: dict[str, Any], abilities: tuple[str, ...]
) -> None:
    urgent: list[int] = []

    def scores(request: engine_pb2.ScoreRequest, route: Route) -> list[float]:
        urgent.append(request.priority)
        return [-1.0] * len(request.continuations)

    mesh = Scripted([agent(node, node, abilities) for node in "abc"], each(a="Bergen", b="Narvik", c="Oslo"), scores)
    await panel_of(mesh, **fields)
    urgent += [request.priority for request in mesh.asked]
    assert urgent
    assert set(urgent) == {PRIORITY}


class Moving(Scripted):
    """What node `b` should score, `a` does: `b` is gone."""

    async def score(
        self, route: Route, request: engine_pb2.ScoreRequest, who: Hashable = "local"
    ) -> tuple[engine_pb2.ScoreReply, Route]:
        assert route.node_asked == "", "any agent with the same weights may"
        by = route if route.node_name != "b" else replace(route, node_name="a")
        return await super().score(by, request, who)


async def test_the_ballot_of_a_seat_whose_node_is_gone_names_the_node_that_scored() -> None:
    _, panel = await panel_of(Moving(THREE), extra_body={"options": ["x", "y"]})
    assert [ballot["node"] for ballot in panel["ballots"]] == ["a", "a", "c"]


async def test_without_a_majority_beliefs_are_multiplied() -> None:
    believed = {
        "a": {"x": 0.0, "y": -1.0, "z": -9.0},
        "b": {"y": 0.0, "x": -9.0, "z": -9.0},
        "c": {"z": 0.0, "y": -1.0},
    }

    def scores(request: engine_pb2.ScoreRequest, route: Route) -> list[float]:
        return [believed[route.node_name].get(text, -9.0) for text in request.continuations]

    text, panel = await panel_of(Scripted(THREE, scores=scores), extra_body={"options": ["x", "y", "z"]})
    assert text == "y"
    assert panel["method"] == "probabilities"


async def test_a_stream_ends_with_who_voted_and_a_gone_client_ends_the_panel() -> None:
    mesh = Scripted(THREE, saying("Oslo"))
    async with mesh.client() as client:
        chunks: Any = [
            chunk
            async for chunk in await client.chat.completions.create(model="kith/panel", messages=ASKED, stream=True)
        ]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Oslo"
        assert [chunk.kith["panel"]["seats"] for chunk in chunks if hasattr(chunk, "kith")][-1] == 3
        response: Any = await client.responses.create(model="kith/panel", input="x")
        assert response.kith["panel"]["votes_for"] == 3
        mesh.ended.clear()
        mesh.says = lambda request, route: [started(), asyncio.Event()]
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.3).chat.completions.create(model="kith/panel", messages=ASKED)
        async with asyncio.timeout(5):
            await mesh.closed.wait()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"options": ["same", "Same"]}}, "options"),
        ({"response_format": of_schema({"properties": {"a": {"enum": ["yes"]}}})}, "response_format"),
        (
            {"messages": [{"role": "user", "content": "long " * 2000}], "extra_body": {"options": ["a", "b"]}},
            "messages",
        ),
    ],
)
async def test_what_a_panel_can_not_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    async with Scripted(THREE).client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**({"model": "kith/panel", "messages": ASKED} | fields))
    assert caught.value.param == param


def test_which_schemas_make_a_question_closed() -> None:
    assert closed_by("") == closed_by("{}") == closed_by('{"properties": {"a": {"enum": [1]}}}') == ((), "")
    assert closed_by('{"properties": {"a": {"enum": ["x", "y"]}}}') == (("x", "y"), "a")


def test_a_node_alone_holds_a_panel_with_itself(client: openai.OpenAI) -> None:
    whole: Any = client.chat.completions.create(model="kith/panel", messages=ASKED, extra_body={"options": ["a", "b"]})
    assert whole.choices[0].message.content in ("a", "b")
    assert whole.kith["panel"]["correlated"]
    assert len(whole.kith["panel"]["ballots"]) == SEATS_MIN
    assert whole.usage.prompt_tokens > 0
