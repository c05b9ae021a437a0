"""The HTTP door of a node from outside: keys, TLS, and where it opens."""

import asyncio
import json
import ssl
from pathlib import Path

import httpx2
import pytest

from node.api_keys import ApiKeys
from node.cli.main import run
from node.errors import ExitCode
from tests.conftest import DaemonFactory

CHAT = {"model": "kith", "messages": [{"role": "user", "content": "Say it. And this."}]}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


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
    assert "on loopback the HTTP door asks for none now" in capsys.readouterr().out
    assert run([*at, "key", "rm", "laptop"]) == ExitCode.NOT_FOUND
    assert run([*at, "key", "add", "x", "--scope", "root"]) == ExitCode.USAGE
