"""Runs what a client asked: one request or several, merged to one stream of pieces, with ticks where nothing comes.

Idea: each request is read by a task of its own into one bounded queue, so that a consumer may stop waiting without
cancelling a read, and a stream of a slow client holds the engine back. A tick (None) says that nothing came for a
while: the door keeps the connection alive with it. Closing the stream cancels everything, here and on other nodes.

Not guaranteed: an order between the pieces of different choices.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh.wire import common_pb2, engine_pb2
from node.errors import KithError
from node.http.naming import Named
from node.http.tool_reading import Call, ToolReader
from node.http.tools import Toolbox
from node.route import Route
from node.router import Router

#: After so long without a piece there is a tick, seconds. Proxies give up after 30 or 60.
TICK_S = 5.0
#: Pieces that wait for a slow client; beyond these its stream is not read, and the engine joins what comes.
PIECES_MAX = 64


@dataclass
class Ask:
    """A request as all endpoints make it. `requests`: one for each choice that comes back."""

    requests: list[engine_pb2.GenerateRequest]
    model: str  # as the client wrote it
    tools: Toolbox = field(default_factory=Toolbox)
    needs: dict[str, str] = field(default_factory=dict)  # ability → field that asks for it
    stream: bool = False
    stream_usage: bool = False
    options: tuple[str, ...] = ()  # of a closed question to a panel
    choices_each: int = 1  # so many requests have the same prompt

    def counts_prompt(self, piece: "Piece") -> bool:
        """Choices of one prompt count its tokens once."""
        return piece.index % self.choices_each == 0


@dataclass(slots=True)
class Piece:
    """A part of choice `index`. The last one of a choice has a `reason`, and its `usage`."""

    index: int = 0
    text: str = ""
    call: Call | None = None
    logprobs: list[engine_pb2.TokenLogprob] = field(default_factory=list)
    reason: str = ""  # "stop", "length", "tool_calls"
    usage: common_pb2.Usage | None = None
    extension: dict[str, Any] | None = None  # what this mesh says beyond OpenAI's format


Pieces = AsyncGenerator[Piece | None, None]


@dataclass(frozen=True)
class Answering:
    """An answer that is under way. `pieces` has to be closed."""

    model: str
    pieces: Pieces
    headers: dict[str, str]


def routed(router: Router, named: Named, ask: Ask, who: Hashable) -> Answering:
    """Ask one agent, the same for all choices: they share its prefix cache. Raises `KithError` where there is none."""
    route = router.choose(ask.requests[0], named.model, named.node)
    one_by_one = [
        pieces_of(router, route, request, index, ask.tools, who) for index, request in enumerate(ask.requests)
    ]
    return Answering(route.model, merged(one_by_one), {"x-kith-node": route.agent.node_id})


async def pieces_of(
    router: Router, route: Route, request: engine_pb2.GenerateRequest, index: int, tools: Toolbox, who: Hashable
) -> Pieces:
    """One choice. Raises `KithError`."""
    reader = ToolReader(tools.names, forced=tools.forced, parallel=tools.parallel) if tools.active else None
    async with contextlib.aclosing(router.generate(route, request, who)) as events:
        async for event in events:
            match event.WhichOneof("event"):
                case "started":
                    yield Piece(index)
                case "delta":
                    delta = event.delta
                    parts = [delta.text] if reader is None else reader.feed(delta.text)
                    for piece in _as_pieces(index, parts, list(delta.logprobs)):
                        yield piece
                case "finished":
                    for piece in _as_pieces(index, reader.finish() if reader is not None else [], []):
                        yield piece
                    called = reader is not None and reader.calls and event.finished.reason == "stop"
                    reason = "tool_calls" if called else event.finished.reason
                    yield Piece(index, reason=reason, usage=event.finished.usage)
                case "problem":
                    raise KithError.from_wire(event.problem)


def _as_pieces(index: int, parts: Sequence[str | Call], logprobs: list[engine_pb2.TokenLogprob]) -> list[Piece]:
    pieces = [Piece(index, call=one) if isinstance(one, Call) else Piece(index, text=one) for one in parts if one]
    if logprobs:
        pieces = pieces or [Piece(index)]
        pieces[0].logprobs = logprobs
    return pieces


async def merged(sources: Sequence[Pieces]) -> Pieces:
    """The pieces of all, as they come, and ticks. The first error ends all of them."""
    queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue(PIECES_MAX)

    async def read(source: Pieces) -> None:
        try:
            async with contextlib.aclosing(source) as pieces:
                async for piece in pieces:
                    await queue.put(piece)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    readers = [asyncio.create_task(read(source), name="http answer") for source in sources]
    try:
        left = len(readers)
        while left:
            try:
                got = queue.get_nowait()
            except asyncio.QueueEmpty:
                try:
                    async with asyncio.timeout(TICK_S):
                        got = await queue.get()
                except TimeoutError:
                    yield None
                    continue
            if isinstance(got, BaseException):
                raise got
            if got is None:
                left -= 1
            else:
                yield got
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


@dataclass
class Choice:
    """What came for one choice, put together."""

    text: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[engine_pb2.TokenLogprob] = field(default_factory=list)
    reason: str = "stop"

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.logprobs += piece.logprobs
        if piece.call is not None:
            self.calls.append(piece.call)
        self.reason = piece.reason or self.reason


@dataclass
class Collected:
    """A whole answer."""

    choices: list[Choice]
    usage: common_pb2.Usage = field(default_factory=common_pb2.Usage)
    extension: dict[str, Any] | None = None

    def add(self, piece: Piece, ask: Ask) -> None:
        self.choices[piece.index].add(piece)
        self.extension = piece.extension or self.extension
        if piece.usage is not None:
            add_usage(self.usage, piece.usage, prompt=ask.counts_prompt(piece))


def add_usage(total: common_pb2.Usage, part: common_pb2.Usage, *, prompt: bool = True) -> None:
    """`prompt`: whether the tokens of its prompt count, for several choices have one."""
    total.completion_tokens += part.completion_tokens
    if prompt:
        total.prompt_tokens += part.prompt_tokens
        total.cached_tokens += part.cached_tokens


async def collected(answering: Answering, ask: Ask) -> Collected:
    """Raises `KithError`."""
    whole = Collected([Choice() for _ in ask.requests])
    async with contextlib.aclosing(answering.pieces) as pieces:
        async for piece in pieces:
            if piece is not None:
                whole.add(piece, ask)
    return whole


def usage_of(usage: common_pb2.Usage) -> dict[str, Any]:
    """In the form of completions."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
