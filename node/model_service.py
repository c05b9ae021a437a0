"""The local door's part on models: what the engine holds, and fetching files from other nodes (proto/local.proto)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc.aio

from mesh.identity import NodeId
from mesh.rendezvous import holders
from mesh.wire import local_pb2
from node.errors import ExitCode, KithError
from node.models.peers import Step
from node.rpc import abort

if TYPE_CHECKING:
    from node.daemon import Daemon

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

#: Progress is told so often.
TELL_EVERY_S = 0.25
ID_PREFIX_MIN = 4


class ModelService:
    """Mixed into LocalService."""

    _daemon: "Daemon"

    async def ShowModel(self, request: local_pb2.ShowModelRequest, context: Context) -> local_pb2.ShowModelReply:
        engine, replica = self._daemon.engine, self._daemon.replica
        profile = replica.profiles.of(replica.me)
        return local_pb2.ShowModelReply(
            agents=profile.agents if profile else (),
            path=str(self._daemon.hosting.model_path or ""),
            paths=[str(path) for path in self._daemon.hosting.model_paths],
            engine=engine.loaded,
            calibrated=engine.calibrated,
        )

    async def PullModel(
        self, request: local_pb2.PullModelRequest, context: Context
    ) -> AsyncIterator[local_pb2.PullModelEvent]:
        at: list[Step] = []
        try:
            asked = self._holders(request)
            pull = asyncio.create_task(
                self._daemon.peer_models.pull(asked, request.model, request.sha256, request.name, at.append),
                name="pull a model",
            )
            try:
                while not pull.done():
                    await asyncio.wait({pull}, timeout=TELL_EVERY_S)
                    if at:
                        yield local_pb2.PullModelEvent(progress=self._progress(at[-1]))
                        at.clear()
                entry, was_here = await pull
            finally:
                pull.cancel()
                with contextlib.suppress(asyncio.CancelledError, KithError):
                    await pull
        except KithError as error:
            await abort(context, error)
        pulled = local_pb2.PulledModel(
            path=str(entry.path),
            name=entry.name,
            sha256=bytes.fromhex(entry.manifest.sha256),
            size_bytes=entry.manifest.size_bytes,
            was_here=was_here,
        )
        yield local_pb2.PullModelEvent(pulled=pulled)

    def _progress(self, step: Step) -> local_pb2.PullModelProgress:
        name = self._daemon.snapshots.name_of(step.peer)
        return local_pb2.PullModelProgress(done_bytes=step.done_bytes, size_bytes=step.size_bytes, node_name=name)

    def _holders(self, request: local_pb2.PullModelRequest) -> list[NodeId]:
        """Whom to ask, in order: those that serve it before the others. Raises `KithError`."""
        daemon = self._daemon
        live = daemon.shell.live_peers()
        if request.node:
            text = request.node
            found = [peer for peer in live if daemon.snapshots.name_of(peer) == text] or [
                peer for peer in live if len(text) >= ID_PREFIX_MIN and peer.startswith(text.lower())
            ]
            if len(found) > 1:
                message = f"{len(found)} nodes are called {text!r}"
                raise KithError("node-ambiguous", message, "Name it by its id.", ExitCode.USAGE)
            if not found:
                message = f"no live node is called {text!r}"
                raise KithError("node-unknown", message, "`kith nodes` lists them.", ExitCode.NOT_FOUND)
            live = found
        serve: list[NodeId] = []
        others: list[NodeId] = []
        for peer in holders(request.sha256, live, count=len(live)):
            profile = daemon.replica.profiles.of(peer)
            served = {agent.model_sha256 for agent in profile.agents} if profile else set()
            (serve if request.sha256 and request.sha256 in served else others).append(peer)
        if not live:
            message = "no other node is in sight"
            raise KithError("no-agent", message, "`kith nodes` lists them.", ExitCode.UNAVAILABLE)
        return serve + others
