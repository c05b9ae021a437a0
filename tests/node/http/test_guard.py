"""What stands before the door: names, keys, pace, and connections that mean no good."""

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import openai
import pytest

from node.api_keys import ApiKeys
from node.daemon import Daemon
from node.http import guard as http_guard
from node.http.guard import Connection, Guard, host_of_header
from node.http.routes import NEEDS, application
from node.limits import HTTP_BURST
from tests.node.http.scripted import Scripted
from tests.node.http.serving import passed, passed_whole, plain_server


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("LocalHost:80", "localhost"),
        ("[::1]:8420", "::1"),
        ("[::1]", "::1"),
        ("a.b.", "a.b"),
        (" x :1", "x "),
        ("", ""),
    ],
)
def test_the_host_in_a_header(header: str, host: str) -> None:
    assert host_of_header(header) == host


async def asked(
    guard: Guard, path: str = "/v1/models", host: str = "localhost", key: str = "", at: str = "10.0.0.7"
) -> int:
    """The status; 200 where the request got through."""
    statuses: list[int | None] = []

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    headers = [(b"host", host.encode())] + ([(b"authorization", f"Bearer {key}".encode())] if key else [])
    scope = {"type": "http", "path": path, "headers": headers, "client": ("10.0.0.9", 1), "server": (at, 8420)}
    await guard(scope, None, send)  # type: ignore[arg-type]
    return next(status for status in statuses if status)


@pytest.mark.parametrize(
    ("header", "reached", "status"),
    [
        ("10.0.0.7:8420", "10.0.0.7", 200),
        ("10.0.0.8:8420", "10.0.0.7", 421),
        ("10.0.0.7", "::ffff:10.0.0.7", 200),
        ("[fe80::7]:8420", "fe80::7%eth0", 200),
        ("[FD00::7]", "fd00::7", 200),
        ("/run/kith", "/run/kith", 200),
    ],
)
async def test_the_address_that_was_reached_may_be_named_whatever_it_is_now(
    header: str, reached: str, status: int, tmp_path: Path
) -> None:
    """A node outlives its addresses: those of its start are not asked for."""
    door = guard(ApiKeys(tmp_path / "keys.json"), keys_needed=False)
    assert await asked(door, host=header, at=reached) == status


def guard(keys: ApiKeys, *, keys_needed: bool = True, app: Any = passed) -> Guard:
    return Guard(
        app,
        hosts=frozenset({"localhost", "*.lab.example"}),
        keys=keys,
        keys_needed=keys_needed,
        needs=NEEDS,
        open_paths=frozenset({"/health"}),
    )


async def test_a_key_opens_what_its_scopes_say(tmp_path: Path) -> None:
    keys = ApiKeys(tmp_path / "keys.json")
    secret = keys.add("a", ["models"], 1)
    door = guard(keys)
    assert await asked(door, key=secret) == 200
    assert await asked(door, "/v1/chat/completions", key=secret) == 403
    assert await asked(door) == 401
    assert await asked(door, key="kith-wrong") == 401
    assert await asked(door, "/health") == 200
    assert await asked(door, host="evil.example", key=secret) == 421
    assert await asked(door, host="x.lab.example", key=secret) == 200
    assert await asked(door, host="x.y.lab.example", key=secret) == 421
    keys.remove("a")
    assert await asked(door, key=secret) == 401


async def test_a_new_key_of_an_old_name_reads_nothing_of_the_old_ones(tmp_path: Path) -> None:
    mesh = Scripted()
    app = application(cast(Daemon, SimpleNamespace(replica=mesh.replica(), router=mesh.router)))
    keys = ApiKeys(tmp_path / "keys.json")
    async with plain_server(guard(keys, app=app)) as port:
        url = f"http://localhost:{port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=keys.add("laptop", ["chat"], 1), max_retries=0) as old:
            kept = await old.responses.create(model="kith", input="My name is Ada.")
            assert (await old.responses.retrieve(kept.id)).id == kept.id
        keys.remove("laptop")
        async with openai.AsyncOpenAI(base_url=url, api_key=keys.add("laptop", ["chat"], 2), max_retries=0) as new:
            with pytest.raises(openai.NotFoundError):
                await new.responses.retrieve(kept.id)
            with pytest.raises(openai.NotFoundError):
                await new.responses.create(model="kith", input="Who am I?", previous_response_id=kept.id)


async def test_without_keys_a_loopback_door_is_open_and_any_other_is_not(tmp_path: Path) -> None:
    keys = ApiKeys(tmp_path / "keys.json")
    assert await asked(guard(keys, keys_needed=False)) == 200
    assert await asked(guard(keys, keys_needed=False), key="whatever a client has to send") == 200
    assert await asked(guard(keys)) == 401
    keys.add("a", ["chat"], 1)
    assert await asked(guard(keys, keys_needed=False)) == 401


async def test_a_damaged_file_of_keys_closes_the_door(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("nonsense")
    assert await asked(guard(ApiKeys(tmp_path / "keys.json"), keys_needed=False)) == 500


async def test_who_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    keys = ApiKeys(tmp_path / "keys.json")
    one, other = keys.add("one", ["models"], 1), keys.add("other", ["models"], 1)
    door = guard(keys)
    answers = [await asked(door, key=one) for _ in range(int(HTTP_BURST) + 20)]
    assert answers.count(429) >= 15
    assert await asked(door, key=other) == 200


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: loc", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /"]
)
async def test_a_connection_that_brings_no_whole_request_is_closed(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http_guard, "REQUEST_WITHIN_S", 0.2)
    async with plain_server(passed_whole) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()


@pytest.mark.parametrize("early", [False, True], ids=["answers at the end", "answers at once"])
async def test_a_request_that_turns_into_nonsense_gets_one_answer(
    caplog: pytest.LogCaptureFixture, early: bool
) -> None:
    begun = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": []}
        if early:
            await send(start)
        begun.set()
        while (await receive()).get("more_body"):
            pass
        if not early:
            await send(start)
        await send({"type": "http.response.body", "body": b""})

    async with plain_server(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await begun.wait()
        writer.write(b"nonsense\r\n")
        answer = b""
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                answer = await reader.read()
        writer.close()
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert early or answer.startswith(b"HTTP/1.1 400")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def answer_to(pair: tuple[asyncio.StreamReader, asyncio.StreamWriter], sent: bytes) -> bytes:
    """All that comes until the end; empty where the connection is reset."""
    reader, writer = pair
    async with asyncio.timeout(60):
        try:
            writer.write(sent)
            return await reader.read()
        except ConnectionError:
            return b""


async def test_a_host_that_opens_many_connections_is_told_so_and_those_it_has_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_guard, "CONNECTIONS_PER_HOST_MAX", 3)
    monkeypatch.setattr(http_guard, "CONNECTIONS_TOLD_MAX", 2)
    large = b"x" * 300_000  # more than is read at once: who closes before it is read resets
    async with plain_server(passed_whole) as port:
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(6)]
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(large)}\r\n\r\n"
        assert await answer_to(pairs[5], b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") == b"", "nobody is told for ever"
        for pair in pairs[3:5]:
            told, _, body = (await answer_to(pair, head.encode() + large)).partition(b"\r\n\r\n")
            assert told.startswith(b"HTTP/1.1 429 ")
            assert b"retry-after: 1" in told.lower()
            assert json.loads(body)["error"]["code"] == "too-many-requests"
        pairs[0][1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(60):
            assert (await pairs[0][0].readline()).startswith(b"HTTP/1.1 200")
        for _, writer in pairs:
            writer.close()


async def test_one_too_many_that_says_nothing_is_closed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guard, "CONNECTIONS_PER_HOST_MAX", 1)
    monkeypatch.setattr(http_guard, "TOLD_WITHIN_S", 0.2)
    async with plain_server(passed_whole) as port:
        first, second = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        assert await answer_to(second, b"GET / HTTP/1.1\r\nHost: loc") == b""
        first[1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(60):
            assert (await first[0].readline()).startswith(b"HTTP/1.1 200")
        for _, writer in (first, second):
            writer.close()


async def test_nothing_that_is_sent_waits_for_the_acknowledgement_of_what_was_sent_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """asyncio sees to that only where a listening socket was made for a protocol by name; those that uvicorn binds are
    not, and every answer on a kept connection came 40 ms late."""
    made = asyncio.get_running_loop().create_future()
    before = Connection.connection_made

    def noting(connection: Connection, transport: asyncio.Transport) -> None:
        before(connection, transport)
        made.set_result(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(Connection, "connection_made", noting)
    async with plain_server(passed_whole) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await made
        writer.close()
