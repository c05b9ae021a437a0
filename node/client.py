"""The client of a node's local door: what the CLI and programs on this machine speak through.

Idea: one method an RPC, with a deadline on every unary one, and every failure turned into a `KithError`: the node's
own words where it sent a Problem, ours where no node answered. The door is a Unix socket in a folder that only its
owner can open, so there is no password; the client refuses a folder that belongs to someone else, who could otherwise
stand in for the node.

Not guaranteed: a lost connection is not mended. A caller asks again; a job that was accepted goes on meanwhile.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import AsyncGenerator, Awaitable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from mesh.wire import facts_pb2, local_pb2, local_pb2_grpc, work_pb2
from node.errors import ExitCode, KithError
from node.paths import NodePaths
from node.rpc import calling, problem_of

Reply = TypeVar("Reply")

#: Size of one part of a submitted document, bytes.
PART_BYTES = 256 * 1024
#: Largest message taken from the node, bytes: a result carries the document that its spans point into.
MESSAGE_BYTES_MAX = 256 * 1024 * 1024
#: Seconds that a unary call may take where the method does not say otherwise.
DEADLINE_S = 10.0
#: Seconds beyond the replica deadline that Submit may take: transfer, sync and planning of a large document.
SUBMIT_SLACK_S = 60.0
#: The node that becomes an issuer answers once it has the key on its disk.
PROMOTE_S = 20.0
#: Used where the caller names no replica deadline; the node's own default.
REPLICA_DEADLINE_S = 5.0


class NodeClient:
    """One connection to the node of a data directory.

    Use as `async with NodeClient(data_dir) as node:`. Every method raises `KithError`: `node-unreachable` where no
    node answers, `node-timeout` where it does not answer in time, else what the node says.
    """

    def __init__(self, data_dir: str | os.PathLike[str]) -> None:
        self.data_dir = Path(data_dir)
        self._channel: grpc.aio.Channel | None = None
        self._stub: local_pb2_grpc.LocalAsyncStub | None = None

    async def __aenter__(self) -> Self:
        self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _connect(self) -> local_pb2_grpc.LocalAsyncStub:
        if self._stub is not None:
            return self._stub
        paths = NodePaths(self.data_dir)
        self._check_door(paths.socket.absolute())
        self._channel = grpc.aio.insecure_channel(
            paths.door,
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.enable_http_proxy", 0),
                # gRPC's own pause grows to 120 s: a node that was away is there again long before it is asked.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.default_authority", "localhost"),
            ],
        )
        self._stub = local_pb2_grpc.LocalStub(self._channel)
        return self._stub

    def _check_door(self, socket: Path) -> None:
        try:
            folder = socket.parent.stat()
            is_socket = stat.S_ISSOCK(socket.stat().st_mode)
        except PermissionError as error:
            raise KithError(
                "node-unreachable",
                f"the node under {self.data_dir} belongs to another user",
                "run the command as that user, or name your own node with --data-dir",
                ExitCode.UNREACHABLE,
            ) from error
        except OSError as error:
            raise self._unreachable() from error
        if not is_socket:
            raise self._unreachable()
        mine = os.getuid() in (0, folder.st_uid)
        if not mine or folder.st_mode & 0o077:
            raise KithError(
                "node-unreachable",
                f"{socket.parent} is open to other users, so what answers there may not be your node",
                f"stop the node, then: chmod 700 {socket.parent}",
                ExitCode.UNREACHABLE,
            )

    def _unreachable(self) -> KithError:
        return KithError(
            "node-unreachable",
            f"no node runs under {self.data_dir}",
            f"kith --data-dir {self.data_dir} up",
            ExitCode.UNREACHABLE,
        )

    def _error(self, error: grpc.aio.AioRpcError, deadline_s: float | None) -> KithError:
        if (said := problem_of(error)) is not None:
            return said
        code = error.code()
        if code is grpc.StatusCode.UNAVAILABLE:
            return self._unreachable()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and deadline_s is not None:
            return KithError(
                "node-timeout",
                f"the node under {self.data_dir} did not answer within {deadline_s:g} s",
                f"look at what it does: kith --data-dir {self.data_dir} logs",
                ExitCode.UNREACHABLE,
            )
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return KithError(
                "node-outdated",
                "the running node does not know this request",
                "restart it with the version of this command: kith down, then kith up",
                ExitCode.UNAVAILABLE,
            )
        words = error.details() or "no details"
        return KithError(
            "node-error",
            f"the node answered with {code.name}: {words}",
            f"look at its log: kith --data-dir {self.data_dir} logs",
        )

    async def _call(self, call: Awaitable[Reply], deadline_s: float) -> Reply:
        with calling(_closed, lambda error: self._error(error, deadline_s)):
            return await call

    async def _stream(self, call: grpc.aio.UnaryStreamCall[Any, Reply]) -> AsyncGenerator[Reply, None]:
        with calling(_closed, lambda error: self._error(error, None)):
            try:
                async for reply in call:
                    yield reply
            finally:
                call.cancel()

    async def close(self) -> None:
        """Drop the connection; calls that still run end as `node-unreachable`."""
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close()

    # The node and the mesh

    async def status(self, timeout_s: float = DEADLINE_S) -> local_pb2.StatusReply:
        call = self._connect().Status(local_pb2.StatusRequest(), timeout=timeout_s)
        return await self._call(call, timeout_s)

    async def nodes(self) -> list[local_pb2.NodeInfo]:
        call = self._connect().Nodes(local_pb2.NodesRequest(), timeout=DEADLINE_S)
        return list((await self._call(call, DEADLINE_S)).nodes)

    async def context_tokens(self, node: str = "") -> int:
        """Context of the agent on `node` (name or id), or the smallest of all that may answer; 0: none is known."""
        sizes = [
            agent.context_tokens
            for member in await self.nodes()
            for agent in member.profile.agents
            if agent.context_tokens and (not node or node == member.name or member.node_id.startswith(node))
        ]
        return min(sizes, default=0)

    async def show_model(self) -> local_pb2.ShowModelReply:
        call = self._connect().ShowModel(local_pb2.ShowModelRequest(), timeout=DEADLINE_S)
        return await self._call(call, DEADLINE_S)

    def pull_model(self, request: local_pb2.PullModelRequest) -> AsyncGenerator[local_pb2.PullModelEvent, None]:
        """A model file from another node: progress, last what it became. Closing the iterator ends the transfer."""
        return self._stream(self._connect().PullModel(request))

    async def shutdown(self, drain_s: float = 0.0) -> int:
        """Ask the node to stop; the number of tasks that it lets finish. `drain_s` 0: the node's default."""
        deadline_s = DEADLINE_S + drain_s
        call = self._connect().Shutdown(local_pb2.ShutdownRequest(drain_s=drain_s), timeout=deadline_s)
        return (await self._call(call, deadline_s)).running_tasks

    # Membership

    def invite(self, request: local_pb2.InviteRequest) -> AsyncGenerator[local_pb2.InviteEvent, None]:
        """The invite, then what happens to it. Closing the iterator ends the invite, unless it is detached."""
        return self._stream(self._connect().Invite(request))

    async def promote(self, node: str) -> local_pb2.PromoteReply:
        """Make `node` (name, id or the beginning of it) an issuer."""
        call = self._connect().Promote(local_pb2.PromoteRequest(node=node), timeout=PROMOTE_S)
        return await self._call(call, PROMOTE_S)

    async def revoke(self, node: str, reason: str = "") -> local_pb2.RevokeReply:
        """Cut `node` off for good."""
        call = self._connect().Revoke(local_pb2.RevokeRequest(node=node, reason=reason), timeout=DEADLINE_S)
        return await self._call(call, DEADLINE_S)

    # Jobs

    async def submit(
        self,
        request: work_pb2.JobRequest,
        document: bytes = b"",
        *,
        client_key: bytes = b"",
        min_replicas: int = 0,
        replica_deadline_s: float = 0.0,
    ) -> local_pb2.SubmitReply:
        """Hand in a job. The same `client_key` (16 random bytes) and request is the same job: safe to repeat."""
        header = local_pb2.SubmitHeader(
            request=request,
            client_key=client_key or secrets.token_bytes(16),
            min_replicas=min_replicas,
            replica_deadline_s=replica_deadline_s,
        )
        deadline_s = (replica_deadline_s or REPLICA_DEADLINE_S) + SUBMIT_SLACK_S
        call = self._connect().Submit(_parts(header, document), timeout=deadline_s)
        return await self._call(call, deadline_s)

    async def jobs(self, *, open_only: bool = False) -> list[local_pb2.JobSnapshot]:
        call = self._connect().Jobs(local_pb2.JobsRequest(open_only=open_only), timeout=DEADLINE_S)
        return list((await self._call(call, DEADLINE_S)).jobs)

    def watch(self, job_id: bytes) -> AsyncGenerator[local_pb2.JobSnapshot, None]:
        """The job as it stands, then every change; ends when the job ends."""
        return self._stream(self._connect().Watch(local_pb2.WatchRequest(job_id=job_id)))

    async def result(self, job_id: bytes, *, alternatives: bool = False) -> local_pb2.ResultReply:
        """The answer; with `alternatives` also those of groups of nodes that were cut off."""
        timeout_s = 60.0  # the document may have to come from another node
        request = local_pb2.ResultRequest(job_id=job_id, alternatives=alternatives)
        call = self._connect().Result(request, timeout=timeout_s)
        return await self._call(call, timeout_s)

    async def cancel(self, job_id: bytes, reason: str = "") -> str:
        """ "requested" or "already-ended"."""
        request = local_pb2.CancelJobRequest(job_id=job_id, reason=reason)
        call = self._connect().Cancel(request, timeout=DEADLINE_S)
        return (await self._call(call, DEADLINE_S)).outcome

    async def explain(self, job_id: bytes) -> local_pb2.ExplainReply:
        call = self._connect().Explain(local_pb2.ExplainRequest(job_id=job_id), timeout=DEADLINE_S)
        return await self._call(call, DEADLINE_S)

    async def story(self, job_id: bytes) -> local_pb2.StoryReply:
        """Everything known that touched the job, on all nodes, causes before effects."""
        call = self._connect().Story(local_pb2.StoryRequest(job_id=job_id), timeout=DEADLINE_S)
        return await self._call(call, DEADLINE_S)

    # Dialogue and knowledge

    def chat(self, request: local_pb2.ChatRequest) -> AsyncGenerator[local_pb2.ChatEvent, None]:
        """Where the request went, then the text as it comes. Closing the iterator cancels."""
        return self._stream(self._connect().Chat(request))

    async def add_knowledge(self, item: facts_pb2.KnowledgeAdded) -> bytes:
        """The new item's id, 32 bytes."""
        request = local_pb2.AddKnowledgeRequest(item=item)
        call = self._connect().AddKnowledge(request, timeout=DEADLINE_S)
        return (await self._call(call, DEADLINE_S)).item_id

    async def search_knowledge(self, query: str, limit: int = 0) -> list[local_pb2.KnowledgeHit]:
        """Best first; at most `limit` (0: 10)."""
        request = local_pb2.SearchKnowledgeRequest(query=query, limit=limit)
        call = self._connect().SearchKnowledge(request, timeout=DEADLINE_S)
        return list((await self._call(call, DEADLINE_S)).hits)


def _parts(header: local_pb2.SubmitHeader, document: bytes) -> Iterator[local_pb2.SubmitPart]:
    yield local_pb2.SubmitPart(header=header)
    for begin in range(0, len(document), PART_BYTES):
        yield local_pb2.SubmitPart(document=document[begin : begin + PART_BYTES])


def _closed() -> KithError:
    return KithError(
        "node-unreachable", "the connection to the node was closed here", "Connect again.", ExitCode.UNREACHABLE
    )
