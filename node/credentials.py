"""A node's identity as TLS sees it: credentials for its port and for the channels to its peers.

Idea: both ends of every connection show a certificate of the mesh (mutual TLS). A client trusts exactly one, that of
the node which it means, read before by a handshake of our own or in a link: so nobody answers in its place, not even
who holds the CA key and writes the node's names into a certificate for another key. gRPC wants a name to check all the
same. It is an address made of the node's id (mesh/certificates.py): a client that checks a name sends it in clear,
and one that checks an address does not.

A port takes a renewed certificate over at its next handshake; gRPC's channels can not, so after `refresh` new channels
are made with the new one and the old are left to end.

Does not: judge roles or denials (callers.py), or read who is at an unknown address (handshake.py).

Source: gRPC A-series proposals on SSL credentials; RFC 6066, section 3 (no address is a server name); measured: a
connection outlives the end of its certificate, so ages are limited elsewhere (links.py, callers.py).
"""

import ssl
from collections.abc import Sequence

import grpc
import grpc.aio
from cryptography.hazmat.primitives import serialization

from mesh.certificates import Identity, Roots, dns_name_of, tls_name_of
from node.addresses import target
from node.enrolment import Enrolment


class Credentials:
    """Of one enrolled node. Use from the event loop; only gRPC's own thread asks for the port's certificate."""

    def __init__(self, enrolment: Enrolment) -> None:
        self.enrolment = enrolment
        self.refresh()
        self._unchanged = True

    @property
    def identity(self) -> Identity:
        return self.enrolment.identity

    @property
    def roots(self) -> Roots:
        return self.enrolment.roots

    def refresh(self) -> None:
        """Take over the enrolment's certificate and roots, after a renewal."""
        key = self.enrolment.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain = pem(self.identity.certificate)
        roots = b"".join(pem(der) for der in self.roots.ders)
        self._shown = key, chain
        self._for_port = grpc.ssl_server_certificate_configuration([(key, chain)], roots)
        self._unchanged = False

    def server(self) -> grpc.ServerCredentials:
        """For the mesh port: a certificate of this mesh is required of whoever connects."""
        self._unchanged = True
        return grpc.dynamic_ssl_server_credentials(
            self._for_port,
            self._renewed_for_port,  # type: ignore[arg-type]  # the stubs do not know that None means "as before"
            require_client_authentication=True,
        )

    def channel(
        self, host: str, port: int, peer: Identity, options: Sequence[tuple[str, int | str]] = ()
    ) -> grpc.aio.Channel:
        """A channel that only this node can answer, with this certificate."""
        name = tls_name_of(peer.node_id) if peer.dialable else dns_name_of(peer.node_id)
        credentials = grpc.ssl_channel_credentials(pem(peer.certificate), *self._shown)
        named = ("grpc.ssl_target_name_override", name)
        return grpc.aio.secure_channel(target(host, port), credentials, options=[*options, named])

    def context(self) -> ssl.SSLContext:
        """For handshake.py: shows this node's certificate and takes any, which the caller then reads.

        Raises `OSError` where the files of the enrolment can not be read.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(self.enrolment.paths.certificate, self.enrolment.paths.key)
        return context

    def _renewed_for_port(self) -> "grpc.ServerCertificateConfiguration | None":
        """Called by gRPC at every handshake, in a thread of its own; None: as before."""
        if self._unchanged:
            return None
        self._unchanged = True
        return self._for_port


def pem(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()
