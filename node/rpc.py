"""How operating errors cross gRPC: the status says the class, the trailing metadata carries the Problem."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from mesh.wire import common_pb2
from node.errors import PROBLEM_KEY, ExitCode, KithError, grpc_status

#: Metadata of an answer: what the answering node's clock said, milliseconds since the epoch.
CLOCK_KEY = "kith-clock-ms"


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: KithError) -> NoReturn:
    """End the call with `error`."""
    context.set_trailing_metadata(((PROBLEM_KEY, error.to_wire().SerializeToString()),))
    await context.abort(grpc_status(error), error.message)


def problem_of(error: grpc.aio.AioRpcError) -> KithError | None:
    """What the other side itself said went wrong; None where it said nothing readable."""
    for key, value in error.trailing_metadata() or ():
        if key == PROBLEM_KEY and isinstance(value, bytes):
            try:
                return KithError.from_wire(common_pb2.Problem.FromString(value))
            except DecodeError:
                return None
    return None


def to_kith_error(error: grpc.aio.AioRpcError, unreachable: Callable[[], KithError]) -> KithError:
    """The operating error behind a failed call; `unreachable` makes the one for a peer that does not answer."""
    if (said := problem_of(error)) is not None:
        return said
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return unreachable()
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return KithError(
            "timed-out",
            "the node did not answer in time",
            "Look at `kith status`; try again when it is less busy.",
            ExitCode.UNAVAILABLE,
        )
    return KithError("rpc-failed", f"the call failed: {error.details() or error.code().name}", "Look at `kith logs`.")


def not_reached() -> KithError:
    return KithError("node-unreachable", "it can not be reached", "Try again.", ExitCode.UNAVAILABLE)


@contextlib.contextmanager
def calling(
    unreachable: Callable[[], KithError] = not_reached,
    read: Callable[[grpc.aio.AioRpcError], KithError] | None = None,
) -> Iterator[None]:
    """Around a call to another process, and around reading its answers: what gRPC raises becomes a `KithError`.

    A call ends with `CancelledError` where this process closes its channel, and none begins on one that is closed:
    both are a peer that is not reached, and nobody's cancellation. Whoever is really cancelled, or out of time by
    `asyncio.timeout`, stays so.

    Args:
        unreachable: makes the error for a peer that does not answer.
        read: the operating error behind a failed call, where `to_kith_error` is not it.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise (read(error) if read else to_kith_error(error, unreachable)) from error
    except grpc.aio.UsageError as error:
        raise unreachable() from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise unreachable() from error
