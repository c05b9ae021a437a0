"""The HTTP door from outside: names, keys, TLS, and clients that mean no good. Real daemons, real sockets."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from node.http_guard import Connection, Guard, host_of_header
from node.http_tls import Certificate, hosts_of

from node import http_guard
from node.api_keys import ApiKeys
from node.cli.main import run
from node.errors import ExitCode, KithError
from node.http import generate_request, parsed
from node.limits import HTTP_BURST
from tests.conftest import DaemonFactory

CHAT = {"model": "kith", "messages": [{"role": "user", "content": "Say it. And this."}]}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# What a request may be


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"1" * 10_000,
        b"[]",
        b'{"messages": []}',
        b'{"messages": [1]}',
        b'{"messages": [{"role": ["user"], "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": [{"text": 1}]}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "stop": ["\\udfff"]}',
        b'{"messages": [{"role": "user", "content": "x"}], "stop": {"a": 1}}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e400}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": -1}',
    ],
)
def test_a_bad_request_is_refused_in_words(raw: bytes) -> None:
    with pytest.raises(KithError) as caught:
        generate_request(parsed(raw))
    assert caught.value.code == "bad-request"
    json.dumps(http_guard.body_of(caught.value), ensure_ascii=False).encode()


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


def test_a_wildcard_listens_under_this_machines_names_only() -> None:
    hosts = hosts_of("0.0.0.0", ["10.0.0.7"], ("Mesh.Example.org", "*.lab.example"), None)
    assert {"10.0.0.7", "localhost", "mesh.example.org", "*.lab.example"} <= hosts
    assert hosts_of("10.0.0.7", [], (), None) == {"localhost", "127.0.0.1", "::1", "10.0.0.7"}


async def asked(guard: Guard, path: str = "/v1/models", host: str = "localhost", key: str = "") -> int:
    """The status; 200 where the request got through."""
    statuses: list[int | None] = []

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    headers = [(b"host", host.encode())] + ([(b"authorization", f"Bearer {key}".encode())] if key else [])
    scope = {"type": "http", "path": path, "headers": headers, "client": ("10.0.0.9", 1)}
    await guard(scope, None, send)  # type: ignore[arg-type]
    return next(status for status in statuses if status)


async def passed_whole(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def passed(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})


def guard(keys: ApiKeys, *, keys_needed: bool = True) -> Guard:
    return Guard(
        passed,
        hosts=frozenset({"localhost", "*.lab.example"}),
        keys=keys,
        keys_needed=keys_needed,
        needs={"/v1/models": "models", "/v1/chat/completions": "chat"},
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


# With a daemon


async def test_the_door_asks_for_keys_as_soon_as_there_is_one(daemon: DaemonFactory) -> None:
    node = daemon("--http", "127.0.0.1:0", alone=True)
    status = await node.ready()
    keys = ApiKeys(node.data_dir / "keys.json")
    async with httpx2.AsyncClient(base_url=f"http://{status.http_address}", trust_env=False) as http:
        assert (await http.get("/v1/models")).status_code == 200
        secret = keys.add("a", ["chat", "models"], 1)
        refused = await http.get("/v1/models")
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "no-key"
        assert "cors" not in str(refused.headers).lower()
        assert "access-control-allow-origin" not in refused.headers
        assert (await http.get("/health")).json() == {"status": "ok"}
        assert (await http.post("/v1/chat/completions", json=CHAT, headers=bearer(secret))).status_code == 200
        keys.remove("a")
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_beyond_loopback_it_is_tls_with_keys_or_nothing(daemon: DaemonFactory, tmp_path: Path) -> None:
    folder = tmp_path / "node0"
    refused = daemon("--http", "0.0.0.0:0", name="alone", alone=True)
    assert refused.process is not None
    assert await asyncio.to_thread(refused.process.wait, 30) == ExitCode.CANNOT_START
    assert "with TLS only" in refused.output.read_text()

    keyless = daemon("--http", "0.0.0.0:0", name="keyless")
    assert keyless.process is not None
    assert await asyncio.to_thread(keyless.process.wait, 30) == ExitCode.CANNOT_START
    assert "kith key add" in keyless.output.read_text()

    secret = ApiKeys(folder / "keys.json").add("a", ["chat", "models", "status"], 1)
    node = daemon("--http", "0.0.0.0:0", name="node0")
    status = await node.ready()
    port = int(status.http_address.rpartition(":")[2])
    trust = ssl.create_default_context(cafile=str(folder / "mesh" / "ca.pem"))
    extensions = {"sni_hostname": f"{status.node_id}.kith"}
    async with httpx2.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=trust, trust_env=False) as http:
        models = await http.get("/v1/models", headers=bearer(secret), extensions=extensions)
        assert models.status_code == 200
        assert (await http.get("/v1/models", extensions=extensions)).status_code == 401
        assert (await http.get("/health", extensions=extensions)).json() == {"status": "ok"}
        told = await http.get("/health", headers=bearer(secret), extensions=extensions)
        assert told.json()["engine"] == "ready"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"200" not in await reader.read(), "no plain text"
    writer.close()


@asynccontextmanager
async def plain_server(app: Any) -> AsyncIterator[int]:
    """A server with our connections and nothing else; its port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=Connection, log_config=None, lifespan="off", ws="none"))
    listening = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server._serve([listening]))
    yield listening.getsockname()[1]
    server.should_exit = server.force_exit = True
    await task
    listening.close()


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


async def test_a_host_that_opens_many_connections_gets_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guard, "CONNECTIONS_PER_HOST_MAX", 3)
    async with plain_server(passed_whole) as port:
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert await pairs[3][0].read() == b""
        pairs[0][1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await pairs[0][0].readline()).startswith(b"HTTP/1.1 200")
        for _, writer in pairs:
            writer.close()


def test_a_certificate_that_changes_on_disk_is_taken_over(tmp_path: Path) -> None:
    from scripts.throwaway import ThrowawayMesh

    enrolment = ThrowawayMesh().enrol(tmp_path / "a")
    held = Certificate(enrolment.paths.certificate, enrolment.paths.key)
    assert f"{enrolment.identity.node_id}.kith" in held.names()
    enrolment.paths.certificate.write_text("nonsense")
    held.refresh()  # said, and the old one stays
    with pytest.raises(KithError, match="can not be used"):
        Certificate(enrolment.paths.certificate, enrolment.paths.key)


def test_keys_are_made_listed_and_removed_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--data-dir", str(tmp_path / "node")]
    assert run([*at, "key", "list"]) == 0
    assert "no API keys" in capsys.readouterr().out
    assert run([*at, "key", "add", "laptop", "--scope", "chat"]) == 0
    secret = capsys.readouterr().out.splitlines()[0]
    found = ApiKeys(tmp_path / "node" / "keys.json").find(secret)
    assert found is not None
    assert found.scopes == ("chat",)
    assert run([*at, "key", "list", "--json"]) == 0
    listed = capsys.readouterr().out
    assert secret not in listed
    assert json.loads(listed)["keys"][0]["name"] == "laptop"
    assert run([*at, "key", "rm", "laptop"]) == 0
    assert run([*at, "key", "rm", "laptop"]) == ExitCode.NOT_FOUND
    assert run([*at, "key", "add", "x", "--scope", "root"]) == ExitCode.USAGE
