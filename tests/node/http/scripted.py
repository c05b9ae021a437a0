"""A mesh whose agents say what a test tells them, for what the echo engine can not do.

It stands in for the router and for the view of the mesh only; everything above is the real door, over real sockets.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import openai

from mesh.replica import Replica
from mesh.wire import common_pb2, engine_pb2, facts_pb2
from node.daemon import Daemon
from node.errors import KithError
from node.http.guard import CALLER
from node.http.routes import application
from node.route import Route
from node.router import Router
from tests.node.http.serving import plain_server

ALL = ("generate", "chat", "score", "embed", "grammar", "logprobs", "tools")
Event = engine_pb2.GenerateEvent
Says = Callable[[engine_pb2.GenerateRequest, Route], list[Event | KithError | asyncio.Event]]


def started(tokens: int = 3) -> Event:
    return Event(started=Event.Started(prompt_tokens=tokens))


def delta(text: str, *logprobs: engine_pb2.TokenLogprob) -> Event:
    return Event(delta=Event.Delta(text=text, tokens=1, logprobs=logprobs))


def finished(reason: str = "stop", prompt: int = 3, completion: int = 2) -> Event:
    usage = common_pb2.Usage(prompt_tokens=prompt, completion_tokens=completion)
    return Event(finished=Event.Finished(reason=reason, usage=usage))


def saying(*texts: str, reason: str = "stop") -> Says:
    """The same to everybody."""
    return lambda request, route: [started(), *(delta(text) for text in texts), finished(reason)]


def agent(node: str, model: str = "m", abilities: tuple[str, ...] = ALL, **fields: Any) -> tuple[str, Any]:
    profile = facts_pb2.AgentProfile(agent="default", model=model, abilities=abilities, context_tokens=4096, **fields)
    return node, profile


@dataclass
class Scripted:
    """A mesh, as the router and the replica of one node show it. Node ids are names, eight times.

    An `asyncio.Event` among what an agent says is waited for; a `KithError` is raised.
    """

    agents: list[tuple[str, Any]] = field(default_factory=lambda: [agent("a")])
    says: Says = field(default_factory=lambda: saying("Hello", " there"))
    scores: Callable[[engine_pb2.ScoreRequest, Route], list[float]] = lambda request, route: [
        -float(len(text)) for text in request.continuations
    ]
    vectors: Callable[[str], list[float]] = lambda text: [1.0, 0.0]
    asked: list[engine_pb2.GenerateRequest] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)  # how each generation ended
    closed: asyncio.Event = field(default_factory=asyncio.Event)  # one was closed before its end

    def replica(self) -> Replica:
        profiles: dict[str, Any] = {}
        for node, profile in self.agents:
            profiles.setdefault(node * 8, facts_pb2.NodeProfile(name=node)).agents.append(profile)
        view = SimpleNamespace(
            me=self.agents[0][0] * 8,
            membership=SimpleNamespace(view=lambda: set(profiles)),
            profiles=SimpleNamespace(of=profiles.get),
        )
        return cast(Replica, view)

    def choose(self, request: engine_pb2.GenerateRequest, model: str = "", node: str = "") -> Route:
        needs = {"chat" if request.messages else "generate"}
        needs |= {"tools"} if request.tools_json else set()
        for name, profile in self.agents:
            if model in ("", profile.model) and node in ("", name * 8) and needs <= set(profile.abilities):
                ref = common_pb2.AgentRef(node_id=name * 8, agent=profile.agent)
                return Route(ref, name, profile.model, 0.0, model_asked=model, node_asked=node)
        raise KithError("no-agent", "no agent can answer now", "Wait.")

    async def generate(
        self, route: Route, request: engine_pb2.GenerateRequest, who: Hashable = "local"
    ) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        how = "closed"
        try:
            for event in self.says(request, route):
                if isinstance(event, asyncio.Event):
                    await event.wait()
                elif isinstance(event, KithError):
                    how = "failed"
                    raise event
                else:
                    yield event
            how = "finished"
        finally:
            self.ended.append(how)
            if how == "closed":
                self.closed.set()

    async def score(
        self, route: Route, request: engine_pb2.ScoreRequest, who: Hashable = "local"
    ) -> tuple[engine_pb2.ScoreReply, Route]:
        given = self.scores(request, route)
        return engine_pb2.ScoreReply(log_probabilities=given, token_counts=[1] * len(given)), route

    def choose_embedder(self, model: str = "", node: str = "", texts: Sequence[str] = ()) -> Route:
        return self.choose(engine_pb2.GenerateRequest(), model, node)

    async def embed(
        self, route: Route, request: engine_pb2.EmbedRequest, who: Hashable = "local"
    ) -> tuple[engine_pb2.EmbedReply, Route]:
        vectors = [engine_pb2.EmbedReply.Vector(values=self.vectors(text)) for text in request.texts]
        usage = common_pb2.Usage(prompt_tokens=len(request.texts))
        return engine_pb2.EmbedReply(vectors=vectors, usage=usage), route

    @property
    def questions(self) -> "Scripted":
        return self

    @property
    def router(self) -> Router:
        return cast(Router, self)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """The door before this mesh; its base URL. The header x-who says whose key a request has."""
        app = application(cast(Daemon, SimpleNamespace(replica=self.replica(), router=self.router)))

        async def named(scope: Any, receive: Any, send: Any) -> None:
            who = dict(scope["headers"]).get(b"x-who", b"somebody").decode()
            await app({**scope, "state": {CALLER: ("key", who)}}, receive, send)

        async with plain_server(named) as port:
            yield f"http://127.0.0.1:{port}/v1"

    @asynccontextmanager
    async def client(self) -> AsyncIterator[openai.AsyncOpenAI]:
        async with (
            self.serving() as url,
            openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client,
        ):
            yield client
