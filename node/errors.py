"""Operating errors, as people meet them: what happened, what was lost, what to do, and the exit code.

An operating error (a missing file, a taken port, no peer in sight) is a `KithError`; a programmer's error is an
assertion or any other exception. The CLI prints a `KithError` as one line, plus its remedy, and ends with its exit
code; it never prints a traceback for one. Between processes it travels as `wire.common.Problem`.

gRPC and protobuf are imported where they are used: every start of the CLI imports this module.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc

    from mesh.wire import common_pb2


class ExitCode(IntEnum):
    """Exit codes of `kith`; documented in docs/cli.md, which a test compares with this table."""

    OK = 0
    FAILED = 1  # the work itself failed: a job ended as failed, an engine gave up
    USAGE = 2  # wrong command line or configuration
    UNREACHABLE = 3  # no node answers under this data directory
    NOT_FOUND = 4  # no such job, node or knowledge item
    BAD_INPUT = 5  # the document, question or model can not be used
    UNAVAILABLE = 6  # the mesh can not do this now: too few agents, engine not ready, draining
    CANNOT_START = 7  # the daemon can not start: port taken, data directory not usable
    NO_MAJORITY = 8  # a panel answered and did not agree
    CANCELLED = 9  # the job was cancelled
    INTERRUPTED = 130  # Ctrl-C


class KithError(Exception):
    """An operating error.

    Args:
        code: stable and machine-readable, for `--json` and for other processes.
        message: one sentence that says what happened, without capital and full stop: it goes on after "kith: ".
        remedy: one sentence that says what to do.
        exit_code: of the CLI.
        retry_after_s: where there was no room now: when to ask again; 0: nobody knows.
    """

    def __init__(
        self,
        code: str,
        message: str,
        remedy: str = "",
        exit_code: ExitCode = ExitCode.FAILED,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.exit_code = exit_code
        self.retry_after_s = retry_after_s

    def to_wire(self) -> common_pb2.Problem:
        from mesh.wire import common_pb2

        after_ms = min(int(1000 * self.retry_after_s), RETRY_AFTER_MS_MAX)
        return common_pb2.Problem(code=self.code, message=self.message, remedy=self.remedy, retry_after_ms=after_ms)

    @classmethod
    def from_wire(cls, problem: common_pb2.Problem) -> KithError:
        exit_code = EXIT_CODE_OF.get(problem.code, ExitCode.FAILED)
        after_ms = min(problem.retry_after_ms, RETRY_AFTER_MS_MAX)
        return cls(problem.code, problem.message, problem.remedy, exit_code, after_ms / 1000)


#: Exit code and gRPC status of every code that crosses a process boundary.
EXIT_CODE_OF: dict[str, ExitCode] = {
    "job-unknown": ExitCode.NOT_FOUND,
    "job-not-finished": ExitCode.UNAVAILABLE,
    "job-failed": ExitCode.FAILED,
    "job-cancelled": ExitCode.CANCELLED,
    "node-unknown": ExitCode.NOT_FOUND,
    "node-denied": ExitCode.UNAVAILABLE,
    "node-draining": ExitCode.UNAVAILABLE,
    "node-unreachable": ExitCode.UNREACHABLE,
    "too-slow": ExitCode.UNAVAILABLE,
    "node-timeout": ExitCode.UNREACHABLE,
    "timed-out": ExitCode.UNAVAILABLE,
    "kv-missing": ExitCode.NOT_FOUND,
    "panel-too-large": ExitCode.UNAVAILABLE,
    "no-agent": ExitCode.UNAVAILABLE,
    "model-unknown": ExitCode.NOT_FOUND,
    "model-exists": ExitCode.BAD_INPUT,
    "model-interrupted": ExitCode.UNAVAILABLE,
    "too-few-copies": ExitCode.UNAVAILABLE,
    "busy": ExitCode.UNAVAILABLE,
    "too-many-requests": ExitCode.UNAVAILABLE,
    "role-refused": ExitCode.UNAVAILABLE,
    "disk-full": ExitCode.UNAVAILABLE,
    "bad-request": ExitCode.BAD_INPUT,
    "bad-document": ExitCode.BAD_INPUT,
    "bad-options": ExitCode.BAD_INPUT,
    "bad-model": ExitCode.BAD_INPUT,
    "bad-adapter": ExitCode.BAD_INPUT,
    "bad-grammar": ExitCode.BAD_INPUT,
    "bad-schema": ExitCode.BAD_INPUT,
    "too-late": ExitCode.UNAVAILABLE,
    "agent-refused": ExitCode.BAD_INPUT,  # this agent's server, template or back end; another one may take it
    "prompt-too-long": ExitCode.BAD_INPUT,
    "engine-not-ready": ExitCode.UNAVAILABLE,
    "engine-failed": ExitCode.FAILED,
    "engine-gone": ExitCode.UNAVAILABLE,
    "engine-gone-shared": ExitCode.UNAVAILABLE,
    "not-in-a-mesh": ExitCode.USAGE,
    "not-an-issuer": ExitCode.UNAVAILABLE,
    "already-an-issuer": ExitCode.USAGE,
    "too-many-issuers": ExitCode.UNAVAILABLE,
    "too-many-invites": ExitCode.UNAVAILABLE,
    "node-ambiguous": ExitCode.USAGE,
    "not-revoked": ExitCode.USAGE,
    "port-taken": ExitCode.CANNOT_START,
}

#: Codes that say: no room now, ask again later.
NO_ROOM = frozenset({"busy", "too-many-requests"})
#: Nobody is told to wait longer than an hour.
RETRY_AFTER_MS_MAX = 3_600_000

_STATUS_NAME_OF_EXIT: dict[ExitCode, str] = {
    ExitCode.NOT_FOUND: "NOT_FOUND",
    ExitCode.BAD_INPUT: "INVALID_ARGUMENT",
    ExitCode.UNAVAILABLE: "FAILED_PRECONDITION",
    ExitCode.UNREACHABLE: "UNAVAILABLE",
}


def grpc_status(error: KithError) -> grpc.StatusCode:
    """The gRPC status under which `error` crosses the wire; its Problem goes in the trailing metadata."""
    import grpc

    if error.code in NO_ROOM:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    name = _STATUS_NAME_OF_EXIT.get(EXIT_CODE_OF.get(error.code, error.exit_code), "ABORTED")
    return grpc.StatusCode[name]


#: Trailing metadata key that carries the serialised Problem.
PROBLEM_KEY = "kith-problem-bin"
