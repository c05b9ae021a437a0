"""Bodies that no client should send: the answer is one of ours all the same, and JSON that anybody can read."""

import asyncio
import copy
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.daemon import Daemon
from node.http.routes import application
from tests.node.http.scripted import Scripted
from tests.security.http_bodies import BODIES

#: Stand-ins for what Python's own JSON does not write; replaced in the text.
RAW = {
    "@nan": "NaN",
    "@inf": "-Infinity",
    "@huge float": "1e999",
    "@huge integer": "9" * 400,
    "@endless integer": "9" * 5000,
    "@deep": "[" * 70 + "]" * 70,
    "@deepest": '{"a":' * 20_000 + "1" + "}" * 20_000,
}
HALF = "\ud83d"
ODD: tuple[Any, ...] = (
    *RAW, HALF, f"a{HALF}", {HALF: 1}, [HALF], {"type": HALF}, {"a": {"b": [HALF]}}, [], {}, [[]], [None], None, True,
    -1, 0, 1.5, 10**18, -(10**30), 1e308, "", "\0", "a", "none", "required", "function", {"type": "function"},
    {"type": "json_schema", "schema": {HALF: 1}}, {"enum": []}, ["a"] * 40,
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a body."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*at, key)
        yield from places(inner, (*at, key))


def changed(body: dict[str, Any], at: tuple[Any, ...], value: Any, beside: bool) -> None:
    """Put a value at a place, or beside it under a name that nobody knows."""
    holder: Any = body
    for key in at[:-1]:
        if not isinstance(holder, dict | list) or (isinstance(holder, dict) and key not in holder):
            return  # replaced before
        holder = holder[key]
    if isinstance(holder, dict):
        holder[f"{at[-1]}{HALF}" if beside else at[-1]] = value
    elif isinstance(holder, list) and at[-1] < len(holder):
        holder[at[-1]] = value


@st.composite
def odd_bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    path = draw(st.sampled_from(sorted(BODIES)))
    body = copy.deepcopy(BODIES[path])
    kept = draw(st.sets(st.sampled_from(sorted(body)), max_size=4))
    body = {name: value for name, value in body.items() if name in kept or name in ("messages", "input", "prompt")}
    body |= {"model": draw(st.sampled_from(("kith", "kith/panel", "m"))), "stream": draw(st.booleans())}
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(list(places(body))))
        changed(body, at, copy.deepcopy(draw(st.sampled_from(ODD))), draw(st.integers(0, 3)) == 0)
    return path, written(body)


def written(body: Any) -> bytes:
    text = json.dumps(body)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


class Door:
    """The routes before a mesh that answers everything, without sockets: what goes wrong inside comes out of `post`."""

    def __init__(self) -> None:
        mesh = Scripted()
        self._app = application(cast(Daemon, SimpleNamespace(replica=mesh.replica(), router=mesh.router)))

    async def ask(self, path: str, body: bytes, method: str = "POST") -> tuple[int, bytes]:
        sent: list[Any] = []
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if waiting:
                return waiting.pop()
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": method, "path": path, "headers": headers}
        async with asyncio.timeout(20):
            await self._app(scope | {"query_string": b"", "client": ("127.0.0.1", 1), "state": {}}, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def no_number(text: str) -> None:
    pytest.fail(f"{text} is no JSON")


def read(answer: bytes) -> list[Any]:
    """The JSON of an answer, or that of its events."""
    text = answer.decode()
    if text.startswith("{"):
        return [json.loads(text, parse_constant=no_number)]
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(one, parse_constant=no_number) for one in data if one != "[DONE]"]


@given(odd_bodies())
@settings(max_examples=150, deadline=None)
@example(("/v1/responses", written({"input": "x", "tools": [{"type": "function", "name": "f", "x": "@nan"}]})))
@example(("/v1/responses", written({"input": "x", "text": {"format": {"type": "text", "x": HALF}}})))
@example(("/v1/responses", written({"input": "x", "tool_choice": {"type": HALF}, "stream": True})))
@example(("/v1/responses", written({"input": "x", "tools": [{"type": "function", "name": "f", HALF: 1}]})))
@example(("/v1/responses", written({"input": "x", "tools": [{"type": "function", "name": "f", "x": "@huge float"}]})))
def test_every_answer_is_one_of_ours(odd: tuple[str, bytes]) -> None:
    path, body = odd

    async def ask() -> None:
        door = Door()
        status, answer = await door.ask(path, body)
        assert status in (200, 400, 404), answer
        came = read(answer)
        if status != 200:
            assert came[0]["error"]["message"]
        elif path == "/v1/responses":
            held = came[-1].get("response", came[-1])
            status, kept = await door.ask(f"/v1/responses/{held['id']}", b"", "GET")
            assert status == 404 if not held["store"] else read(kept) == [held]

    asyncio.run(ask())


@pytest.mark.parametrize("raw", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_json_does_not_have_are_refused_wherever_they_stand(raw: str) -> None:
    body = b'{"model": "kith", "input": "x", "nobody knows this": ' + raw.encode() + b"}"
    for path in ("/v1/responses", "/v1/embeddings"):
        status, answer = await Door().ask(path, body)
        assert (status, read(answer)[0]["error"]["code"]) == (400, "bad-request")
