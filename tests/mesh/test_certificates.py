"""Certificates: only what this mesh's CA wrote, in the one shape that it writes, names a member."""

import datetime
import ipaddress
import socket
import ssl
import warnings
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from mesh import certificates
from mesh.certificates import Authority, CertificateError, Identity, Role, Roots, mesh_id_of
from mesh.identity import NodeId, NodeKey, node_id_of
from mesh.wire import facts_pb2
from tests.mesh.building import KEYS

NOW = 1_800_000_000.0
DAY_S = 86_400.0


def scalar_key(scalar: int) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(scalar, ec.SECP256R1())


AUTHORITY = Authority.create(scalar_key(101), NOW, serial=1)
OTHER = Authority.create(scalar_key(102), NOW, serial=1)
ROOTS = Roots([AUTHORITY.ca_der])
LEAF = AUTHORITY.issue(KEYS[0].public_key, Role.NODE, NOW, serial=2)


@pytest.mark.parametrize("role", Role)
def test_what_was_issued_is_read(role: Role) -> None:
    der = AUTHORITY.issue(KEYS[1].public_key, role, NOW + 0.9, serial=7)
    assert ROOTS.read(der) == Identity(
        AUTHORITY.mesh_id, KEYS[1].node_id, role, KEYS[1].public_key, NOW - 300, NOW + 30 * DAY_S, der
    )


def test_the_same_arguments_give_the_same_certificate() -> None:
    assert AUTHORITY.issue(KEYS[0].public_key, Role.NODE, NOW, serial=2) == LEAF
    assert Authority.create(scalar_key(101), NOW, serial=1).ca_der == AUTHORITY.ca_der


def test_the_meshs_id_is_a_hash_of_the_ca_key() -> None:
    assert AUTHORITY.mesh_id == mesh_id_of(AUTHORITY.ca_der) == ROOTS.mesh_id
    assert len(AUTHORITY.mesh_id) == 32
    later = Authority.create(scalar_key(101), NOW + DAY_S, serial=99)
    assert later.mesh_id == AUTHORITY.mesh_id != OTHER.mesh_id


def test_a_certificate_is_small() -> None:
    assert len(LEAF) < 700


def test_times_are_read_and_not_judged() -> None:
    member = Roots([AUTHORITY.ca_der]).read(AUTHORITY.issue(KEYS[0].public_key, Role.NODE, NOW, serial=3, days=3))
    assert member.valid_at(NOW - 299)
    assert not member.valid_at(NOW - 301)
    assert member.valid_at(NOW + 3 * DAY_S)
    assert not member.valid_at(NOW + 3 * DAY_S + 1)
    assert not member.renewal_due(NOW + 1.9 * DAY_S)
    assert member.renewal_due(NOW + 2.0 * DAY_S)


def test_another_meshs_certificate_is_refused() -> None:
    with pytest.raises(CertificateError, match="another mesh"):
        ROOTS.read(OTHER.issue(KEYS[0].public_key, Role.NODE, NOW, serial=2))


def test_both_roots_count_while_one_takes_over_from_the_other() -> None:
    both = Roots([OTHER.ca_der, AUTHORITY.ca_der])
    assert both.mesh_id == OTHER.mesh_id
    assert both.read(LEAF).mesh_id == AUTHORITY.mesh_id
    assert both.read(OTHER.issue(KEYS[0].public_key, Role.NODE, NOW, serial=2)).mesh_id == OTHER.mesh_id


@pytest.mark.parametrize("ders", [[], [AUTHORITY.ca_der] * 3, [LEAF], [b""], [AUTHORITY.ca_der, b"x"]])
def test_roots_are_one_or_two_ca_certificates(ders: list[bytes]) -> None:
    with pytest.raises(CertificateError):
        Roots(ders)


@given(st.integers(0, len(LEAF) * 8 - 1))
@example(4096)  # the count of unused bits before the signature
def test_a_flipped_bit_is_refused(bit: int) -> None:
    tampered = bytearray(LEAF)
    tampered[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CertificateError):
        ROOTS.read(bytes(tampered))


@given(st.integers(0, len(AUTHORITY.ca_der) * 8 - 1))
def test_a_flipped_bit_of_a_root_is_refused(bit: int) -> None:
    tampered = bytearray(AUTHORITY.ca_der)
    tampered[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CertificateError):
        Roots([bytes(tampered)])


@given(st.binary(max_size=300), st.integers(0, len(LEAF)), st.integers(0, len(LEAF)))
def test_no_bytes_do_more_than_be_refused(noise: bytes, start: int, end: int) -> None:
    for der in (noise, LEAF[:start] + noise + LEAF[end:], LEAF + noise):
        if der == LEAF:
            continue
        with pytest.raises(CertificateError):
            ROOTS.read(der)


@pytest.mark.parametrize("serial", [b"\x01\x00", b"\x01\x80", b"\x01\xff", b"\x00", b"\x02\x80\x01"])
@pytest.mark.parametrize("der", [LEAF, AUTHORITY.ca_der])
def test_an_odd_serial_number_is_refused_and_nothing_is_printed_about_it(der: bytes, serial: bytes) -> None:
    at = der.index(b"\xa0\x03\x02\x01\x02\x02") + 6
    odd = bytearray(der[:at] + serial + der[at + 1 + der[at] :])
    grown = len(odd) - len(der)
    for place in (2, 6):  # the lengths of the two sequences around it
        odd[place : place + 2] = (int.from_bytes(odd[place : place + 2], "big") + grown).to_bytes(2, "big")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(CertificateError, match="serial"):
            ROOTS.read(bytes(odd))
    assert not warned


def test_a_huge_certificate_is_not_parsed() -> None:
    with pytest.raises(CertificateError, match="5000 bytes"):
        ROOTS.read(bytes(5000))


# Certificates that the CA itself signed, each with one thing wrong


class Shape:
    """A leaf as the CA would write it, in parts that a test can change."""

    def __init__(self, key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | None = None) -> None:
        own = KEYS[0]
        self.key = key or ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), own.public_key)
        self.subject = [(NameOID.ORGANIZATIONAL_UNIT_NAME, "node"), (NameOID.COMMON_NAME, str(own.node_id))]
        self.constraints = x509.BasicConstraints(ca=False, path_length=None)
        self.usage = certificates._LEAF_USAGE
        self.extended: x509.ExtendedKeyUsage | None = certificates._LEAF_EXTENDED_USAGE
        self.names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(f"spiffe://{AUTHORITY.mesh_id}/node/{own.node_id}"),
            x509.DNSName(f"{own.node_id}.kith"),
            x509.IPAddress(ipaddress.IPv6Address(certificates.tls_name_of(own.node_id))),
        ]
        self.more: x509.ExtensionType | None = None
        self.hash: hashes.SHA256 | hashes.SHA384 = hashes.SHA256()

    def signed(self, signer: ec.EllipticCurvePrivateKey = AUTHORITY.private_key) -> bytes:
        ca = x509.load_der_x509_certificate(AUTHORITY.ca_der)
        start = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
        issuer_key = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(oid, text) for oid, text in self.subject]))
            .issuer_name(ca.subject)
            .public_key(self.key)
            .serial_number(5)
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=1))
            .add_extension(self.constraints, critical=True)
            .add_extension(self.usage, critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False)
        )
        if self.extended is not None:
            builder = builder.add_extension(self.extended, critical=False)
        if self.names:
            builder = builder.add_extension(x509.SubjectAlternativeName(self.names), critical=False)
        if self.more is not None:
            builder = builder.add_extension(self.more, critical=True)
        return builder.sign(signer, self.hash).public_bytes(serialization.Encoding.DER)


def test_the_shape_itself_is_accepted() -> None:
    read = ROOTS.read(Shape().signed())
    assert (read.node_id, read.dialable) == (KEYS[0].node_id, True)


def test_the_shape_before_it_names_a_member_that_has_to_renew() -> None:
    shape = Shape()
    del shape.names[2]
    read = ROOTS.read(shape.signed())
    assert (read.node_id, read.dialable) == (KEYS[0].node_id, False)
    assert read.renewal_due(NOW)


@pytest.mark.parametrize("node_id", [KEYS[0].node_id, "0" * 32, "f" * 32, "0000000100000000000000010000ffff", "1" * 32])
def test_the_name_for_tls_is_an_address_of_the_id(node_id: NodeId) -> None:
    """gRPC compares it with what inet_ntop(3) makes of the certificate's bytes."""
    packed = bytes.fromhex("20010db8" + node_id[:24])
    assert certificates.tls_name_of(node_id) == socket.inet_ntop(socket.AF_INET6, packed)
    first, colon, _ = certificates.tls_name_of(node_id).partition(":")
    assert colon
    assert first.isdecimal(), "gRPC would take it for a name, and send it"


def _ca_flag(shape: Shape) -> None:
    shape.constraints = x509.BasicConstraints(ca=True, path_length=None)


def _ca_usage(shape: Shape) -> None:
    shape.usage = certificates._CA_USAGE


def _no_extended_usage(shape: Shape) -> None:
    shape.extended = None


def _server_only(shape: Shape) -> None:
    shape.extended = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


def _no_names(shape: Shape) -> None:
    shape.names = []


def _other_mesh_in_the_uri(shape: Shape) -> None:
    shape.names[0] = x509.UniformResourceIdentifier(f"spiffe://{OTHER.mesh_id}/node/{KEYS[0].node_id}")


def _other_node_in_the_uri(shape: Shape) -> None:
    shape.names[0] = x509.UniformResourceIdentifier(f"spiffe://{AUTHORITY.mesh_id}/node/{KEYS[1].node_id}")


def _other_node_in_the_dns_name(shape: Shape) -> None:
    shape.names[1] = x509.DNSName(f"{KEYS[1].node_id}.kith")


def _one_name_more(shape: Shape) -> None:
    shape.names.append(x509.DNSName(f"{KEYS[1].node_id}.kith"))


def _an_address_among_the_names(shape: Shape) -> None:
    shape.names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


def _other_node_in_the_address(shape: Shape) -> None:
    shape.names[2] = x509.IPAddress(ipaddress.IPv6Address(certificates.tls_name_of(KEYS[1].node_id)))


def _an_address_of_the_other_kind(shape: Shape) -> None:
    shape.names[2] = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))


def _an_address_and_no_dns_name(shape: Shape) -> None:
    del shape.names[1]


def _other_node_in_the_subject(shape: Shape) -> None:
    shape.subject[1] = (NameOID.COMMON_NAME, KEYS[1].node_id)


def _no_role(shape: Shape) -> None:
    del shape.subject[0]


def _unknown_role(shape: Shape) -> None:
    shape.subject[0] = (NameOID.ORGANIZATIONAL_UNIT_NAME, "emperor")


def _two_roles(shape: Shape) -> None:
    shape.subject.append((NameOID.ORGANIZATIONAL_UNIT_NAME, "issuer"))


def _other_key_than_named(shape: Shape) -> None:
    shape.key = scalar_key(55).public_key()


def _another_curve(shape: Shape) -> None:
    shape.key = ec.derive_private_key(9, ec.SECP384R1()).public_key()


def _another_kind_of_key(shape: Shape) -> None:
    shape.key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()


def _an_unknown_extension(shape: Shape) -> None:
    shape.more = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")


def _another_hash(shape: Shape) -> None:
    shape.hash = hashes.SHA384()


@pytest.mark.parametrize(
    "spoil",
    [
        _ca_flag,
        _ca_usage,
        _no_extended_usage,
        _server_only,
        _no_names,
        _other_mesh_in_the_uri,
        _other_node_in_the_uri,
        _other_node_in_the_dns_name,
        _one_name_more,
        _an_address_among_the_names,
        _other_node_in_the_address,
        _an_address_of_the_other_kind,
        _an_address_and_no_dns_name,
        _other_node_in_the_subject,
        _no_role,
        _unknown_role,
        _two_roles,
        _other_key_than_named,
        _another_curve,
        _another_kind_of_key,
        _an_unknown_extension,
        _another_hash,
    ],
    ids=lambda spoil: spoil.__name__.strip("_"),
)
def test_even_the_ca_writes_one_shape_only(spoil: object) -> None:
    shape = Shape()
    assert callable(spoil)
    spoil(shape)
    with pytest.raises(CertificateError):
        ROOTS.read(shape.signed())


def test_the_right_names_over_anothers_signature_are_refused() -> None:
    with pytest.raises(CertificateError, match="signature"):
        ROOTS.read(Shape().signed(OTHER.private_key))


def test_a_leaf_signs_no_leaf() -> None:
    member = scalar_key(77)
    compressed = NodeKey(member).public_key
    below = x509.load_der_x509_certificate(AUTHORITY.issue(compressed, Role.ISSUER, NOW, serial=3))
    forged = certificates._builder(below.subject, below.subject, member.public_key(), NOW, 1, 4)
    forged_der = forged.sign(member, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    with pytest.raises(CertificateError):
        ROOTS.read(forged_der)
    with pytest.raises(CertificateError):
        ROOTS.read(AUTHORITY.ca_der)
    with pytest.raises(CertificateError):
        Roots([AUTHORITY.issue(compressed, Role.ISSUER, NOW, serial=3)])


def test_an_authority_is_a_ca_key_with_its_certificate() -> None:
    assert Authority.load(AUTHORITY.private_key, AUTHORITY.ca_der).mesh_id == AUTHORITY.mesh_id
    with pytest.raises(CertificateError, match="CA key"):
        Authority.load(OTHER.private_key, AUTHORITY.ca_der)
    with pytest.raises(CertificateError):
        Authority.load(AUTHORITY.private_key, LEAF)


@pytest.mark.parametrize("key", [b"", b"\x02" + b"\xff" * 32, bytes(33), b"\x05" + bytes(32)])
def test_no_certificate_for_what_is_no_key(key: bytes) -> None:
    with pytest.raises(CertificateError, match="P-256"):
        AUTHORITY.issue(key, Role.NODE, NOW, serial=2)


def test_an_uncompressed_key_names_the_same_node() -> None:
    point = scalar_key(3).public_key()
    long = point.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    short = point.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    assert ROOTS.read(AUTHORITY.issue(long, Role.NODE, NOW, serial=2)).node_id == node_id_of(short)


def test_the_standard_librarys_strictest_checks_accept_it(tmp_path: Path) -> None:
    """Two ends of a TLS 1.3 connection in memory, each of which asks for a certificate of this mesh."""
    key = scalar_key(77)
    leaf = AUTHORITY.issue(NodeKey(key).public_key, Role.NODE, datetime.datetime.now().timestamp(), serial=3)
    pem_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "leaf.pem").write_bytes(pem_key + ssl.DER_cert_to_PEM_cert(leaf).encode())
    young = Authority.create(AUTHORITY.private_key, datetime.datetime.now().timestamp(), serial=1)
    contexts = [ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)]
    for context in contexts:
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=young.ca_der)
        context.load_cert_chain(tmp_path / "leaf.pem")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = contexts[0].wrap_bio(up, down, server_side=True)
    client = contexts[1].wrap_bio(down, up, server_hostname=certificates.dns_name_of(NodeKey(key).node_id))
    finished = set()
    for _ in range(5):
        for end in (client, server):
            try:
                end.do_handshake()
                finished.add(end)
            except ssl.SSLWantReadError:
                continue
    assert len(finished) == 2
    assert server.getpeercert(binary_form=True) == leaf == client.getpeercert(binary_form=True)


# Denials


def denial() -> facts_pb2.Deny:
    deny = facts_pb2.Deny(node_id=KEYS[2].node_id, epoch=3, reason="stolen")
    deny.last_positions.add(
        author_id=KEYS[2].node_id, incarnation=9, stream=facts_pb2.FACT_STREAM_JOBS, sequence=12, head=bytes(32)
    )
    return deny


def test_a_denial_is_the_cas() -> None:
    signed = AUTHORITY.sign_denial(denial())
    assert ROOTS.verify_denial(signed)
    assert AUTHORITY.sign_denial(signed) == signed
    assert not ROOTS.verify_denial(denial())
    assert not ROOTS.verify_denial(OTHER.sign_denial(denial()))
    assert Roots([OTHER.ca_der, AUTHORITY.ca_der]).verify_denial(signed)


def test_a_denial_whose_words_were_changed_is_nobodys() -> None:
    signed = AUTHORITY.sign_denial(denial())
    for field, value in (("node_id", KEYS[3].node_id), ("epoch", 4), ("reason", ""), ("signature", b"")):
        changed = facts_pb2.Deny()
        changed.CopyFrom(signed)
        setattr(changed, field, value)
        assert not ROOTS.verify_denial(changed), field
    signed.last_positions[0].sequence = 13
    assert not ROOTS.verify_denial(signed)


def test_a_signature_for_a_fact_is_none_for_a_denial() -> None:
    deny = denial()
    deny.signature = NodeKey(AUTHORITY.private_key).sign(deny.SerializeToString(deterministic=True))
    assert not ROOTS.verify_denial(deny)
