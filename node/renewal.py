"""A node's certificate, renewed in time: at two thirds of its life, by an issuer that it is linked with.

Idea: the key stays, so the node stays who it is; only the certificate's times change. An issuer renews its own with the
CA key that it holds. Who finds no issuer goes on asking until its certificate ends, and says so in the log; after that
it is let in by nobody, its facts still count, and `kith join` with a new invite brings it back as the same node.

The answer is read like any certificate: it must be of this mesh and for this key (`Enrolment.renewed`).

Does not: renew the CA, or notice a clock that was set wrong (`kith doctor` does).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from mesh.certificates import CertificateError, Role
from mesh.identity import NodeId
from mesh.wire import mesh_pb2, mesh_pb2_grpc
from node.enrolment import Enrolment
from node.errors import KithError
from node.logs import log
from node.rpc import calling

#: How often it is looked whether renewal is due, and asked again where nobody could be asked.
LOOK_S = 600.0
#: Where the certificate is due, the first looks are close: links come up within seconds of the start.
FIRST_LOOKS_S = (2.0, 10.0, 60.0)
ASK_S = 10.0
#: A failure that goes on is logged once in this time.
LOG_AGAIN_S = 86_400.0

Stub = Callable[[NodeId], "mesh_pb2_grpc.MeshAsyncStub | None"]


class Renewal:
    """Keeps one enrolment's certificate fresh.

    Args:
        issuers: who is linked now and holds the CA key.
        stub: for calls to a linked peer.
        renewed: told after each renewal, to take the new certificate into use.
    """

    def __init__(
        self,
        enrolment: Enrolment,
        issuers: Callable[[], Iterable[NodeId]],
        stub: Stub,
        renewed: Callable[[], Awaitable[None]],
    ) -> None:
        self._enrolment = enrolment
        self._issuers = issuers
        self._stub = stub
        self._renewed = renewed
        self._logged_at = float("-inf")

    async def run(self) -> None:
        """For ever."""
        if self._enrolment.authority is not None:
            await self.look()  # an issuer needs no link for it
        for pause_s in FIRST_LOOKS_S:
            await asyncio.sleep(pause_s)
            await self.look()
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> bool:
        """Renew if it is due. Returns whether it was renewed."""
        identity = self._enrolment.identity
        if not identity.renewal_due(time.time()):
            return False
        try:
            certificate = await self._new_certificate()
            if certificate is None:
                self._complain("no issuer is linked")
                return False
            await asyncio.to_thread(self._enrolment.renewed, certificate)
        except (CertificateError, OSError) as error:
            self._complain(str(error))
            return False
        await self._renewed()
        ends = time.strftime("%Y-%m-%d", time.localtime(self._enrolment.identity.not_after))
        log("info", f"the certificate was renewed; it ends on {ends}")
        return True

    async def _new_certificate(self) -> bytes | None:
        identity = self._enrolment.identity
        if self._enrolment.authority is not None:
            return self._enrolment.issue(identity.public_key, Role.ISSUER)
        for issuer in self._issuers():
            if (stub := self._stub(issuer)) is None:
                continue
            try:
                with calling():
                    return (await stub.Renew(mesh_pb2.RenewRequest(), timeout=ASK_S)).certificate
            except KithError as error:
                log("info", f"{issuer} did not renew the certificate: {error.message}")
        return None

    def _complain(self, why: str) -> None:
        now = time.monotonic()
        if now - self._logged_at < LOG_AGAIN_S:
            return
        self._logged_at = now
        days = (self._enrolment.identity.not_after - time.time()) / 86_400
        when = f"ends in {days:.0f} days" if days > 1 else "ends within a day" if days > 0 else "has ended"
        log(
            "warning",
            f"the certificate can not be renewed ({why}); it {when}. `kith join` with an invite renews it too",
        )
