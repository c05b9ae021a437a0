"""Tests of node/ca_backup.py: any machine can become the issuer again, and only with the passphrase."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from mesh.certificates import Role
from node import ca_backup as ca_backup_module
from node import enrolment
from node.ca_backup import ca_backup, ca_restore, mesh_in
from node.errors import ExitCode, KithError
from node.keys import load_or_make_key, private_pem
from node.paths import NodePaths
from scripts.throwaway import ThrowawayMesh

PASSPHRASE = "correct 怎么办 battery"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses that cost nothing: what a passphrase costs is tested once."""
    monkeypatch.setattr(ca_backup_module, "SCRYPT_N", 1 << 8)


def made(folder: Path) -> NodePaths:
    folder.mkdir()
    return NodePaths(folder)


@pytest.fixture
def founder(tmp_path: Path) -> NodePaths:
    paths = made(tmp_path / "founder")
    enrolment.found(paths, "home")
    return paths


def code_of(raised: "pytest.ExceptionInfo[KithError]") -> str:
    assert raised.value.remedy
    return raised.value.code


def test_a_new_machine_becomes_the_issuer(founder: NodePaths, tmp_path: Path) -> None:
    original = enrolment.load(founder)
    assert original is not None
    backup = ca_backup(founder, PASSPHRASE)
    assert mesh_in(backup) == (original.mesh_id, "home")
    restored = ca_restore(made(tmp_path / "new"), backup, PASSPHRASE)
    read = enrolment.load(NodePaths(tmp_path / "new"))
    assert read is not None
    assert read.identity == restored.identity
    assert (read.mesh_id, read.label, read.identity.role) == (original.mesh_id, "home", Role.ISSUER)
    assert read.key.node_id != original.key.node_id
    joined = read.issue(load_or_make_key(tmp_path / "c.key").public_key, Role.NODE)
    assert original.roots.read(joined).role == Role.NODE


@pytest.mark.usefixtures("quick")
def test_a_member_is_promoted(founder: NodePaths, tmp_path: Path) -> None:
    original = enrolment.load(founder)
    assert original is not None
    assert original.authority is not None
    member = made(tmp_path / "member")
    key = load_or_make_key(member.key)
    before = enrolment.enrol(member, original.roots.ders, original.issue(key.public_key, Role.NODE), "home")
    after = ca_restore(member, ca_backup(founder, PASSPHRASE), PASSPHRASE)
    assert after.identity.role == Role.ISSUER
    assert after.identity.node_id == before.identity.node_id


@pytest.mark.usefixtures("quick")
def test_the_key_is_not_in_the_file_in_clear(founder: NodePaths) -> None:
    enrolled = enrolment.load(founder)
    assert enrolled is not None
    assert enrolled.authority is not None
    backup = ca_backup(founder, PASSPHRASE)
    pem = private_pem(enrolled.authority.private_key)
    assert not any(line in backup for line in pem.splitlines()[1:-1])
    with pytest.raises(TypeError):
        serialization.load_pem_private_key(backup[backup.index(b"-----BEGIN ENCRYPTED") :], None)


@pytest.mark.usefixtures("quick")
def test_a_passphrase_is_its_letters_however_they_are_typed(founder: NodePaths, tmp_path: Path) -> None:
    composed, apart = "Gr\u00fc\u00dfe aus Z\u00fcrich", "Gru\u0308\u00dfe aus Zu\u0308rich"
    backup = ca_backup(founder, composed).replace(b"\n", b"\r\n")  # a stick that went through another system
    assert ca_restore(made(tmp_path / "new"), backup, apart).identity.role == Role.ISSUER


@pytest.mark.parametrize("given", ["", "correct 怎么办 Battery", PASSPHRASE + " ", "x" * 10_000])
@pytest.mark.usefixtures("quick")
def test_a_wrong_passphrase_is_said_and_changes_nothing(founder: NodePaths, tmp_path: Path, given: str) -> None:
    new = made(tmp_path / "new")
    with pytest.raises(KithError) as raised:
        ca_restore(new, ca_backup(founder, PASSPHRASE), given)
    assert code_of(raised) == "wrong-passphrase"
    assert raised.value.exit_code == ExitCode.BAD_INPUT
    assert not list(new.data_dir.iterdir())


@pytest.mark.usefixtures("quick")
def test_a_weak_passphrase_is_refused(founder: NodePaths) -> None:
    with pytest.raises(KithError) as raised:
        ca_backup(founder, "short")
    assert code_of(raised) == "weak-passphrase"


@pytest.mark.usefixtures("quick")
def test_only_an_issuer_has_something_to_back_up(tmp_path: Path) -> None:
    alone = made(tmp_path / "alone")
    with pytest.raises(KithError) as raised:
        ca_backup(alone, PASSPHRASE)
    assert code_of(raised) == "not-in-a-mesh"
    ThrowawayMesh().enrol(alone.data_dir)
    with pytest.raises(KithError) as raised:
        ca_backup(alone, PASSPHRASE)
    assert code_of(raised) == "not-an-issuer"


@pytest.mark.usefixtures("quick")
def test_a_member_of_another_mesh_is_left_as_it_is(founder: NodePaths, tmp_path: Path) -> None:
    other = made(tmp_path / "other")
    before = ThrowawayMesh().enrol(other.data_dir)
    with pytest.raises(KithError) as raised:
        ca_restore(other, ca_backup(founder, PASSPHRASE), PASSPHRASE)
    assert code_of(raised) == "other-mesh"
    after = enrolment.load(other)
    assert after is not None
    assert after.identity == before.identity


@pytest.mark.usefixtures("quick")
def test_what_is_no_backup_is_refused(founder: NodePaths, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    second = NodePaths(tmp_path / "second")
    enrolment.found(second, "second")
    backup, strange = ca_backup(founder, PASSPHRASE), ca_backup(second, PASSPHRASE)
    split = backup.index(b"-----BEGIN ENCRYPTED")
    wrong = {
        "empty": b"",
        "noise": b"\xff\xfe",
        "another file": b"# notes\n",
        "huge": backup + bytes(70_000),
        "no key": backup[:split],
        "no certificate": b"".join(backup.splitlines(keepends=True)[:3]) + backup[split:],
        "no salt": backup.replace(b"salt: ", b"pepper: "),
        "a salt that is none": backup.replace(b"salt: ", b"salt: x"),
        "only the head": backup[:20],
        "two certificates": backup[:split] + backup[backup.index(b"-----BEGIN CERT") :],
        "another's key": b"".join(strange.splitlines(keepends=True)[:3])
        + backup[backup.index(b"-----BEGIN CERT") : split]
        + strange[strange.index(b"-----BEGIN ENCRYPTED") :],
    }
    new = made(tmp_path / "new")
    for what, data in wrong.items():
        with pytest.raises(KithError) as raised:
            ca_restore(new, data, PASSPHRASE)
        assert code_of(raised) == "bad-backup", what
        of_python = ("unpack", "codec", "fromhex", "PEM", "expected")
        assert not any(word in raised.value.message for word in of_python), (what, raised.value.message)
    assert not list(new.data_dir.iterdir())
