"""Who belongs to a mesh: certificates that bind a node's key to the mesh and to what the node may do.

Idea: a mesh is its certificate authority (CA). Its id is a hash of the CA's public key, as a node's id is a hash of the
node's, so neither can be claimed by another. The certified key is the node's long-lived key itself: a reader checks
that the id in the certificate is the hash of the key in it, so even the holder of the CA key can not pass for a node
that exists. Nothing is accepted that `Authority.issue` does not write: a certificate has one shape, or the one before
it, which lacked the address.

The first 96 bits of a node's id stand in its certificate as an IPv6 address, too. Whoever dials the node has TLS check
that address, and for an address a TLS client sends no server name: the id is never on the wire in clear.

The times of a certificate are read and not judged here. They end connections; they never make a fact invalid.

Does not: know who was denied (facts tell), look at a clock, keep keys, or draw serial numbers; callers pass these in.

Source: RFC 5280 (certificates), RFC 6979 (repeatable signatures), SPIFFE X.509-SVID (the URI name).
"""

import datetime
import enum
import functools
import hashlib
import ipaddress
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.identity import NodeId, NodeKey, node_id_of, verify
from mesh.wire import facts_pb2

#: Largest certificate that is looked at: ours are about 600 bytes. Against senders that let others parse megabytes.
CERTIFICATE_BYTES_MAX = 4096
#: Old and new CA, while one is exchanged for the other.
ROOTS_MAX = 2
#: Read certificates that are remembered, about 1 KiB each; to read one costs up to a millisecond.
REMEMBERED_MAX = 1024

CA_DAYS = 3650.0
NODE_DAYS = 30.0
#: How far a certificate starts in the past: the clocks of a mesh differ, seconds.
SKEW_S = 300.0
#: Share of its life after which a certificate is renewed.
RENEW_AT = 2 / 3
#: Keeps the CA's signature under a denial from being valid for anything else.
DENY_DOMAIN = b"kith-deny-v1\0"

#: 2001:db8::/32, kept for documentation (RFC 3849), so it is nobody's. gRPC takes a text for an address, and sends no
#: name, only where its first group has no letters.
_ADDRESS_PREFIX = bytes.fromhex("20010db8")
_DAY_S = 86_400.0
_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
_CA_USAGE = x509.KeyUsage(**{name: name in ("key_cert_sign", "crl_sign") for name in _KEY_USAGES})
_LEAF_USAGE = x509.KeyUsage(**{name: name == "digital_signature" for name in _KEY_USAGES})
_CA_CONSTRAINTS = x509.BasicConstraints(ca=True, path_length=0)
_LEAF_CONSTRAINTS = x509.BasicConstraints(ca=False, path_length=None)
_LEAF_EXTENDED_USAGE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
#: How a certificate begins in DER: two lengths, version 3, a positive serial number of at most 20 bytes. The parser
#: takes others with a warning, which a stranger could make this process print.
_HEAD = re.compile(
    rb"(?:\x30(?:[\x00-\x7f]|\x81.|\x82..)){2}\xa0\x03\x02\x01\x02\x02(?:\x01[\x01-\x7f]|[\x02-\x14][\x00-\x7f])",
    re.DOTALL,
)
#: What the parser raises for bytes of a stranger; it reads most parts when they are first asked for.
_MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    x509.AttributeNotFound,
    CryptographyDeprecationWarning,  # where warnings are errors
)


class CertificateError(ValueError):
    """Not a certificate of this mesh; the text says why, for the log of whoever read it."""


class Role(enum.StrEnum):
    """What a member may do; the table is in mesh/authorisation.py."""

    ISSUER = "issuer"  # a node that also holds the CA key
    NODE = "node"
    WORKER = "worker"  # runs tasks and stores; does not lead, submit or teach
    CLIENT = "client"  # asks for text; has no link


@dataclass(frozen=True)
class Identity:
    """What a certificate says, once it was checked."""

    mesh_id: str
    node_id: NodeId
    role: Role
    public_key: bytes  # compressed P-256 point, 33 bytes
    not_before: float  # seconds since the epoch, both
    not_after: float
    certificate: bytes  # DER
    dialable: bool = True  # it holds the address that is checked by who dials; those issued by early versions do not

    def valid_at(self, now_s: float) -> bool:
        return self.not_before <= now_s <= self.not_after

    def renewal_due(self, now_s: float) -> bool:
        return not self.dialable or now_s >= self.not_before + RENEW_AT * (self.not_after - self.not_before)


def tls_name_of(node_id: NodeId) -> str:
    """What a TLS client checks when it dials the node: an IPv6 address that is made of its id and leads nowhere."""
    return str(_address_of(node_id))


def dns_name_of(node_id: NodeId) -> str:
    """For HTTPS clients, which name whom they call; they do so in clear."""
    return f"{node_id}.kith"


def _address_of(node_id: NodeId) -> ipaddress.IPv6Address:
    return ipaddress.IPv6Address(_ADDRESS_PREFIX + bytes.fromhex(node_id)[:12])


def _names_of(mesh_id: str, node_id: NodeId) -> list[x509.GeneralName]:
    return [
        x509.UniformResourceIdentifier(uri_of(mesh_id, node_id)),
        x509.DNSName(dns_name_of(node_id)),
        x509.IPAddress(_address_of(node_id)),
    ]


def uri_of(mesh_id: str, node_id: NodeId) -> str:
    return f"spiffe://{mesh_id}/node/{node_id}"


def mesh_id_of(ca_der: bytes) -> str:
    """The id of the mesh of this CA, 32 hex digits. Raises `CertificateError`."""
    return _mesh_id_of_key(_key_of(_parsed(ca_der)))


class Roots:
    """The CA certificates that a node trusts: one, or the old and the new one. Raises `CertificateError`."""

    def __init__(self, ca_ders: Sequence[bytes]) -> None:
        if not 1 <= len(ca_ders) <= ROOTS_MAX:
            raise CertificateError(f"a mesh has 1 to {ROOTS_MAX} CA certificates, not {len(ca_ders)}")
        self.ders = tuple(ca_ders)
        self._authorities = [_checked_ca(der) for der in self.ders]
        self.mesh_id = _mesh_id_of_key(_key_of(self._authorities[0]))
        self.read = functools.lru_cache(maxsize=REMEMBERED_MAX)(self._read)

    def _read(self, certificate_der: bytes) -> Identity:
        """The member that this certificate names. Raises `CertificateError`. Does not look at the time."""
        try:
            return self._checked(_parsed(certificate_der), certificate_der)
        except CertificateError:
            raise
        except _MALFORMED as error:
            raise CertificateError(f"a malformed certificate: {error}") from error

    def _checked(self, certificate: x509.Certificate, der: bytes) -> Identity:
        mesh_id = self._signer_of(certificate)
        key = _key_of(certificate)
        public_key = _compressed(key)
        node_id = node_id_of(public_key)
        _require_leaf_extensions(certificate)
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        expected = _names_of(mesh_id, node_id)
        if names not in (expected, expected[:-1]):
            raise CertificateError("its names are not those of its key in this mesh")
        try:
            role = Role(_only_text(certificate.subject, NameOID.ORGANIZATIONAL_UNIT_NAME))
        except ValueError as error:
            raise CertificateError("it names no role") from error
        if certificate.subject != _leaf_subject(node_id, role):
            raise CertificateError("its subject is not that of its key")
        not_before, not_after = _seconds(certificate.not_valid_before_utc), _seconds(certificate.not_valid_after_utc)
        return Identity(mesh_id, node_id, role, public_key, not_before, not_after, der, names == expected)

    def _signer_of(self, certificate: x509.Certificate) -> str:
        """The id of the mesh whose CA signed it."""
        for authority in self._authorities:
            if certificate.issuer != authority.subject:
                continue
            _require_signed(certificate, authority)
            return _mesh_id_of_key(_key_of(authority))
        raise CertificateError("another mesh issued it")

    def verify_denial(self, deny: facts_pb2.Deny) -> bool:
        """Whether the CA signed this denial."""
        body = _denial_body(deny)
        return any(
            verify(_compressed(_key_of(authority)), body, deny.signature, DENY_DOMAIN)
            for authority in self._authorities
        )


class Authority:
    """The CA: its key and certificate. Whoever holds it decides who belongs."""

    def __init__(self, private_key: ec.EllipticCurvePrivateKey, ca_der: bytes) -> None:
        self.private_key = private_key
        self.ca_der = ca_der
        self._certificate = _checked_ca(ca_der)
        if _key_of(self._certificate) != private_key.public_key():
            raise CertificateError("the CA key is not that of the CA certificate")
        self.mesh_id = _mesh_id_of_key(private_key.public_key())

    @classmethod
    def create(cls, private_key: ec.EllipticCurvePrivateKey, now_s: float, serial: int) -> "Authority":
        """A new mesh. `serial`: random, 1 … 2¹⁵⁹."""
        public_key = private_key.public_key()
        subject = _ca_subject(_mesh_id_of_key(public_key))
        certificate = (
            _builder(subject, subject, public_key, now_s, CA_DAYS, serial)
            .add_extension(_CA_CONSTRAINTS, critical=True)
            .add_extension(_CA_USAGE, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .sign(private_key, hashes.SHA256(), ecdsa_deterministic=True)
        )
        return cls(private_key, certificate.public_bytes(serialization.Encoding.DER))

    @classmethod
    def load(cls, private_key: ec.EllipticCurvePrivateKey, ca_der: bytes) -> "Authority":
        """Raises `CertificateError` where the two do not belong together."""
        return cls(private_key, ca_der)

    def issue(self, public_key: bytes, role: Role, now_s: float, serial: int, days: float = NODE_DAYS) -> bytes:
        """The certificate (DER) of the node with this key, in `role`. Raises `CertificateError` for a malformed key.

        `serial`: random, 1 … 2¹⁵⁹. The same arguments give the same bytes.
        """
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public_key)
        except ValueError as error:
            raise CertificateError("the node's key is no point on P-256") from error
        node_id = node_id_of(_compressed(key))
        names = _names_of(self.mesh_id, node_id)
        issuer_key = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        certificate = (
            _builder(_leaf_subject(node_id, role), self._certificate.subject, key, now_s, days, serial)
            .add_extension(_LEAF_CONSTRAINTS, critical=True)
            .add_extension(_LEAF_USAGE, critical=True)
            .add_extension(_LEAF_EXTENDED_USAGE, critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False)
            .sign(self.private_key, hashes.SHA256(), ecdsa_deterministic=True)
        )
        return certificate.public_bytes(serialization.Encoding.DER)

    def sign_denial(self, deny: facts_pb2.Deny) -> facts_pb2.Deny:
        """A copy with the CA's signature."""
        signed = facts_pb2.Deny()
        signed.CopyFrom(deny)
        signed.signature = NodeKey(self.private_key).sign(_denial_body(deny), DENY_DOMAIN)
        return signed


def _denial_body(deny: facts_pb2.Deny) -> bytes:
    unsigned = facts_pb2.Deny()
    unsigned.CopyFrom(deny)
    unsigned.ClearField("signature")
    return unsigned.SerializeToString(deterministic=True)


def _parsed(der: bytes) -> x509.Certificate:
    if len(der) > CERTIFICATE_BYTES_MAX:
        raise CertificateError(f"a certificate of {len(der)} bytes")
    if not _HEAD.match(der):
        raise CertificateError("no certificate: it does not begin as one with a positive serial number")
    try:
        certificate = x509.load_der_x509_certificate(der)
    except _MALFORMED as error:
        raise CertificateError(f"no certificate: {error}") from error
    if certificate.serial_number < 1:
        raise CertificateError("its serial number is not positive")
    if not der.endswith(b"\0" + certificate.signature):
        raise CertificateError("its signature has unused bits")
    return certificate


def _checked_ca(der: bytes) -> x509.Certificate:
    certificate = _parsed(der)
    try:
        if certificate.subject != _ca_subject(_mesh_id_of_key(_key_of(certificate))):
            raise CertificateError("not the CA certificate of a mesh")
        _require_signed(certificate, certificate)
        found = {type(extension.value): (extension.value, extension.critical) for extension in certificate.extensions}
        wanted = {x509.BasicConstraints: (_CA_CONSTRAINTS, True), x509.KeyUsage: (_CA_USAGE, True)}
        if any(found.get(kind) != value for kind, value in wanted.items()) or x509.SubjectKeyIdentifier not in found:
            raise CertificateError("it may not be used as a CA certificate")
    except CertificateError:
        raise
    except _MALFORMED as error:
        raise CertificateError(f"a malformed CA certificate: {error}") from error
    return certificate


def _require_signed(certificate: x509.Certificate, authority: x509.Certificate) -> None:
    if not isinstance(certificate.signature_hash_algorithm, hashes.SHA256):
        raise CertificateError("it is not signed over SHA-256")
    try:
        certificate.verify_directly_issued_by(authority)
    except InvalidSignature as error:
        raise CertificateError("its signature is not that of the CA it names") from error


def _require_leaf_extensions(certificate: x509.Certificate) -> None:
    """Exactly those that `Authority.issue` writes."""
    found = {extension.oid: (extension.value, extension.critical) for extension in certificate.extensions}
    wanted: dict[x509.ObjectIdentifier, tuple[x509.ExtensionType, bool]] = {
        x509.BasicConstraints.oid: (_LEAF_CONSTRAINTS, True),
        x509.KeyUsage.oid: (_LEAF_USAGE, True),
        x509.ExtendedKeyUsage.oid: (_LEAF_EXTENDED_USAGE, False),
    }
    for oid, expected in wanted.items():
        if found.get(oid) != expected:
            raise CertificateError(f"its {oid._name} is not that of a node's certificate")
    named = {x509.SubjectAlternativeName.oid, x509.AuthorityKeyIdentifier.oid}
    if found.keys() != wanted.keys() | named:
        raise CertificateError("it lacks extensions of a node's certificate or has others")


def _key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    try:
        key = certificate.public_key()
    except _MALFORMED as error:
        raise CertificateError(f"its key can not be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError("its key is not on P-256")
    return key


def _compressed(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def _mesh_id_of_key(key: ec.EllipticCurvePublicKey) -> str:
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()[:32]


def _ca_subject(mesh_id: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"kith mesh {mesh_id}")])


def _leaf_subject(node_id: NodeId, role: Role) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role.value),
            x509.NameAttribute(NameOID.COMMON_NAME, node_id),
        ]
    )


def _only_text(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    found = name.get_attributes_for_oid(oid)
    return str(found[0].value) if len(found) == 1 else ""


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now_s: float, days: float, serial: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(_moment(math.floor(now_s - SKEW_S)))
        .not_valid_after(_moment(math.floor(now_s + days * _DAY_S)))
    )


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _seconds(moment: datetime.datetime) -> float:
    return moment.timestamp()
