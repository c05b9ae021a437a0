"""What a running node does about membership: its join door, renewal, promoting others to issuers, revoking.

Idea: all of it is refused on a node that holds no CA key, by one rule and with one remedy. Whoever asks stands at the
local door (trust_service.py) or is a member (mesh_service.py); both call this.

What limits issuers is counted from the certificates that a node knows, by who promotes and by who is promoted. Two
issuers that promote two nodes within the second that a certificate takes to be heard everywhere may still end with one
too many. That is seen in `kith status`, and harms nothing but the rule of thumb that few should hold the key.

Does not: judge who may call (authorisation.py, callers.py), or fold denials (mesh/denials.py).
"""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.certificates import CertificateError, Identity, Role
from mesh.denials import DenialError
from mesh.identity import NodeId
from mesh.wire import local_pb2, mesh_pb2
from node import logs
from node.denied import node_denied
from node.enrolment import Enrolment, not_in_a_mesh
from node.errors import ExitCode, KithError
from node.interfaces import resolve
from node.joining.advert import Address, Adverts
from node.joining.door import Door, OpenInvite
from node.listening import where_to_listen
from node.logs import log
from node.once import Once
from node.overview import issuers_known
from node.renewal import Renewal
from node.rpc import calling

if TYPE_CHECKING:
    from node.daemon import Daemon

#: The founder and two more: enough to lose one and go on inviting, few enough to guard.
ISSUERS_MAX = 3
PROMOTE_S = 15.0
#: That a member's certificate was renewed is logged once in this time, however often it asks.
RENEWAL_SAID_AGAIN_S = 60.0
#: A beginning of an id names a node from here on.
ID_PREFIX_MIN = 4


class _NotTakenError(ValueError):
    """Why a CA key is not wanted here; the words hold nothing of it."""


class Trust:
    """Of one daemon that is in a mesh. Use from the event loop."""

    def __init__(self, daemon: "Daemon", enrolment: Enrolment) -> None:
        self._daemon = daemon
        self.enrolment = enrolment
        shell = daemon.shell
        self._promoting = asyncio.Lock()
        self._renewals_said = Once(RENEWAL_SAID_AGAIN_S)
        self.renewal = Renewal(enrolment, self._linked_issuers, shell.links.stub, self._take_into_use)
        host = str(resolve(where_to_listen(daemon.config.listen)[0]))
        mesh_port = daemon.addresses[0][1] if daemon.addresses else 0
        self.door = Door(
            enrolment,
            daemon.name,
            host,
            mesh_port + 1 if 0 < mesh_port < 65535 else 0,
            self._addresses,
            shell.denied,
            Adverts(daemon.place, logs.logger) if daemon.config.mdns else None,
        )

    def door_addresses(self, port: int) -> list[Address]:
        return [(host, port) for host, _ in self._daemon.addresses]

    # What members ask

    def renew(self, caller: Identity) -> bytes:
        """A new certificate for a member. Raises `KithError`."""
        self._require_issuer()
        if self._daemon.shell.denied(caller.node_id):
            raise KithError("node-denied", "this node was revoked", "", ExitCode.UNAVAILABLE)
        if self._renewals_said.due(caller.node_id):
            log("info", f"the certificate of {caller.node_id} was renewed")
        return self.enrolment.issue(caller.public_key, caller.role)

    async def take_authority(self, caller: Identity, ca_key: bytes) -> bytes:
        """An issuer makes this node one too. Returns its new certificate. Raises `KithError`."""
        try:
            key = serialization.load_der_private_key(ca_key, password=None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError("not an elliptic-curve key")
            if self.enrolment.identity.role not in (Role.NODE, Role.ISSUER):
                raise _NotTakenError(f"a {self.enrolment.identity.role} does not become an issuer")
            if len(self._issuers() - {self._daemon.replica.me}) >= ISSUERS_MAX:
                raise _NotTakenError("enough nodes hold it")
            await asyncio.to_thread(self.enrolment.take_authority, key)
        except (ValueError, TypeError, CertificateError, OSError) as error:
            why = error if isinstance(error, _NotTakenError) else type(error).__name__  # a parser may quote the key
            log("warning", f"{caller.node_id} sent a CA key that was not taken: {why}")
            raise KithError(
                "promotion-refused", "the CA key was not taken", "Its log says why: `kith logs` there.", ExitCode.FAILED
            ) from error
        await self._take_into_use()
        log("info", f"{caller.node_id} made this node an issuer: it holds the CA key now")
        return self.enrolment.identity.certificate

    # What the owner asks

    async def invite(self, ttl_s: float, uses: int, role: Role, *, with_code: bool) -> OpenInvite:
        """Let others in for a while. Raises `KithError`."""
        self._require_issuer()
        return await self.door.open(ttl_s, uses, role, with_code=with_code)

    async def promote(self, node: str) -> local_pb2.PromoteReply:
        """Give the CA key to a linked node. Raises `KithError`."""
        async with self._promoting:
            return await self._promote(node)

    async def _promote(self, node: str) -> local_pb2.PromoteReply:
        authority = self._require_issuer()
        node_id = self._named(node)
        name = self._daemon.snapshots.name_of(node_id)
        issuers = self._issuers()
        if node_id in issuers:
            raise KithError("already-an-issuer", f"{name} is an issuer already", "See `kith status`.", ExitCode.USAGE)
        if len(issuers) >= ISSUERS_MAX:
            raise KithError(
                "too-many-issuers",
                f"{len(issuers)} nodes hold the CA key already, and each more is one more to guard",
                "Let one of them leave first: `kith leave` there.",
                ExitCode.UNAVAILABLE,
            )
        links = self._daemon.shell.links
        identity, stub = links.identity_of(node_id), links.stub(node_id)
        if identity is None or stub is None:
            raise _unreachable(name)
        if identity.role is not Role.NODE:
            raise KithError(
                "role-refused",
                f"{name} is a {identity.role}, and only a node becomes an issuer",
                "Let it join again with `kith invite --role node`.",
                ExitCode.USAGE,
            )
        key = authority.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with calling(lambda: _unreachable(name)):
            reply = await stub.TakeAuthority(mesh_pb2.TakeAuthorityRequest(ca_key=key), timeout=PROMOTE_S)
        await self._daemon.shell.learn([reply.certificate])
        log("info", f"{name} ({node_id}) is an issuer now")
        return local_pb2.PromoteReply(node_id=node_id, name=name, issuers=len(self._issuers()))

    async def revoke(self, node: str, reason: str) -> local_pb2.RevokeReply:
        """Cut a node off, here at once and elsewhere as the fact arrives. Raises `KithError`."""
        self._require_issuer()
        assert self.enrolment.authority is not None
        replica = self._daemon.replica
        node_id = self._named(node)
        if node_id == replica.me:
            raise KithError(
                "bad-request", "a node does not revoke itself", "Leave the mesh with `kith leave`.", ExitCode.USAGE
            )
        name = self._daemon.snapshots.name_of(node_id)
        was_issuer = node_id in self._issuers()
        held = {stream_id: (at.sequence, at.head) for stream_id, at in replica.journal.durable.items()}
        try:
            parts = replica.denials.draft(node_id, reason, held)
        except DenialError as error:
            message = (
                f"{name} ({node_id[:12]}) is revoked already" if replica.denials.is_denied(node_id) else str(error)
            )
            raise KithError("not-revoked", message, "`kith nodes` shows who is.", ExitCode.USAGE) from error
        told = sum(peer != node_id for peer in self._daemon.shell.live_peers())
        for part in parts:
            await self._daemon.shell.author("deny", self.enrolment.authority.sign_denial(part))
        log("warning", f"{name} ({node_id}) was revoked")
        return local_pb2.RevokeReply(node_id=node_id, name=name, epoch=parts[0].epoch, was_issuer=was_issuer, told=told)

    # Inside

    def _require_issuer(self) -> ec.EllipticCurvePrivateKey:
        if self._daemon.replica.denied:  # it may still hold the key; nobody counts what it says with it
            raise node_denied(self._daemon.replica)
        if self.enrolment.authority is not None:
            return self.enrolment.authority.private_key
        names = sorted(self._daemon.snapshots.name_of(node_id) for node_id in self._issuers())
        where = f"Run it on an issuer: {', '.join(names)}." if names else "Run it on the node that made the mesh."
        raise KithError("not-an-issuer", "this node does not hold the CA key", where, ExitCode.UNAVAILABLE)

    def _issuers(self) -> set[NodeId]:
        return {node_id for node_id in issuers_known(self._daemon) if not self._daemon.shell.denied(node_id)}

    def _named(self, text: str) -> NodeId:
        """The node that is meant: by name, by id, or by the beginning of its id. Raises `KithError`."""
        daemon = self._daemon
        known = set(daemon.replica.membership.members)
        for role in Role:
            known.update(identity.node_id for identity in daemon.shell.authors.in_role(role))
        by_id = [node_id for node_id in known if node_id.startswith(text.lower()) and len(text) >= ID_PREFIX_MIN]
        by_name = [node_id for node_id in known if daemon.snapshots.name_of(node_id) == text]
        found = set(by_name) or set(by_id)
        # A machine that was revoked and joined anew has the same name twice: who is cut off already is not meant.
        found = {node_id for node_id in found if not daemon.shell.denied(node_id)} or found
        if len(found) == 1:
            return found.pop()
        if found:
            ids = ", ".join(sorted(node_id[:12] for node_id in found))
            raise KithError(
                "node-ambiguous", f"{len(found)} nodes are called {text!r}", f"Name it by its id: {ids}", ExitCode.USAGE
            )
        raise KithError(
            "node-unknown", f"no node is called {text!r} here", "`kith nodes` lists them.", ExitCode.NOT_FOUND
        )

    def _linked_issuers(self) -> Iterable[NodeId]:
        links = self._daemon.shell.links
        for node_id in self._daemon.shell.live_peers():
            identity = links.identity_of(node_id)
            if identity is not None and identity.role is Role.ISSUER:
                yield node_id

    def _addresses(self) -> list[Address]:
        """Of members: this node first."""
        alive = self._daemon.replica.membership
        peers = [address for node_id in alive.live_peers() for address in alive.members[node_id].addresses]
        return [*self._daemon.addresses, *peers]

    async def _take_into_use(self) -> None:
        """The enrolment's certificate changed: ports, links, and those who hold this node's facts use the new one."""
        assert self._daemon.credentials is not None
        self._daemon.credentials.refresh()
        await self._daemon.shell.learn([self.enrolment.identity.certificate])
        self._daemon.shell.links.renewed()


def trust_of(daemon: "Daemon") -> Trust:
    """Raises `KithError` (`not-in-a-mesh`) on a node that runs alone."""
    if daemon.trust is None:
        raise not_in_a_mesh(daemon.paths)
    return daemon.trust


def _unreachable(name: str) -> KithError:
    return KithError(
        "node-unreachable",
        f"{name} is not linked with this node now",
        "It must run and be seen in `kith nodes`; then try again.",
        ExitCode.UNREACHABLE,
    )
