"""The HTTP door: what OpenAI clients need for chat, and a health check.

    GET  /health               {"status": "ok"}; for who may know it, also engine, leader and node
    GET  /v1/models            the models of the live mesh, and `kith`: the best of them for each request
    POST /v1/chat/completions  through the router, so any node may answer; streaming by server-sent events or whole

On loopback it is open to the programs of this machine, unless API keys were made; elsewhere it is TLS, and only for who
has a key (http_tls.py, http_guard.py). A browser page must not be able to use it: the Host header has to name this
machine, bodies have to be JSON, and no CORS header is ever sent. Names of models are those of `kith nodes`.

Does not: tools, logprobs, embeddings (they come with the engine's batching).
"""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as HttpRoute

from mesh.wire import common_pb2, engine_pb2
from node.addresses import target
from node.api_keys import ApiKeys
from node.errors import ExitCode, KithError
from node.http_guard import CALLER, TRUSTED, Connection, Guard, body_of, headers_of, status_of
from node.http_tls import Certificate, hosts_of
from node.interfaces import addresses_for, is_loopback
from node.limits import BODY_BYTES_MAX, CONNECTIONS_MAX, MESSAGES_MAX, REQUEST_WITHIN_S
from node.listening import address_of
from node.overview import node_infos
from node.overview import status_of as node_status
from node.router import Route

if TYPE_CHECKING:
    from node.daemon import Daemon

#: The model name that leaves the choice to the mesh.
ANY_MODEL = "kith"
#: Path → scope that a key needs for it.
NEEDS = {"/v1/models": "models", "/v1/chat/completions": "chat"}
OPEN_PATHS = frozenset({"/health"})


@contextlib.asynccontextmanager
async def serve(daemon: "Daemon", listen: str) -> AsyncIterator[str]:
    """Serve while the context is open. Yields HOST:PORT. Raises `KithError`: no TLS or no key where others can reach
    it, port taken."""
    host, port = address_of(listen)
    certificate = _certificate(daemon, host)
    keys = ApiKeys(daemon.paths.api_keys)
    keys_needed = not is_loopback(host)
    if keys_needed and not keys.all():
        raise KithError(
            "binding-refused",
            f"other machines can reach {host}, and no API key was made: nobody could use the HTTP door",
            "Make one with `kith key add NAME`, or use --http 127.0.0.1:PORT.",
            ExitCode.CANNOT_START,
        )
    guarded = Guard(
        _application(daemon),
        hosts=hosts_of(host, addresses_for(host, daemon.config.interfaces), daemon.config.http_hosts, certificate),
        keys=keys,
        keys_needed=keys_needed,
        needs=NEEDS,
        open_paths=OPEN_PATHS,
    )
    # Whoever sends nonsense must not fill the log with it.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    config = uvicorn.Config(
        guarded,
        host=host,
        port=port,
        http=Connection,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,  # else any local program could name another host as its own
        limit_concurrency=CONNECTIONS_MAX,
    )
    config.load()
    config.ssl = certificate.context if certificate is not None else None
    server = _Server(config)
    try:
        listening = config.bind_socket()
    except SystemExit:
        raise KithError(
            "port-taken", f"{listen} is taken", "Choose another one with --http.", ExitCode.CANNOT_START
        ) from None
    task = asyncio.create_task(server.serve(sockets=[listening]), name="http")
    fresh = asyncio.create_task(certificate.keep_fresh(), name="http certificate") if certificate is not None else None
    try:
        yield target(host, listening.getsockname()[1])
    finally:
        if fresh is not None:
            fresh.cancel()
        server.should_exit = True
        server.force_exit = True
        await task
        listening.close()


def _certificate(daemon: "Daemon", host: str) -> Certificate | None:
    """What the door shows; None: plain HTTP, on loopback only. Raises `KithError`."""
    config = daemon.config
    if config.http_cert:
        return Certificate(Path(config.http_cert), Path(config.http_key or config.http_cert))
    if is_loopback(host):
        return None
    if daemon.enrolment is None:
        raise KithError(
            "binding-refused",
            f"other machines can reach {host}: the HTTP door opens there with TLS only",
            "Give a certificate (http_cert, http_key), make a mesh with `kith init`, or use --http 127.0.0.1:PORT.",
            ExitCode.CANNOT_START,
        )
    return Certificate(daemon.enrolment.paths.certificate, daemon.enrolment.paths.key)


class _Server(uvicorn.Server):
    """Signals belong to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def _application(daemon: "Daemon") -> Starlette:
    async def health(request: Request) -> Response:
        if not getattr(request.state, TRUSTED, False):
            return JSONResponse({"status": "ok"})
        status = node_status(daemon)
        leader = status.leader.leader_id or None
        return JSONResponse({"status": "ok", "engine": status.engine_state, "leader": leader, "node": status.name})

    async def models(request: Request) -> Response:
        names = {ANY_MODEL: "kith"}
        for info in node_infos(daemon):
            names |= {agent.model: info.name for agent in info.profile.agents}
        data = [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in names.items()]
        return JSONResponse({"object": "list", "data": data})

    async def chat(request: Request) -> Response:
        try:
            body = await _json_body(request)
            who: Hashable = getattr(request.state, CALLER, "http")
            generate = generate_request(body)
            model = _text(body.get("model") or ANY_MODEL)
            route = daemon.router.choose(generate, "" if model == ANY_MODEL else model)
            if body.get("stream"):
                options = body.get("stream_options")
                usage = isinstance(options, dict) and bool(options.get("include_usage"))
                events = _stream(daemon, route, generate, usage, who)
                return StreamingResponse(events, media_type="text/event-stream")
            return await _whole(daemon, route, generate, who)
        except KithError as error:
            return _error(error)
        except ClientDisconnect:
            return Response()  # nobody reads it

    return Starlette(
        routes=[
            HttpRoute("/health", health),
            HttpRoute("/v1/models", models),
            HttpRoute("/v1/chat/completions", chat, methods=["POST"]),
        ],
    )


async def _json_body(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise _bad("the body is not declared as application/json")
    raw = bytearray()
    try:
        async with asyncio.timeout(REQUEST_WITHIN_S):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > BODY_BYTES_MAX:
                    raise _bad(f"the body is larger than {BODY_BYTES_MAX} bytes")
    except TimeoutError:
        raise KithError("too-slow", f"the body did not come within {REQUEST_WITHIN_S:g} s", "Send it again.") from None
    return parsed(bytes(raw))


def parsed(raw: bytes) -> dict[str, Any]:
    """A request's body. Raises `KithError` (`bad-request`)."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _bad("the body is not JSON") from error
    if not isinstance(body, dict):
        raise _bad("the body is not a JSON object")
    return body


def generate_request(body: dict[str, Any]) -> engine_pb2.GenerateRequest:
    """What OpenAI's fields ask of the engine; unknown fields are ignored, as other servers do. Raises `KithError`."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or len(messages) > MESSAGES_MAX:
        raise _bad(f"messages is no list of 1 to {MESSAGES_MAX} messages")
    request = engine_pb2.GenerateRequest(priority=1)
    for message in messages:
        if not isinstance(message, dict):
            raise _bad("a message is not an object")
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(_text(part.get("text", "")) for part in content if isinstance(part, dict))
        if message.get("role") not in ("system", "user", "assistant", "developer") or not isinstance(content, str):
            raise _bad("a message needs a role (system, user, assistant) and a text as content")
        role = "system" if message["role"] == "developer" else message["role"]
        request.messages.add(role=role, content=_text(content))
    request.max_tokens = int(
        _number(body, "max_completion_tokens", _number(body, "max_tokens", 0, 0, 1 << 20), 0, 1 << 20)
    )
    request.sampling.temperature = _number(body, "temperature", 0.7, 0.0, 2.0)
    request.sampling.top_p = _number(body, "top_p", 0.0, 0.0, 1.0)
    request.sampling.seed = int(_number(body, "seed", time.time_ns() & 0xFFFFFFFF, 0, (1 << 63) - 1))
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > 8:
        raise _bad("stop is neither a text nor a list of at most 8 texts")
    request.stop.extend(map(_text, stops))
    return request


def _text(value: Any) -> str:
    """JSON can hold half of a character, which no other format of ours can."""
    if not isinstance(value, str):
        raise _bad("there is something else where a text should be")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _bad("a text holds half of a character (a lone surrogate)") from None
    return value


def _number(body: dict[str, Any], key: str, default: float, least: float, most: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise _bad(f"{key} is not a number from {least:g} to {most:g}")
    return value


async def _whole(daemon: "Daemon", route: Route, request: engine_pb2.GenerateRequest, who: Hashable) -> Response:
    text = ""
    finished = engine_pb2.GenerateEvent.Finished()
    async for event in daemon.router.generate(route, request, who):
        text += event.delta.text
        if event.HasField("finished"):
            finished = event.finished
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finished.reason,
        "logprobs": None,
    }
    answer = _envelope(route, "chat.completion") | {"choices": [choice], "usage": _usage(finished.usage)}
    return JSONResponse(answer, headers={"x-kith-node": route.agent.node_id})


async def _stream(
    daemon: "Daemon", route: Route, request: engine_pb2.GenerateRequest, with_usage: bool, who: Hashable
) -> AsyncIterator[str]:
    envelope = _envelope(route, "chat.completion.chunk")

    def chunk(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return f"data: {json.dumps(envelope | {'choices': [choice]})}\n\n"

    yield chunk({"role": "assistant", "content": ""})
    try:
        async with contextlib.aclosing(daemon.router.generate(route, request, who)) as events:
            async for event in events:
                if event.HasField("delta"):
                    yield chunk({"content": event.delta.text})
                elif event.HasField("finished"):
                    yield chunk({}, event.finished.reason)
                    if with_usage:
                        last = envelope | {"choices": [], "usage": _usage(event.finished.usage)}
                        yield f"data: {json.dumps(last)}\n\n"
    except KithError as error:
        yield f"data: {json.dumps(body_of(error))}\n\n"
    yield "data: [DONE]\n\n"


def _envelope(route: Route, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": route.model}


def _usage(usage: common_pb2.Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _error(error: KithError) -> Response:
    return JSONResponse(body_of(error), status_code=status_of(error), headers=headers_of(error))


def _bad(message: str) -> KithError:
    return KithError("bad-request", message, "See OpenAI's chat completions format.", ExitCode.BAD_INPUT)
