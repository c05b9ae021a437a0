"""The paths of the HTTP door. What each does stands in its own module; here a request becomes a response."""

import time
from collections.abc import Awaitable, Callable, Hashable
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from node.errors import ExitCode, KithError
from node.http import chat, completions, embeddings, models, responses
from node.http.answering import Answering, Ask, collected
from node.http.asking import answered
from node.http.event_stream import EventStream, error_response, unless_gone
from node.http.fields import json_body
from node.http.guard import CALLER, TRUSTED
from node.http.response_store import ResponseStore
from node.overview import status_of

if TYPE_CHECKING:
    from node.daemon import Daemon

#: Path → scope that a key needs for it, and for what lies below it.
NEEDS = {
    "/v1/models": "models",
    "/v1/chat/completions": "chat",
    "/v1/completions": "chat",
    "/v1/responses": "chat",
    "/v1/embeddings": "embeddings",
}
OPEN_PATHS = frozenset({"/health"})

Endpoint = Callable[[Request], Awaitable[Response]]


def application(daemon: "Daemon") -> Starlette:
    here = _Endpoints(daemon)
    return Starlette(
        routes=[
            Route("/health", here.health),
            Route("/v1/models", _caught(here.models)),
            Route("/v1/models/{name:path}", _caught(here.model)),
            Route("/v1/chat/completions", _caught(here.chat), methods=["POST"]),
            Route("/v1/completions", _caught(here.completions), methods=["POST"]),
            Route("/v1/embeddings", _caught(here.embeddings), methods=["POST"]),
            Route("/v1/responses", _caught(here.responses), methods=["POST"]),
            Route("/v1/responses/{id}", _caught(here.response), methods=["GET"]),
            Route("/v1/responses/{id}", _caught(here.forget), methods=["DELETE"]),
        ],
        exception_handlers={HTTPException: _no_route, Exception: _defect},
    )


class _Endpoints:
    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon
        self._held = ResponseStore(time.monotonic)

    async def health(self, request: Request) -> Response:
        if not getattr(request.state, TRUSTED, False):
            return JSONResponse({"status": "ok"})
        status = status_of(self._daemon)
        leader = status.leader.leader_id or None
        return JSONResponse({"status": "ok", "engine": status.engine_state, "leader": leader, "node": status.name})

    async def models(self, _: Request) -> Response:
        return JSONResponse(models.listed(self._daemon.replica))

    async def model(self, request: Request) -> Response:
        return JSONResponse(models.one(self._daemon.replica, request.path_params["name"]))

    async def chat(self, request: Request) -> Response:
        ask = chat.chat_ask(await json_body(request))
        answering = self._answered(request, ask)
        if ask.stream:
            return EventStream(chat.chunks(answering, ask), answering.headers)
        came = await unless_gone(request.receive, collected(answering, ask))
        return JSONResponse(chat.whole(answering, came), headers=answering.headers)

    async def completions(self, request: Request) -> Response:
        ask = completions.completions_ask(await json_body(request))
        answering = self._answered(request, ask)
        if ask.stream:
            return EventStream(completions.chunks(answering, ask), answering.headers)
        came = await unless_gone(request.receive, collected(answering, ask))
        return JSONResponse(completions.whole(answering, came), headers=answering.headers)

    async def embeddings(self, request: Request) -> Response:
        body = await json_body(request)
        answer = embeddings.embeddings(self._daemon.router, self._daemon.replica, body, _who(request))
        made = await unless_gone(request.receive, answer)
        return StreamingResponse(embeddings.pieces(made), media_type="application/json")

    async def responses(self, request: Request) -> Response:
        who = _who(request)
        wanted = responses.responses_ask(await json_body(request), self._held, who)
        answering = self._answered(request, wanted.ask)
        if wanted.ask.stream:
            return EventStream(responses.chunks(answering, wanted, self._held, who), answering.headers)
        body = await unless_gone(request.receive, responses.whole(answering, wanted, self._held, who))
        return JSONResponse(body, headers=answering.headers)

    async def response(self, request: Request) -> Response:
        return JSONResponse(responses.held_response(self._held, request.path_params["id"], _who(request)).body)

    async def forget(self, request: Request) -> Response:
        response_id = request.path_params["id"]
        responses.held_response(self._held, response_id, _who(request))
        self._held.remove(response_id, _who(request))
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    def _answered(self, request: Request, ask: Ask) -> Answering:
        return answered(self._daemon.router, self._daemon.replica, ask, _who(request))


def _who(request: Request) -> Hashable:
    who: Hashable = getattr(request.state, CALLER, "http")
    return who


def _caught(endpoint: Endpoint) -> Endpoint:
    """Operating errors in OpenAI's form; nothing for a client that went away."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except KithError as error:
            return error_response(error)
        except ClientDisconnect:
            return Response()

    return answer


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        said = KithError(
            "wrong-method", f"{request.method} can not be used here", "See docs/http.md.", ExitCode.BAD_INPUT
        )
        answer = error_response(said)
        answer.headers.update(error.headers or {})
        return answer
    return error_response(
        KithError(
            "no-such-path", "there is nothing here", "Paths begin with /v1: see docs/http.md.", ExitCode.NOT_FOUND
        )
    )


async def _defect(_: Request, error: Exception) -> Response:
    """A programmer's error: uvicorn logs it, the client hears its kind and nothing that could quote a prompt."""
    what = f"the node failed inside ({type(error).__name__})"
    return error_response(KithError("internal-error", what, "The node's log says where; please report it."))
