"""Who calls: every call on the mesh port is bound to a member, checked against the table of roles, and kept in time.

Idea: TLS lets in whoever has a certificate of this mesh. This wraps each handler (a caller's certificate is not known
any earlier): it reads the certificate, asks whether it is valid now, whether the member is denied and whether its role
may call this, and only then runs the handler. Running calls are known by their caller: when a member is denied, `cut`
ends all of them at once, in the midst of streams too, and no call outlives the caller's certificate.

Every call has a deadline: the caller's, or ours. Why a call was refused is for our log (refused.py); the answer only
says that. So it is with a fault of ours: the answer has nothing of its text.

Each member has a part of this node, a bucket of calls and a number that may run at once. Beyond it a call is refused
with the time when to come again, and not at once where there are many: refusing costs too, and a connection carries few
calls at a time.

Threat: a call that never ends holds memory and an engine slot; a member that is denied must not finish what it began;
a member that floods must cost the others nothing.

Does not: look at what is in a call; links count their messages themselves (links.py).
"""

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import grpc
import grpc.aio

from mesh.authorisation import may_call
from mesh.certificates import CertificateError, Identity, Roots
from mesh.identity import NodeId
from mesh.rate import Rate
from node import clock
from node.errors import ExitCode, KithError
from node.limits import (
    CALLS_BURST,
    CALLS_OF_ONE_MAX,
    CALLS_PER_S,
    COME_AGAIN_S,
    LINKS_OF_ONE_MAX,
    REFUSALS_BURST,
    REFUSALS_PER_S,
    REFUSALS_WAITING_MAX,
    too_many,
)
from node.logs import log, where
from node.once import Once
from node.refused import Refused
from node.rpc import abort

#: A unary call or a stream of answers whose caller named no deadline ends after this.
DEADLINE_DEFAULT_S = 120.0
#: And however long a caller would wait: the longest answer of a slow machine.
DEADLINE_MAX_S = 3600.0
#: A request is there within so long, seconds: of 4 MiB, at 140 kB/s.
REQUEST_WITHIN_S = 30.0
#: Calls that live as long as their connection; the caller's certificate still ends them.
UNLIMITED = frozenset({"Link"})
#: A message of such an answer is taken within so long, seconds, or the call ends: these hold one of a few places.
#: A model comes by the megabyte and a blob by the quarter of one, so 52 kB/s; who takes KV more slowly reads the prompt
#: itself.
TAKEN_WITHIN_S = {"FetchModel": 20.0, "FetchKv": 5.0, "FetchBlob": 5.0}
#: Who takes messages sooner has the time that it saved to spare, up to that of so many. HTTP/2 tells of what was taken
#: a window at a time, and gRPC lets that grow: a steady reader of megabytes was heard of every eight on loopback.
AHEAD_MAX = 16
#: To tell somebody who takes nothing that it was ended.
TOLD_WITHIN_S = 1.0
#: Such endings of one member a second, and how many at once: what was written stays in memory while it is connected.
SLOW_ENDS_PER_S, SLOW_ENDS_BURST = 1 / 60, 8.0
#: Refused calls say no more than this.
REFUSED = "not allowed"
#: Nor those that can not be read, and those that fail by a fault of ours; the log says more.
UNREADABLE = "the request can not be read"
FAULT = "this node failed inside; its log says more"
#: The same fault is logged again after this, seconds.
FAULT_AGAIN_S = 60.0

Context = "grpc.aio.ServicerContext[Any, Any]"
Denied = Callable[[NodeId], bool]

_caller: ContextVar[Identity] = ContextVar("caller")


def caller_of(_context: Any) -> Identity:
    """The member on whose behalf the running handler was called; in the handler's own task only."""
    return _caller.get()


class Patience:
    """How long one answer's next message is waited for: a message in `within_s` on average, and some ahead.

    Who holds a place on this takes no less on average than who takes each message in the last moment. What the handler
    itself needs between messages does not count.
    Invariant: `within_s <= left_s <= (AHEAD_MAX + 1) * within_s`, both seconds.
    """

    def __init__(self, within_s: float) -> None:
        self.within_s = within_s
        self.left_s = within_s

    def taken(self, after_s: float) -> None:
        """A message was taken so long after it was offered."""
        ahead_s = min(max(0.0, self.left_s - after_s), AHEAD_MAX * self.within_s)
        self.left_s = ahead_s + self.within_s


class _Context:
    """A call's context, whose writes are never broken off: who is cancelled in one only waits for it no longer.

    Why: gRPC takes a broken-off write as still under way, and refuses to end a call in the midst of one; the call then
    stays open, its handler gone.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._writing: asyncio.Task[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        self._writing = asyncio.ensure_future(self._context.write(message))
        self._writing.add_done_callback(_heard)
        await asyncio.wait({self._writing})
        self._writing.result()

    async def written(self) -> None:
        """Wait until nothing is under way, or the other side has not taken it for too long."""
        if self._writing is not None and not self._writing.done():
            await asyncio.wait({self._writing}, timeout=TOLD_WITHIN_S)


def _heard(writing: "asyncio.Task[None]") -> None:
    """Where the call ended meanwhile nobody asks how a write went; asyncio would tell it as a fault."""
    if not writing.cancelled():
        writing.exception()


@dataclass(eq=False)
class _Call:
    task: "asyncio.Task[Any]"
    rpc: str
    cut: bool = False


class Callers(grpc.aio.ServerInterceptor):
    """Args: `roots`: asked at each call, because they may change; `denied`: whether a member was cut off."""

    def __init__(
        self,
        roots: Callable[[], Roots],
        denied: Denied,
        refused: Refused,
        *,
        deadline_default_s: float = DEADLINE_DEFAULT_S,
        calls: Rate | None = None,
        refusals: Rate | None = None,
    ) -> None:
        self._roots = roots
        self._denied = denied
        self._refused = refused
        self._deadline_default_s = deadline_default_s
        self._rate = calls or Rate(CALLS_PER_S, CALLS_BURST)
        self._refusals = refusals or Rate(REFUSALS_PER_S, REFUSALS_BURST)
        self._slow_ends = Rate(SLOW_ENDS_PER_S, SLOW_ENDS_BURST)
        self._once = Once(FAULT_AGAIN_S)
        self._refusals_waiting: Counter[NodeId] = Counter()
        self._calls: dict[NodeId, set[_Call]] = {}

    def running(self, node_id: NodeId) -> int:
        """Calls of this member that run now, its link included."""
        return len(self._calls.get(node_id, ()))

    def cut(self, node_id: NodeId) -> None:
        """End all that runs for this member, now."""
        for call in self._calls.get(node_id, ()):
            call.cut = True
            call.task.cancel()

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        rpc = details.method.rpartition("/")[2]
        read = partial(_read, handler.request_deserializer)

        async def handle(requests: AsyncIterator[bytes], context: _Context) -> None:
            if handler.request_streaming:
                assert handler.response_streaming, f"{rpc}: a kind of call that nobody needed yet"
                watched = _Watched(requests, lambda: self._check(context), read)
                await _answer(handler.stream_stream(watched, context), context, None)
                return
            request = read(await _only(requests))
            if not handler.response_streaming:
                await context.write(await handler.unary_unary(request, context))
                return
            answers = handler.unary_stream(request, context)
            if not await _answer(answers, context, lambda: self._check(context), TAKEN_WITHIN_S.get(rpc)):
                self._slow_ends.charge(caller_of(context).node_id, clock.now())
                await _tell_slow(context)

        async def call(requests: AsyncIterator[bytes], bare: Any) -> None:
            context = _Context(bare)
            await self._run(rpc, context, lambda: handle(requests, context))

        # For gRPC every call is a stream of bytes both ways, which on the wire is the same: a request is taken once its
        # caller is admitted, and not megabytes before, for whoever has a certificate.
        return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)

    async def _run(self, rpc: str, context: _Context, handle: Callable[[], Awaitable[None]]) -> None:
        identity = await self._admitted(rpc, context)
        task = asyncio.current_task()
        assert task is not None
        await self._check_part(rpc, context, identity.node_id)
        call = _Call(task, rpc)
        self._calls.setdefault(identity.node_id, set()).add(call)
        _caller.set(identity)
        within_s = self._time_left_s(rpc, context, identity)
        try:
            async with asyncio.timeout(within_s) as timeout:
                await handle()
            await context.written()
        except asyncio.CancelledError:
            if not call.cut:
                raise
            task.uncancel()
            await context.written()
            await self._refuse(rpc, context, f"{identity.node_id} was denied in the midst of it", identity.node_id)
        except TimeoutError as error:
            if not timeout.expired():
                await self._fault(rpc, context, identity.node_id, error)
            await context.written()
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"ended after {within_s:.0f} s")
        except grpc.aio.BaseError:  # it was ended by `abort`, or is over
            raise
        except _Unreadable:
            self._refused.say(identity.node_id, f"refused {rpc} of {identity.node_id}: {UNREADABLE}")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, UNREADABLE)
        except Exception as error:
            await self._fault(rpc, context, identity.node_id, error)
        finally:
            calls = self._calls[identity.node_id]
            calls.discard(call)
            if not calls:
                del self._calls[identity.node_id]

    async def _admitted(self, rpc: str, context: Any) -> Identity:
        """The caller; a call that may not be made ends here."""
        shown = context.auth_context().get("x509_pem_cert")
        if not shown:
            await self._refuse(rpc, context, "it showed no certificate")
        try:
            identity = self._roots().read(_der(shown[0]))
        except (CertificateError, ValueError) as error:
            await self._refuse(rpc, context, f"its certificate is not of this mesh: {error}")
        # That it has begun, the handshake saw; a clock that is set back meanwhile ends no connection.
        if clock.wall_clock_ms() / 1000 > identity.not_after:
            await self._refuse(rpc, context, f"the certificate of {identity.node_id} has ended", identity.node_id)
        if self._denied(identity.node_id):
            await self._refuse(rpc, context, f"{identity.node_id} is denied", identity.node_id)
        if not may_call(identity.role, rpc):
            await self._refuse(rpc, context, f"{identity.node_id} is a {identity.role}", identity.node_id)
        return identity

    async def _check_part(self, rpc: str, context: Any, node_id: NodeId) -> None:
        """End a call that is more than this member's part."""
        running = self._calls.get(node_id, ())
        wait_s = 0.0
        if rpc == "Link":
            if sum(call.rpc == "Link" for call in running) >= LINKS_OF_ONE_MAX:
                wait_s = COME_AGAIN_S
        elif len(running) >= CALLS_OF_ONE_MAX + LINKS_OF_ONE_MAX:
            wait_s = COME_AGAIN_S
        else:
            wait_s = self._rate.wait_s(node_id, clock.now())
            if rpc in TAKEN_WITHIN_S:
                wait_s = max(wait_s, self._slow_ends.charge(node_id, clock.now(), 0.0))
        if not wait_s:
            return
        self._refused.say(node_id, f"{node_id} calls too often: {rpc} is put off")
        if self._refusals_waiting[node_id] < REFUSALS_WAITING_MAX:
            self._refusals_waiting[node_id] += 1
            try:
                await asyncio.sleep(self._refusals.charge(node_id, clock.now()))
            finally:
                self._refusals_waiting[node_id] -= 1
                if not self._refusals_waiting[node_id]:
                    del self._refusals_waiting[node_id]
        await abort(context, too_many("this node was called too often", wait_s))

    def _time_left_s(self, rpc: str, context: Any, identity: Identity) -> float:
        certificate_s = max(0.0, identity.not_after - clock.wall_clock_ms() / 1000)
        if rpc in UNLIMITED:
            return certificate_s
        # The caller's own deadline gRPC keeps. What is left of it is told by the wall clock, which may jump.
        longest_s = self._deadline_default_s if context.time_remaining() is None else DEADLINE_MAX_S
        return min(longest_s, certificate_s)

    def _check(self, context: Any) -> None:
        """Between the messages of a stream: what `cut` was not told of is found here."""
        node_id = caller_of(context).node_id
        if self._denied(node_id):
            self.cut(node_id)

    async def _fault(self, rpc: str, context: Any, node_id: NodeId, error: Exception) -> NoReturn:
        """Something of ours failed. gRPC would tell the caller its text, which may quote anything."""
        if self._once.due((rpc, said := where(error))):
            log("error", f"{rpc} of {node_id} failed inside: {said}")
        await context.written()
        await context.abort(grpc.StatusCode.INTERNAL, FAULT)
        raise AssertionError("abort raises")

    async def _refuse(self, rpc: str, context: Any, why: str, node_id: str = "") -> NoReturn:
        host = context.peer().rpartition(":")[0]  # the port differs at each attempt
        self._refused.say(node_id or host, f"refused {rpc} of {host}: {why}")
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, REFUSED)
        raise AssertionError("abort raises")


class _Unreadable(Exception):
    """What a caller sent is no message of this call."""


def _read(decode: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return decode(raw)
    except Exception as error:
        raise _Unreadable from error


async def _only(requests: AsyncIterator[bytes]) -> bytes:
    """The request of a call that has one. Raises `_Unreadable`."""
    try:
        async with asyncio.timeout(REQUEST_WITHIN_S) as timeout:
            raw = await anext(requests, None)
    except TimeoutError:
        if not timeout.expired():
            raise
        raw = None
    if raw is None:
        raise _Unreadable
    return raw


class _Watched:
    """A stream of requests with a look before each."""

    def __init__(self, requests: AsyncIterator[bytes], check: Callable[[], None], read: Callable[[bytes], Any]) -> None:
        self._requests = requests
        self._check = check
        self._read = read

    def __aiter__(self) -> "_Watched":
        return self

    async def __anext__(self) -> Any:
        raw = await anext(self._requests)
        self._check()
        return self._read(raw)


async def _answer(
    answers: Any, context: Any, check: Callable[[], None] | None, taken_within_s: float | None = None
) -> bool:
    """Carry out a handler that answers with a stream: one that yields, or one that writes by itself.

    False: the other side took nothing for too long. What the handler held is free then.
    """
    if not hasattr(answers, "__aiter__"):
        await answers
        return True
    patience = None if taken_within_s is None else Patience(taken_within_s)
    async with contextlib.aclosing(answers):
        async for message in answers:
            if check is not None:
                check()
            if patience is None:
                await context.write(message)
            elif not await _taken(context, message, patience):
                return False
    return True


async def _tell_slow(context: Any) -> None:
    """Whether or not the other side hears it."""
    said = "nothing of it was taken for long, so it was ended"
    error = KithError("too-slow", said, "Ask again, from where it ended.", ExitCode.UNAVAILABLE)
    await context.written()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(TOLD_WITHIN_S):
            await abort(context, error)


async def _taken(context: Any, message: Any, patience: Patience) -> bool:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(patience.left_s) as timeout:
            await context.write(message)
    except TimeoutError:
        if not timeout.expired():
            raise
        return False
    patience.taken(loop.time() - began)
    return True


def _der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))
