"""Who a node is: a long-lived P-256 key. Its id is a hash of the public key, and the key signs the node's facts.

Idea: an id that is derived can not be claimed by another, so a fact proves its author by itself and nothing needs to be
looked up to check it. P-256 rather than Ed25519 because the TLS stack of gRPC refuses Ed25519 leaves, and one key type
is enough. Signing is deterministic (RFC 6979), so a simulated run can be repeated byte for byte.

Does not: keep keys, make keys (node/keys.py does both) or decide who belongs to the mesh.
"""

import functools
import hashlib
from typing import NewType

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

#: 32 lower-case hex digits.
NodeId = NewType("NodeId", str)

PUBLIC_KEY_BYTES = 33
SIGNATURE_BYTES = 64
#: Keeps a signature of a fact from being valid for anything else that the key may ever sign.
FACT_DOMAIN = b"kith-fact-v1\0"

_CURVE = ec.SECP256R1()
_ALGORITHM = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


def node_id_of(public_key: bytes) -> NodeId:
    """The id of the node with this compressed public key (33 bytes)."""
    return NodeId(hashlib.sha256(public_key).hexdigest()[:32])


class NodeKey:
    """A private key and what follows from it."""

    def __init__(self, private_key: ec.EllipticCurvePrivateKey) -> None:
        if not isinstance(private_key.curve, ec.SECP256R1):
            raise ValueError(f"a node key is on P-256, not {private_key.curve.name}")
        self.private_key = private_key
        self.public_key = private_key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        )
        self.node_id = node_id_of(self.public_key)

    @classmethod
    def from_scalar(cls, scalar: int) -> "NodeKey":
        """The key with this private scalar (1 … order − 1): for simulated nodes, whose keys follow from a seed."""
        return cls(ec.derive_private_key(scalar, _CURVE))

    def sign(self, body: bytes, domain: bytes = FACT_DOMAIN) -> bytes:
        """64 bytes, r then s, over `domain` and `body`."""
        der = self.private_key.sign(domain + body, _ALGORITHM)
        r, s = decode_dss_signature(der)
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def verify(public_key: bytes, body: bytes, signature: bytes, domain: bytes = FACT_DOMAIN) -> bool:
    """Whether `signature` over `domain` and `body` is of the owner of `public_key`. What is malformed is just false."""
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        key = _public_key(public_key)
        der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
        key.verify(der, domain + body, ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True


@functools.lru_cache(maxsize=2048)
def _public_key(public_key: bytes) -> ec.EllipticCurvePublicKey:
    """A node reads many facts of few authors; taking the root costs a third of a check. Raises `ValueError`."""
    return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, public_key)
