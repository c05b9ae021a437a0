"""The local door's part on membership: invite, promote, revoke (proto/local.proto)."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc.aio

from mesh.certificates import Role
from mesh.wire import local_pb2
from node.errors import ExitCode, KithError
from node.joining.door import Happened, OpenInvite
from node.joining.names import fingerprint_of
from node.rpc import abort
from node.trust import Trust, trust_of

if TYPE_CHECKING:
    from node.daemon import Daemon

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

TTL_S = 900.0


class TrustService:
    """Mixed into LocalService."""

    _daemon: "Daemon"

    async def Invite(self, request: local_pb2.InviteRequest, context: Context) -> AsyncIterator[local_pb2.InviteEvent]:
        try:
            trust = trust_of(self._daemon)
            opened = await trust.invite(
                request.ttl_s or TTL_S, request.uses or 1, _role(request.role), with_code=not request.no_code
            )
        except KithError as error:
            await abort(context, error)
        if request.detached:
            yield _opened(trust, opened, request)
            return
        try:
            yield _opened(trust, opened, request)
            while not context.cancelled():
                happened = await opened.happened.get()
                yield local_pb2.InviteEvent(happened=_happened(happened))
                if happened.what == "closed":
                    return
        finally:
            await trust.door.withdraw(opened)

    async def Promote(self, request: local_pb2.PromoteRequest, context: Context) -> local_pb2.PromoteReply:
        try:
            return await trust_of(self._daemon).promote(request.node)
        except KithError as error:
            await abort(context, error)

    async def Revoke(self, request: local_pb2.RevokeRequest, context: Context) -> local_pb2.RevokeReply:
        try:
            return await trust_of(self._daemon).revoke(request.node, request.reason)
        except KithError as error:
            await abort(context, error)


def _role(text: str) -> Role:
    with contextlib.suppress(ValueError):
        return Role(text or Role.NODE)
    roles = "node, worker, client"
    raise KithError("bad-request", f"there is no role {text[:20]!r}", f"Choose one of: {roles}.", ExitCode.USAGE)


def _opened(trust: Trust, opened: OpenInvite, request: local_pb2.InviteRequest) -> local_pb2.InviteEvent:
    invite = opened.invite
    said = local_pb2.InviteOpened(
        code=str(invite.code or ""),
        token=str(invite.token),
        ttl_s=request.ttl_s or TTL_S,
        uses=request.uses or 1,
        role=invite.role,
        mdns=opened.advertised,
        mesh_id=trust.enrolment.mesh_id,
        label=trust.enrolment.label,
    )
    for host, port in trust.door_addresses(opened.port):
        said.addresses.add(host=host, port=port)
    return local_pb2.InviteEvent(opened=said)


def _happened(happened: Happened) -> local_pb2.InviteHappened:
    return local_pb2.InviteHappened(
        what=happened.what,
        reason=happened.reason,
        name=happened.name,
        node_id=happened.node_id,
        fingerprint=fingerprint_of(happened.node_id),
    )
