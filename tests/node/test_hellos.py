"""Tests of node/hellos.py: which Hello fits a certificate. Over real links: test_links.py."""

from pathlib import Path

import pytest

from mesh.certificates import Identity, Role
from mesh.wire import membership_pb2
from node.enrolment import Enrolment
from node.hellos import HELLO_BYTES_MAX, PROTOCOL_VERSION, HelloError, check, named_by
from scripts.throwaway import ThrowawayMesh


def hello_of(member: Enrolment) -> membership_pb2.Hello:
    return membership_pb2.Hello(
        node_id=member.key.node_id,
        public_key=member.key.public_key,
        protocol_version=PROTOCOL_VERSION,
        protocol_version_min=PROTOCOL_VERSION,
        certificate=member.identity.certificate,
    )


def refusal(hello: membership_pb2.Hello, identity: Identity) -> str:
    with pytest.raises(HelloError) as refused:
        check(hello, identity)
    return str(refused.value)


def test_a_hello_names_who_its_certificate_names(tmp_path: Path) -> None:
    mesh = ThrowawayMesh()
    member, other = (mesh.enrol(tmp_path / name) for name in ("member", "other"))
    hello = hello_of(member)
    assert named_by(hello, member.key.node_id, other.roots) == member.identity
    check(hello, member.identity)
    assert "another node" in refusal(hello, other.identity)
    with pytest.raises(HelloError, match="another node's"):
        named_by(hello, other.key.node_id, other.roots)


def test_a_certificate_of_another_mesh_or_one_that_has_ended_names_nobody(tmp_path: Path) -> None:
    mesh = ThrowawayMesh()
    member = mesh.enrol(tmp_path / "member")
    stranger = ThrowawayMesh().enrol(tmp_path / "stranger")
    ended = mesh.enrol(tmp_path / "ended", starts_s=-172_800.0, days=1.0)
    with pytest.raises(HelloError, match="another mesh"):
        named_by(hello_of(stranger), stranger.key.node_id, member.roots)
    with pytest.raises(HelloError, match="ended"):
        named_by(hello_of(ended), ended.key.node_id, member.roots)


@pytest.mark.parametrize(("lowest", "highest"), [(1, PROTOCOL_VERSION - 1), (PROTOCOL_VERSION + 1, 9)])
def test_a_protocol_that_is_not_spoken_here(tmp_path: Path, lowest: int, highest: int) -> None:
    member = ThrowawayMesh().enrol(tmp_path / "member")
    hello = hello_of(member)
    hello.protocol_version_min, hello.protocol_version = lowest, highest
    assert f"speaks protocol {lowest} to {highest}" in refusal(hello, member.identity)


def test_a_client_has_no_link(tmp_path: Path) -> None:
    client = ThrowawayMesh().enrol(tmp_path / "client", Role.CLIENT)
    assert "a client has no link" in refusal(hello_of(client), client.identity)


def test_a_hello_of_megabytes_is_refused(tmp_path: Path) -> None:
    """It is kept while the link is open, and a member has several."""
    member = ThrowawayMesh().enrol(tmp_path / "member")
    hello = hello_of(member)
    hello.software_version = "x" * HELLO_BYTES_MAX
    assert "bytes, more than" in refusal(hello, member.identity)
    hello.software_version = "x" * (HELLO_BYTES_MAX // 2)
    check(hello, member.identity)
