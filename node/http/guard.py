"""What stands before the HTTP door: connections, names, keys and pace, before any route sees a request.

Idea: four questions, cheapest first. Is there room for the connection? Does the request name this machine (else a page
in somebody's browser reached us by a name of its own: DNS rebinding)? Whose key is it, and for what? And does that key,
or that host, ask too often?

Threats: a page in a browser on this machine; a client that sends its request byte by byte, or opens connections without
end; a guesser; one client that keeps the others out.

Does not: know routes beyond the scope that each needs.
"""

import asyncio
import ipaddress
import json
import math
import socket
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mesh.rate import Rate
from node.api_keys import ApiKeys
from node.errors import EXIT_CODE_OF, NO_ROOM, ExitCode, KithError
from node.limits import (
    COME_AGAIN_S,
    CONNECTIONS_MAX,
    CONNECTIONS_PER_HOST_MAX,
    CONNECTIONS_TOLD_MAX,
    HTTP_BURST,
    HTTP_PER_S,
    REQUEST_WITHIN_S,
    TOLD_WITHIN_S,
    too_many,
)

#: Key in a request's `state`: on whose behalf it is made, for the fair queue at the engine.
CALLER = "kith_caller"
#: And whether it may know the state of the node.
TRUSTED = "kith_trusted"

STATUS_OF_CODE = {
    "no-such-host": 421,
    "no-key": 401,
    "scope-missing": 403,
    "no-such-path": 404,
    "wrong-method": 405,
    "too-slow": 408,
    "too-large": 413,
    "timed-out": 504,
}
STATUS_OF_EXIT = {
    ExitCode.BAD_INPUT: 400,
    ExitCode.NOT_FOUND: 404,
    ExitCode.UNAVAILABLE: 503,
    ExitCode.UNREACHABLE: 503,
}


#: Nothing of the request runs anywhere, and soon it may. Of all other errors a client should not ask again by itself:
#: a request that a slow node works on already must not run three times.
WORTH_A_RETRY = NO_ROOM | {
    "no-agent", "engine-not-ready", "engine-gone", "engine-gone-shared", "node-unreachable", "node-draining",
}  # fmt: skip


class Connection(H11Protocol):
    """One connection: of too many a few are told so and the others closed at once; it is closed later where it does not
    bring its request."""

    _watch: asyncio.TimerHandle | None = None
    _seen: Any = None  # the last request at the last look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio sets it only where the listening socket was made for TCP by name, and uvicorn's is not. Without it
        # the second piece of an answer waits until the client has acknowledged the first, mostly for 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        here = [one.client[0] for one in self.connections if isinstance(one, Connection) and one.client is not None]
        same = here.count(self.client[0]) if self.client is not None else 0
        over = max(same - CONNECTIONS_PER_HOST_MAX, len(self.connections) - CONNECTIONS_MAX)
        if over > CONNECTIONS_TOLD_MAX:
            transport.abort()
        elif over > 0:
            self.app = _no_room
            self._watch = self.loop.call_later(TOLD_WITHIN_S, transport.abort)
        else:
            self._watch = self.loop.call_later(REQUEST_WITHIN_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP. A route that still waits for the rest of its request must not answer too."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.abort()
                return
        super().send_400_response(msg)

    def _look(self) -> None:
        at_rest = self.cycle is None or self.cycle.response_complete
        if at_rest and self.cycle is self._seen:
            self.transport.abort()
            return
        self._seen = self.cycle
        self._watch = self.loop.call_later(REQUEST_WITHIN_S, self._look)


async def _no_room(_scope: Scope, receive: Receive, send: Send) -> None:
    """The answer on a connection that is one too many: its only one."""

    async def last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    while (await receive()).get("more_body"):  # what is not read when it is closed resets it
        pass
    await respond(last, too_many("this node takes no more connections", COME_AGAIN_S))


class Guard:
    """ASGI middleware.

    Args:
        hosts: names and addresses of this machine, as a Host header may name it; `*.example.org` is one label more. The
            address that the connection reached may always be named: a page of another host can not have it as its own.
        needs: path → scope that a key must have, also for what lies below the path; other paths need any key.
        open_paths: paths that need none.
        keys_needed: whether a key is needed even where none was ever made.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: frozenset[str],
        keys: ApiKeys,
        keys_needed: bool,
        needs: Mapping[str, str],
        open_paths: frozenset[str],
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._keys = keys
        self._keys_needed = keys_needed
        self._needs = needs
        self._open_paths = open_paths
        self._rate = Rate(HTTP_PER_S, HTTP_BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request_id = (b"x-request-id", f"req_{uuid.uuid4().hex}".encode())

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), request_id]}
            await send(message)

        try:
            self._check(scope)
        except KithError as error:
            await respond(named, error)
            return
        await self._app(scope, receive, named)

    def _check(self, scope: Scope) -> None:
        named = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(named) != 1 or not self._is_here(named[0], scope.get("server")):
            text = f"this node is not {named[0][:100]!r}" if named else "the request names no host"
            raise KithError("no-such-host", text, "Use an address of the node, or add the name to http_hosts.")
        host = scope["client"][0] if scope.get("client") else ""
        key = self._keys.find(_bearer(scope))
        caller = ("key", key.name, key.id) if key is not None else ("host", host)
        if wait_s := self._rate.wait_s(caller, asyncio.get_running_loop().time()):
            raise too_many("this was asked too often", wait_s)
        free = not (self._keys_needed or self._keys.all())
        trusted = "status" in key.scopes if key is not None else free
        scope["state"] = {**scope.get("state", {}), CALLER: caller, TRUSTED: trusted}
        path = scope["path"]
        if path in self._open_paths or (free and key is None):
            return
        if key is None:
            raise KithError("no-key", "a valid API key is needed", "Make one with `kith key add NAME` on the node.")
        need = next((scope for at, scope in self._needs.items() if path == at or path.startswith(f"{at}/")), "")
        if need and need not in key.scopes:
            raise KithError("scope-missing", f"this key is not good for {need!r}", "Use one with that scope.")

    def _is_here(self, header: str, reached: tuple[str, int | None] | None) -> bool:
        name = host_of_header(header)
        if reached is not None and name == _plain(reached[0]):
            return True
        return name in self._hosts or f"*.{name.partition('.')[2]}" in self._hosts


def _plain(address: str) -> str:
    """An address as a Host header names it: without a zone, and IPv4 as such where the socket is of both kinds."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def host_of_header(header: str) -> str:
    """The name in a Host header, lower-case, without its port; IPv6 addresses without brackets."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")


def _bearer(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if kind.lower() == "bearer" else ""
    return ""


def status_of(error: KithError) -> int:
    if error.code in NO_ROOM:
        return 429
    return STATUS_OF_CODE.get(error.code) or STATUS_OF_EXIT.get(EXIT_CODE_OF.get(error.code, error.exit_code), 500)


def headers_of(error: KithError) -> dict[str, str]:
    """`x-should-retry` is what OpenAI's clients look at before the status."""
    headers = {"x-should-retry": "true" if error.code in WORTH_A_RETRY else "false"}
    if error.code in NO_ROOM or error.retry_after_s:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.code == "no-key":
        headers["www-authenticate"] = "Bearer"
    return headers


def body_of(error: KithError) -> dict[str, Any]:
    """In OpenAI's form. `param` is the field of the request that is wrong, where it is one."""
    status = status_of(error)
    kind = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    message = ". ".join(part.rstrip(".") for part in (error.message, error.remedy) if part) + "."
    param = getattr(error, "param", "") or None
    return {"error": {"message": message, "type": kind, "param": param, "code": error.code}}


async def respond(send: Send, error: KithError) -> None:
    body = json.dumps(body_of(error)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **headers_of(error)}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status_of(error), "headers": raw})
    await send({"type": "http.response.body", "body": body})
