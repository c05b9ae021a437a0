"""What this node offers its peers: the link, its engine, its blobs, new certificates (proto/mesh.proto)."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from mesh.identity import NodeId
from mesh.wire import engine_pb2, mesh_pb2, mesh_pb2_grpc
from node import clock
from node.blob_sharing import BlobSharing
from node.callers import caller_of
from node.engine_door import EngineDoor
from node.errors import ExitCode, KithError
from node.kv_moves import KV_MISSING, Brought, KvMoves
from node.limits import HOPS_MAX
from node.links import Links
from node.models.sharing import ModelSharing
from node.rpc import CLOCK_KEY, abort
from node.trust import Trust


class MeshService(mesh_pb2_grpc.MeshServicer):
    def __init__(
        self,
        links: Links,
        engine: EngineDoor,
        blobs: BlobSharing,
        trust: Callable[[], Trust],
        kv: KvMoves | None = None,
        models: ModelSharing | None = None,
    ) -> None:
        self._kv = kv
        self._links = links
        self._engine = engine
        self._blobs = blobs
        self._trust = trust
        self._models = models or ModelSharing(list)

    async def Link(  # type: ignore[override]  # the stubs know handlers only as generators
        self,
        request_iterator: AsyncIterator[mesh_pb2.LinkMessage],
        context: "grpc.aio.ServicerContext[Any, Any]",
    ) -> None:
        await self._links.accept(request_iterator, context)

    async def Generate(
        self, request: mesh_pb2.GenerateCall, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[engine_pb2.GenerateEvent]:
        await self._check_hops(request.hop_count, context)
        try:
            who = caller_of(context).node_id
            brought = Brought()
            if request.kv_holder and self._kv is not None:
                holder = NodeId(request.kv_holder)
                brought = await self._kv.bring(holder, request.request, request.kv_tokens, own_belief=False)
            async with contextlib.aclosing(self._engine.of(request.agent).generate(who, request.request)) as events:
                async for event in events:
                    if event.WhichOneof("event") == "started":
                        started = event.started
                        started.kv_tokens, started.kv_seconds, started.kv_not_now = brought
                    yield event
        except KithError as error:
            await abort(context, error)

    async def Score(
        self, request: mesh_pb2.ScoreCall, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> engine_pb2.ScoreReply:
        await self._check_hops(request.hop_count, context)
        try:
            return await self._engine.of(request.agent).score(caller_of(context).node_id, request.request)
        except KithError as error:
            await abort(context, error)

    async def Embed(
        self, request: mesh_pb2.EmbedCall, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> engine_pb2.EmbedReply:
        await self._check_hops(request.hop_count, context)
        try:
            return await self._engine.of(request.agent).embed(caller_of(context).node_id, request.request)
        except KithError as error:
            await abort(context, error)

    async def CountTokens(
        self, request: engine_pb2.CountTokensRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> engine_pb2.CountTokensReply:
        await context.send_initial_metadata(((CLOCK_KEY, str(clock.wall_clock_ms())),))
        try:
            door = self._engine.of(request.agent)
            counts = await door.count_tokens(caller_of(context).node_id, request.texts)
            return engine_pb2.CountTokensReply(counts=counts)
        except KithError as error:
            await abort(context, error)

    async def FetchModel(
        self, request: mesh_pb2.FetchModelRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[mesh_pb2.BlobChunk]:
        try:
            async with contextlib.aclosing(self._models.chunks(caller_of(context).node_id, request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except KithError as error:
            await abort(context, error)

    async def FetchKv(
        self, request: mesh_pb2.FetchKvRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[mesh_pb2.KvChunk]:
        try:
            if self._kv is None:
                raise KithError(KV_MISSING, "this node exchanges no KV", "Read it.", ExitCode.NOT_FOUND)
            async with contextlib.aclosing(self._kv.chunks(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except KithError as error:
            await abort(context, error)

    async def FetchBlob(
        self, request: mesh_pb2.FetchBlobRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[mesh_pb2.BlobChunk]:
        try:
            async with contextlib.aclosing(self._blobs.chunks(caller_of(context).node_id, request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except KithError as error:
            await abort(context, error)

    async def Renew(
        self, request: mesh_pb2.RenewRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> mesh_pb2.RenewReply:
        try:
            return mesh_pb2.RenewReply(certificate=self._trust().renew(caller_of(context)))
        except KithError as error:
            await abort(context, error)

    async def TakeAuthority(
        self, request: mesh_pb2.TakeAuthorityRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> mesh_pb2.TakeAuthorityReply:
        try:
            certificate = await self._trust().take_authority(caller_of(context), request.ca_key)
            return mesh_pb2.TakeAuthorityReply(certificate=certificate)
        except KithError as error:
            await abort(context, error)

    async def _check_hops(self, hop_count: int, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        if hop_count > HOPS_MAX:
            await abort(context, KithError("too-many-hops", f"passed on {hop_count} times", "Call the node directly."))
