"""Every path of the door: who gets in, and what is refused before anybody reads it."""

import asyncio
import json
import re
from typing import Any

import httpx2
import pytest
from starlette.routing import Route

from node.api_keys import SCOPES, ApiKeys
from node.http.fields import DEPTH_MAX
from node.http.routes import NEEDS, OPEN_PATHS, application
from node.limits import BODY_BYTES_MAX
from tests.node.http.conftest import Door
from tests.security.http_bodies import BODIES

JSON = {"content-type": "application/json"}


def test_every_path_asks_for_a_scope_or_is_open() -> None:
    app = application(None)  # type: ignore[arg-type]
    for route in app.routes:
        assert isinstance(route, Route)
        path = re.sub(r"/\{.*", "", route.path)
        assert path in NEEDS or path in OPEN_PATHS
    assert set(NEEDS.values()) <= set(SCOPES)
    assert BODIES.keys() == {path for path in NEEDS if path != "/v1/models"}


@pytest.fixture
def http(door: Door) -> Any:
    return httpx2.AsyncClient(base_url=door.url, trust_env=False, timeout=20)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", JSON, 400),
        (b"[]", JSON, 400),
        (b'{"a": ' + b"[" * DEPTH_MAX + b"]" * DEPTH_MAX + b"}", JSON, 400),
        (b"[" * 500_000, JSON, 400),
        (b"{}", {"content-type": "text/plain"}, 400),
        (b"model=kith", {"content-type": "application/x-www-form-urlencoded"}, 400),
        (b" " * (BODY_BYTES_MAX + 1), JSON, 413),
    ],
    ids=["cut", "list", "deep", "deeper", "text", "form", "large"],
)
async def test_a_bad_body_is_refused(
    http: Any, path: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    async with http:
        answer = await http.post(path, content=content, headers=headers)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert error["message"]
        assert error["type"] == "invalid_request_error"
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["x-request-id"]
        assert "access-control-allow-origin" not in answer.headers


async def test_a_body_without_an_end_is_cut_where_it_is_too_large(http: Any) -> None:
    async def endless() -> Any:
        for _ in range(2 * BODY_BYTES_MAX // 65_536):
            yield b" " * 65_536

    async with http:
        answer = await http.post("/v1/responses", content=endless(), headers=JSON)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/nothing/at/all", 404),
        ("GET", "/v1/responses/resp_1", 404),
        ("DELETE", "/v1/responses/resp_1", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/responses/resp_1", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
    ],
)
async def test_what_is_not_there_is_said_in_openais_form(http: Any, method: str, path: str, status: int) -> None:
    async with http:
        answer = await http.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["code"]


@pytest.mark.parametrize("path", [*NEEDS, "/v1/models/kith", "/v1/responses/resp_1", "/v1/nothing"])
async def test_a_key_is_asked_for_and_its_scope(http: Any, door: Door, path: str) -> None:
    keys = ApiKeys(door.data_dir / "keys.json")
    need = next((scope for at, scope in NEEDS.items() if path.startswith(at)), "")
    name = re.sub(r"\W", "_", path)
    secret = keys.add(name, [scope for scope in SCOPES if scope != need], 1)
    try:
        async with http:
            refused = await http.post(path, json={})
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            other = await http.post(path, json={}, headers={"authorization": f"Bearer {secret}"})
            assert other.status_code == (403 if need else 404)
            page = await http.post(path, json={}, headers={"host": "evil.example"})
            assert page.status_code == 421
    finally:
        keys.remove(name)


async def test_health_tells_who_may_know(http: Any, door: Door) -> None:
    async with http:
        known = (await http.get("/health")).json()
    assert known["node"] == door.name
    assert known["engine"] == "ready"


async def test_every_field_that_a_body_may_have_ends_in_an_answer_or_an_error_of_ours(http: Any) -> None:
    async with http:
        for path, body in BODIES.items():
            for field in body:
                kept = {name: value for name, value in body.items() if name in (field, "model", "messages", "input")}
                async with asyncio.timeout(20):
                    answer = await http.post(path, content=json.dumps(kept), headers=JSON)
                assert answer.status_code in (200, 400, 429), (path, field, answer.text)
