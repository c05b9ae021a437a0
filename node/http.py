"""The HTTP door, on loopback only: what OpenAI clients need for chat, and a health check.

    GET  /health               {"status": "ok", "engine": …, "leader": …}
    GET  /v1/models            the models of the live mesh, and `kith`: the best of them for each request
    POST /v1/chat/completions  through the router, so any node may answer; streaming by server-sent events or whole

A browser page must not be able to use it: the Host header has to name loopback (DNS rebinding), bodies have to be JSON,
and no CORS header is ever sent. Names of models are those of `kith nodes`.

Does not: tools, logprobs, embeddings, API keys (they come with the engine's batching and with identity).
"""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as HttpRoute

from mesh.wire import common_pb2, engine_pb2
from node.addresses import target
from node.errors import EXIT_CODE_OF, ExitCode, KithError
from node.interfaces import is_loopback
from node.listening import address_of
from node.overview import node_infos, status_of
from node.router import Route

if TYPE_CHECKING:
    from node.daemon import Daemon

#: Against a client that fills the memory with one request.
BODY_BYTES_MAX = 1 << 20
#: The model name that leaves the choice to the mesh.
ANY_MODEL = "kith"
STATUS_OF_EXIT = {
    ExitCode.BAD_INPUT: 400,
    ExitCode.NOT_FOUND: 404,
    ExitCode.UNAVAILABLE: 503,
    ExitCode.UNREACHABLE: 503,
}


@contextlib.asynccontextmanager
async def serve(daemon: "Daemon", listen: str) -> AsyncIterator[str]:
    """Serve while the context is open. Yields HOST:PORT. Raises `KithError`: not loopback, port taken."""
    host, port = address_of(listen)
    if not is_loopback(host):
        raise KithError(
            "binding-refused",
            f"the HTTP door opens on loopback only, not on {host}",
            "Use --http 127.0.0.1:PORT; nodes can not check who calls yet.",
            ExitCode.CANNOT_START,
        )
    config = uvicorn.Config(
        _application(daemon), host=host, port=port, log_config=None, access_log=False, lifespan="off", ws="none"
    )
    server = _Server(config)
    try:
        listening = config.bind_socket()
    except SystemExit:
        raise KithError(
            "port-taken", f"{listen} is taken", "Choose another one with --http.", ExitCode.CANNOT_START
        ) from None
    task = asyncio.create_task(server.serve(sockets=[listening]), name="http")
    try:
        yield target(host, listening.getsockname()[1])
    finally:
        server.should_exit = True
        server.force_exit = True
        await task
        listening.close()


class _Server(uvicorn.Server):
    """Signals belong to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def _application(daemon: "Daemon") -> Starlette:
    async def health(request: Request) -> Response:
        status = status_of(daemon)
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
            generate = _generate_request(body)
            model = str(body.get("model") or ANY_MODEL)
            route = daemon.router.choose(generate, "" if model == ANY_MODEL else model)
            if body.get("stream"):
                usage = bool((body.get("stream_options") or {}).get("include_usage"))
                events = _stream(daemon, route, generate, usage)
                return StreamingResponse(events, media_type="text/event-stream")
            return await _whole(daemon, route, generate)
        except KithError as error:
            return _error(error)

    return Starlette(
        routes=[
            HttpRoute("/health", health),
            HttpRoute("/v1/models", models),
            HttpRoute("/v1/chat/completions", chat, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])],
    )


async def _json_body(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise _bad("the body is not declared as application/json")
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > BODY_BYTES_MAX:
            raise _bad(f"the body is larger than {BODY_BYTES_MAX} bytes")
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise _bad(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise _bad("the body is not a JSON object")
    return body


def _generate_request(body: dict[str, Any]) -> engine_pb2.GenerateRequest:
    """What OpenAI's fields ask of the engine; unknown fields are ignored, as other servers do."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _bad("messages is missing or empty")
    request = engine_pb2.GenerateRequest(priority=1)
    for message in messages:
        if not isinstance(message, dict):
            raise _bad("a message is not an object")
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        if message.get("role") not in ("system", "user", "assistant", "developer") or not isinstance(content, str):
            raise _bad("a message needs a role (system, user, assistant) and a text as content")
        role = "system" if message["role"] == "developer" else message["role"]
        request.messages.add(role=role, content=content)
    request.max_tokens = int(
        _number(body, "max_completion_tokens", _number(body, "max_tokens", 0, 0, 1 << 20), 0, 1 << 20)
    )
    request.sampling.temperature = _number(body, "temperature", 0.7, 0.0, 2.0)
    request.sampling.top_p = _number(body, "top_p", 0.0, 0.0, 1.0)
    request.sampling.seed = int(_number(body, "seed", time.time_ns() & 0xFFFFFFFF, 0, (1 << 63) - 1))
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > 8 or not all(isinstance(text, str) for text in stops):
        raise _bad("stop is neither a text nor a list of at most 8 texts")
    request.stop.extend(stops)
    return request


def _number(body: dict[str, Any], key: str, default: float, least: float, most: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise _bad(f"{key} is not a number from {least:g} to {most:g}")
    return value


async def _whole(daemon: "Daemon", route: Route, request: engine_pb2.GenerateRequest) -> Response:
    text = ""
    finished = engine_pb2.GenerateEvent.Finished()
    async for event in daemon.router.generate(route, request):
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
    daemon: "Daemon", route: Route, request: engine_pb2.GenerateRequest, with_usage: bool
) -> AsyncIterator[str]:
    envelope = _envelope(route, "chat.completion.chunk")

    def chunk(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return f"data: {json.dumps(envelope | {'choices': [choice]})}\n\n"

    yield chunk({"role": "assistant", "content": ""})
    try:
        async with contextlib.aclosing(daemon.router.generate(route, request)) as events:
            async for event in events:
                if event.HasField("delta"):
                    yield chunk({"content": event.delta.text})
                elif event.HasField("finished"):
                    yield chunk({}, event.finished.reason)
                    if with_usage:
                        last = envelope | {"choices": [], "usage": _usage(event.finished.usage)}
                        yield f"data: {json.dumps(last)}\n\n"
    except KithError as error:
        yield f"data: {json.dumps(_error_body(error))}\n\n"
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
    status = STATUS_OF_EXIT.get(EXIT_CODE_OF.get(error.code, error.exit_code), 500)
    # Clients repeat 5xx by themselves; a request that a slow node already works on must not run three times.
    return JSONResponse(_error_body(error), status_code=status, headers={"x-should-retry": "false"})


def _error_body(error: KithError) -> dict[str, Any]:
    kind = "invalid_request_error" if error.exit_code is ExitCode.BAD_INPUT else "server_error"
    return {"error": {"message": f"{error.message}. {error.remedy}", "type": kind, "param": None, "code": error.code}}


def _bad(message: str) -> KithError:
    return KithError("bad-request", message, "See OpenAI's chat completions format.", ExitCode.BAD_INPUT)
