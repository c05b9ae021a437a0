"""HTTP to one model server: JSON there and back, streams of events, and every failure as an operating error.

A server that has no room (429, 503) is asked again after the pause that it names, as long as that is seconds; who has
to wait longer is told how long. A kept connection that the server closed meanwhile costs one more attempt. Nothing else
is repeated: an answer may have begun.

The key goes to that server alone: redirects are not followed. Not guaranteed: that a server's own words in an error
are free of the prompt; they go to the asker only, cut short.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from node.engine.sse import SseError, SseParser
from node.errors import ExitCode, KithError

CONNECT_SECONDS = 10.0
#: Longest silence of a server, in seconds: it may have to load a model first.
SILENCE_SECONDS = 300.0
#: Attempts at a server without room, and the longest that they wait altogether, seconds.
ATTEMPTS_MAX, PAUSES_SECONDS_MAX = 4, 10.0
PAUSE_FIRST_S = 0.5
#: Bytes of an answer that is no stream: the log-probabilities of a long one, or the vectors of many texts.
ANSWER_BYTES_MAX = 64 << 20
ERROR_BYTES_MAX = 4096
ERROR_CHARACTERS_MAX = 200

#: How servers say that a prompt does not fit: llama-server, OpenAI, vLLM, Ollama.
_TOO_LONG = ("exceed_context_size", "context_length_exceeded", "maximum context length", "too large to process",
             "exceeds the available context", "exceeds the context")  # fmt: skip
#: And that a model does not take a field, or another value of it than its own.
_NOT_TAKEN = ("unsupported_parameter", "unsupported_value")


class Refused(KithError):
    """The server answered, and not with success. `field`: of the body, one that this model does not take; or empty."""

    status = 0
    field = ""


class HttpClient:
    """Belongs to one event loop.

    Args:
        base_url: with /v1 where the server has it; paths are given below it, or below the root with `root=True`.
        key: sent as a bearer token; empty: none is.
        key_env: where the user put the key, for messages.
        connections: at once.
        socket_path: of a server of this process that listens on a Unix socket.
    """

    def __init__(self, base_url: str, key: str, key_env: str, connections: int, socket_path: str = "") -> None:
        self.called = "the engine" if socket_path else f"the server at {base_url.rstrip('/')}"
        self.url = base_url.rstrip("/")
        self.root = self.url.removesuffix("/v1")
        self._key_env = key_env
        # A Unix socket is opened in microseconds, and llama-server closes kept connections without a word.
        kept = 0 if socket_path else connections
        host = httpx2.URL(self.url).host
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=kept)
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            transport=httpx2.AsyncHTTPTransport(uds=socket_path, limits=limits) if socket_path else None,
            limits=limits,
            trust_env=host not in ("127.0.0.1", "::1", "localhost"),  # no proxy leads back to this machine
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def get(self, path: str, *, root: bool = False) -> Any:
        """The answer's JSON. Raises `KithError`, `Refused` for any status but success."""
        async with self._opened("GET", path, None, root, CONNECT_SECONDS) as response:
            return json.loads(await _body(response))

    async def text(self, path: str, *, root: bool = False) -> str:
        """The body of a page. Raises `KithError`."""
        async with self._opened("GET", path, None, root, CONNECT_SECONDS) as response:
            return (await _body(response)).decode("utf-8", "replace")

    async def post(self, path: str, body: dict[str, Any], *, root: bool = False, within_s: float | None = None) -> Any:
        """The answer's JSON. Raises `KithError`."""
        async with self._opened("POST", path, body, root, within_s) as response:
            return json.loads(await _body(response))

    async def stream(
        self, path: str, body: dict[str, Any], ends: Callable[[dict[str, Any]], bool], *, root: bool = False
    ) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of a stream of events, until it ends or the consumer leaves. Raises `KithError`, also where
        it ends before [DONE] and before an object that `ends` the answer: a proxy closes a stream properly whose server
        died."""
        parser = SseParser()
        async with self._opened("POST", path, body, root, None) as response:
            empty, whole = True, False
            async for block in response.aiter_bytes():
                for data in parser.feed(block):
                    if data == "[DONE]":
                        return
                    chunk = json.loads(data)
                    if isinstance(chunk, dict) and "error" in chunk:
                        raise self.broken_off(chunk["error"])
                    if not isinstance(chunk, dict):
                        raise self._nonsense()
                    empty, whole = False, whole or ends(chunk)
                    yield chunk
            if empty:
                raise self._nonsense()
            if not whole:
                raise self.broken_off("its end is missing")

    @asynccontextmanager
    async def _opened(
        self, method: str, path: str, body: dict[str, Any] | None, root: bool, within_s: float | None
    ) -> AsyncIterator[httpx2.Response]:
        """A successful response, still to be read."""
        try:
            response = await self._tried(method, (self.root if root else self.url) + path, body, within_s)
            try:
                yield response
            finally:
                await response.aclose()
        except httpx2.TimeoutException as error:
            message = f"{self.called} did not answer in time"
            raise KithError("engine-failed", message, "See whether it is overloaded.") from error
        except httpx2.HTTPError as error:
            message = f"{self.called} can not be reached ({type(error).__name__})"
            raise KithError("engine-failed", message, "Start it, or correct --engine-url.") from error
        except (json.JSONDecodeError, SseError, UnicodeDecodeError) as error:
            raise self._nonsense() from error

    async def _tried(
        self, method: str, url: str, body: dict[str, Any] | None, within_s: float | None
    ) -> httpx2.Response:
        begun = time.monotonic()
        stale = 0
        timeout = httpx2.USE_CLIENT_DEFAULT if within_s is None else httpx2.Timeout(within_s)
        for attempt in range(1, ATTEMPTS_MAX + 2):
            request = self._client.build_request(method, url, json=body, timeout=timeout)
            try:
                response = await self._client.send(request, stream=True)
            except httpx2.RemoteProtocolError:  # closed before a word: a kept connection that had ended
                stale += 1
                if stale > 1:
                    raise
                continue
            if response.is_success:
                return response
            try:
                error = await self._refused(response)
            finally:
                await response.aclose()
            if response.status_code not in (429, 503):
                raise error
            pause = error.retry_after_s or PAUSE_FIRST_S * 2 ** (attempt - 1)
            if attempt >= ATTEMPTS_MAX or time.monotonic() - begun + pause > PAUSES_SECONDS_MAX:
                raise error
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt either answers or raises")

    async def _refused(self, response: httpx2.Response) -> Refused:
        status = response.status_code
        at = self.called
        words, kinds, field = _reason(await _beginning(response))
        told = f"{at} refuses the request ({status})" + (f": {words}" if words else "")
        if status in (401, 403):
            where = f"into the environment variable {self._key_env}" if self._key_env else "where it expects one"
            error = Refused("engine-failed", f"{at} refuses the key ({status})", f"Put a valid key {where}.")
        elif status in (429, 503):
            after_s = _retry_after_s(response.headers)
            busy = f"{at} is busy ({status})" + (f": {words}" if words else "")
            error = Refused("busy", busy, "Try again later.", ExitCode.UNAVAILABLE, after_s)
        elif any(sign in f"{kinds} {words}" for sign in _TOO_LONG):
            error = Refused("prompt-too-long", f"the prompt does not fit: {words}", "Send less.", ExitCode.BAD_INPUT)
        elif status in (400, 413, 422):
            error = Refused("agent-refused", told, "Change the request.", ExitCode.BAD_INPUT)
        else:
            error = Refused("engine-failed", told, "See its log.")
        error.status = status
        error.field = field if any(sign in kinds for sign in _NOT_TAKEN) else ""
        return error

    def broken_off(self, error: Any) -> KithError:
        """An error in the midst of a stream: what the server says of it, as the value of "error" in its JSON."""
        words, _, _ = _reason(json.dumps({"error": error}).encode())
        message = f"{self.called} broke off its answer" + (f": {words}" if words else "")
        return KithError("engine-failed", message, "Try again; its log may say more.")

    def _nonsense(self) -> KithError:
        message = f"{self.called} sends what is not the OpenAI API"
        return KithError("engine-failed", message, "Correct --engine-url; it ends with /v1 for most servers.")


async def _body(response: httpx2.Response) -> bytes:
    data = bytearray()
    async for block in response.aiter_bytes():
        data += block
        if len(data) > ANSWER_BYTES_MAX:
            raise SseError
    return bytes(data)


async def _beginning(response: httpx2.Response) -> bytes:
    data = bytearray()
    async for block in response.aiter_bytes():
        data += block
        if len(data) >= ERROR_BYTES_MAX:
            break
    return bytes(data[:ERROR_BYTES_MAX])


def _reason(body: bytes) -> tuple[str, str, str]:
    """What an error's body says, on one short line, its type and code, and the field of the request that it names.
    Empty: nothing that is understood."""
    try:
        error = json.loads(body).get("error")
    except (ValueError, AttributeError):
        return "", "", ""
    message, kinds, field = error, "", ""
    if isinstance(error, dict):
        message, kinds = error.get("message"), f"{error.get('type')} {error.get('code')}"
        field = str(error.get("param") or "")
    words = " ".join("".join(c if c.isprintable() else " " for c in str(message or "")).split())
    return words[:ERROR_CHARACTERS_MAX], kinds, field


def _retry_after_s(headers: httpx2.Headers) -> float:
    """Seconds that the server asks for; 0: it does not say, or not in words that are understood."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            return max(0.0, float(value) / scale)
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except (TypeError, ValueError):
            pass
    return 0.0
