"""What a Hello must say before two nodes are linked: a protocol that both speak, and what the certificate says.

Idea: whoever was called reads the caller's certificate from TLS, and Hello has to agree with it. Whoever called can not
read the other's certificate in gRPC; it gave TLS the one certificate that may answer (credentials.py), so the key is
proved, and Hello brings the certificate that is shown now.

Does not: know who was denied, or whether the link is wanted.
"""

from mesh.authorisation import may_send
from mesh.certificates import CertificateError, Identity, Roots
from mesh.identity import NodeId
from mesh.wire import membership_pb2
from node import clock

PROTOCOL_VERSION = 3
#: Earlier ones were spoken in plain text, between nodes of one machine only.
PROTOCOL_VERSION_MIN = 3
#: Of a Hello, which is kept while the link is open: a certificate of 1 KiB, a name, addresses.
HELLO_BYTES_MAX = 64 << 10


class HelloError(Exception):
    """The peer can not be linked with; says why."""


def named_by(hello: membership_pb2.Hello, peer: NodeId, roots: Roots) -> Identity:
    """The identity of a peer that was dialled: TLS has proved its key. Raises `HelloError`."""
    try:
        identity = roots.read(hello.certificate)
    except CertificateError as error:
        raise HelloError(f"the certificate in its Hello: {error}") from error
    if identity.node_id != peer:
        raise HelloError("the certificate in its Hello is another node's")
    if clock.wall_clock_ms() / 1000 > identity.not_after:
        raise HelloError("the certificate in its Hello has ended")
    return identity


def check(hello: membership_pb2.Hello, identity: Identity) -> None:
    """Whether both can be linked, and Hello says what the certificate says. Raises `HelloError`."""
    if (hello.node_id, hello.public_key) != (identity.node_id, identity.public_key):
        raise HelloError("its Hello names another node than its certificate")
    if hello.protocol_version_min > PROTOCOL_VERSION or hello.protocol_version < PROTOCOL_VERSION_MIN:
        theirs = f"{hello.protocol_version_min} to {hello.protocol_version}"
        ours = f"{PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}"
        raise HelloError(f"it speaks protocol {theirs}, this node {ours}")
    if (size := hello.ByteSize()) > HELLO_BYTES_MAX:
        raise HelloError(f"its Hello has {size:,} bytes, more than {HELLO_BYTES_MAX:,}")
    if not may_send(identity.role, "hello"):
        raise HelloError(f"a {identity.role} has no link")
