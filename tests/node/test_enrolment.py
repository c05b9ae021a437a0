"""Tests of node/enrolment.py: in a mesh or not, never half; what does not belong together is refused."""

import json
import shutil
import stat
import time
from pathlib import Path

import pytest

from mesh.certificates import CertificateError, Role
from mesh.facts import make
from mesh.wire import facts_pb2
from node import enrolment, files
from node.errors import ExitCode, KithError
from node.keys import load_key, load_or_make_key, new_private_key
from node.paths import NodePaths
from node.store import Store
from scripts.throwaway import ThrowawayMesh


@pytest.fixture
def paths(tmp_path: Path) -> NodePaths:
    (tmp_path / "data").mkdir()
    return NodePaths(tmp_path / "data")


def refused(paths: NodePaths) -> KithError:
    with pytest.raises(KithError) as raised:
        enrolment.load(paths)
    assert raised.value.remedy
    assert raised.value.exit_code == ExitCode.CANNOT_START
    return raised.value


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_data_directory_is_in_no_mesh_at_first(paths: NodePaths) -> None:
    assert enrolment.load(paths) is None
    load_or_make_key(paths.key)
    assert enrolment.load(paths) is None


def test_a_founder_is_an_issuer_of_its_own_mesh(paths: NodePaths) -> None:
    key = load_or_make_key(paths.key)
    made = enrolment.found(paths, "home")
    read = enrolment.load(paths)
    assert read is not None
    assert read.authority is not None
    assert read.identity == made.identity
    assert (read.label, read.identity.role, read.key.node_id) == ("home", Role.ISSUER, key.node_id)
    assert read.mesh_id == read.authority.mesh_id == read.identity.mesh_id
    assert mode(paths.mesh) == 0o700
    assert {mode(path) for path in (paths.key, *paths.mesh.iterdir())} == {0o600}


@pytest.mark.parametrize("role", [Role.NODE, Role.WORKER, Role.CLIENT])
def test_a_member_holds_no_ca_key(paths: NodePaths, role: Role) -> None:
    made = ThrowawayMesh("shed").enrol(paths.data_dir, role)
    read = enrolment.load(paths)
    assert read is not None
    assert (read.identity, read.label, read.authority) == (made.identity, "shed", None)
    assert not paths.ca_key.exists()


def test_two_meshes_at_once_are_refused(paths: NodePaths) -> None:
    first = enrolment.found(paths, "one")
    with pytest.raises(KithError) as raised:
        enrolment.found(paths, "two")
    assert raised.value.code == "already-member"
    read = enrolment.load(paths)
    assert read is not None
    assert read.mesh_id == first.mesh_id


def test_anothers_certificate_enrols_nobody(paths: NodePaths) -> None:
    mesh, other = ThrowawayMesh(), ThrowawayMesh()
    own = load_or_make_key(paths.key)
    wrong = [
        ([mesh.authority.ca_der], mesh.certificate(load_or_make_key(paths.data_dir / "b.key").public_key)),
        ([other.authority.ca_der], mesh.certificate(own.public_key)),
        ([], mesh.certificate(own.public_key)),
        ([mesh.authority.ca_der], b"noise"),
    ]
    for ca_ders, certificate in wrong:
        with pytest.raises(KithError) as raised:
            enrolment.enrol(paths, ca_ders, certificate, "x")
        assert raised.value.code == "certificate-refused"
        assert enrolment.load(paths) is None


def test_a_full_disk_leaves_the_node_in_no_mesh(paths: NodePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_make_key(paths.key)

    def full(path: Path, content: bytes, mode: int = 0o600) -> None:
        if path.name == paths.about_mesh.name:
            raise OSError(28, "No space left on device")
        files.write_synced(path, content, mode)

    with monkeypatch.context() as patched:
        patched.setattr(enrolment, "write_synced", full)
        with pytest.raises(KithError) as raised:
            enrolment.found(paths, "home")
    assert raised.value.code == "data-dir-unusable"
    assert enrolment.load(paths) is None
    assert enrolment.found(paths, "home").label == "home"  # what the first try left is no obstacle
    assert not paths.mesh.with_name("mesh.new").exists()


@pytest.mark.parametrize("name", ["ca.pem", "node.pem", "mesh.json", "ca.key"])
@pytest.mark.parametrize("content", [b"", b"noise \xff", b"[]", b'{"label": 5}', b"{", bytes(70_000)])
def test_a_damaged_folder_is_said_and_can_be_left(paths: NodePaths, name: str, content: bytes) -> None:
    enrolment.found(paths, "home")
    (paths.mesh / name).write_bytes(content)
    assert refused(paths).code == "enrolment-damaged"
    enrolment.leave(paths)
    assert enrolment.load(paths) is None


@pytest.mark.parametrize("name", ["ca.pem", "node.pem", "mesh.json"])
def test_a_folder_that_lacks_a_file_is_damaged(paths: NodePaths, name: str) -> None:
    enrolment.found(paths, "home")
    (paths.mesh / name).unlink()
    assert refused(paths).code == "enrolment-damaged"


def test_a_lost_key_is_not_replaced(paths: NodePaths) -> None:
    enrolment.found(paths, "home")
    paths.key.unlink()
    error = refused(paths)
    assert (error.code, "node.key is missing" in error.message) == ("enrolment-damaged", True)
    load_or_make_key(paths.key)
    assert "another node's" in refused(paths).message


def test_another_meshs_ca_key_makes_no_issuer(paths: NodePaths, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = NodePaths(tmp_path / "other")
    enrolment.found(paths, "home")
    enrolment.found(other, "other")
    shutil.copy(other.ca_key, paths.ca_key)
    assert "CA key" in refused(paths).message


def test_two_roots_are_kept_in_order(paths: NodePaths) -> None:
    mesh, next_one = ThrowawayMesh(), ThrowawayMesh()
    key = load_or_make_key(paths.key)
    ders = [mesh.authority.ca_der, next_one.authority.ca_der]
    enrolment.enrol(paths, ders, next_one.certificate(key.public_key), "x", next_one.authority.private_key)
    read = enrolment.load(paths)
    assert read is not None
    assert read.authority is not None
    assert list(read.roots.ders) == ders
    assert (read.mesh_id, read.authority.mesh_id) == (mesh.mesh_id, next_one.mesh_id)


@pytest.mark.parametrize(("role", "stays"), [(Role.NODE, True), (Role.WORKER, False), (Role.CLIENT, False)])
def test_what_was_done_alone_stays_where_the_role_lets_it_count(paths: NodePaths, role: Role, stays: bool) -> None:
    paths.journal.write_bytes(b"not read by this test")
    key = load_or_make_key(paths.key)
    mine = ThrowawayMesh().enrol(paths.data_dir, role)
    assert mine.key.node_id == key.node_id
    assert paths.journal.exists() is stays
    aside = [path.read_bytes() for path in paths.data_dir.glob("alone-*/journal.sqlite")]
    assert aside == ([] if stays else [b"not read by this test"])


# Renewal and promotion


def test_a_renewed_certificate_lasts(paths: NodePaths) -> None:
    mesh = ThrowawayMesh()
    mine = mesh.enrol(paths.data_dir, days=1)
    newer = mesh.certificate(mine.key.public_key, Role.WORKER, days=9)
    mine.renewed(newer)
    read = enrolment.load(paths)
    assert read is not None
    assert read.identity == mine.identity
    assert (read.identity.certificate, read.identity.role) == (newer, Role.WORKER)
    assert mode(paths.certificate) == 0o600


def test_a_wrong_renewal_changes_nothing(paths: NodePaths) -> None:
    mesh = ThrowawayMesh()
    mine = mesh.enrol(paths.data_dir)
    before = mine.identity
    for wrong in (
        ThrowawayMesh().certificate(mine.key.public_key),
        mesh.certificate(load_or_make_key(paths.data_dir / "b.key").public_key),
        b"",
    ):
        with pytest.raises(CertificateError):
            mine.renewed(wrong)
    read = enrolment.load(paths)
    assert read is not None
    assert mine.identity == read.identity == before


def test_an_expired_node_still_loads(paths: NodePaths) -> None:
    ThrowawayMesh().enrol(paths.data_dir, starts_s=-40 * 86_400.0)
    read = enrolment.load(paths)
    assert read is not None
    assert not read.identity.valid_at(time.time())


def test_a_promoted_node_issues(paths: NodePaths, tmp_path: Path) -> None:
    mesh = ThrowawayMesh()
    mine = mesh.enrol(paths.data_dir)
    with pytest.raises(CertificateError):
        mine.take_authority(new_private_key())
    assert mine.authority is None
    assert not paths.ca_key.exists()
    mine.take_authority(mesh.authority.private_key)
    read = enrolment.load(paths)
    assert read is not None
    assert read.identity.role == mine.identity.role == Role.ISSUER
    assert mode(paths.ca_key) == 0o600
    joined = read.issue(load_or_make_key(tmp_path / "c.key").public_key, Role.WORKER)
    assert mesh.enrol(tmp_path / "d").roots.read(joined).role == Role.WORKER


# Leaving


def no_fatal(text: str) -> None:
    raise AssertionError(text)


async def test_what_was_left_can_be_moved_back(paths: NodePaths) -> None:
    made = enrolment.found(paths, "home")
    key = load_key(paths.key)
    fact = make(key, 1, 1, b"", 1 << 16, "job_submitted", facts_pb2.JobSubmitted(job_id=b"j" * 32))
    store = Store(paths.journal, no_fatal)
    store.open(key.node_id)
    await store.append([fact])
    await store.close()
    paths.peers.write_text("[]")
    kept = paths.data_dir / "node.toml"
    kept.write_text("name = 'anna'\n")
    before = {path.name for path in paths.data_dir.iterdir()} - {kept.name}

    aside = enrolment.leave(paths)
    assert sorted(paths.data_dir.iterdir()) == sorted([aside, kept])
    assert mode(aside) == 0o700
    assert {path.name for path in aside.iterdir()} == before | {"open-jobs.jsonl"}
    assert [json.loads(line)["job_id"] for line in (aside / "open-jobs.jsonl").read_text().splitlines()] == [
        (b"j" * 32).hex()
    ]
    assert enrolment.load(paths) is None
    assert load_or_make_key(paths.key).node_id != key.node_id

    back = enrolment.load(NodePaths(aside))
    assert back is not None
    assert back.identity == made.identity
    again = Store(NodePaths(aside).journal, no_fatal)
    facts, _, _ = again.open(key.node_id)
    assert [one.hash for one in facts] == [fact.hash]
    await again.close()


def test_leaving_no_mesh_says_so(paths: NodePaths) -> None:
    with pytest.raises(KithError) as raised:
        enrolment.leave(paths)
    assert raised.value.code == "not-in-a-mesh"
    assert not list(paths.data_dir.iterdir())


def test_an_interrupted_leaving_is_finished_by_the_next(paths: NodePaths) -> None:
    enrolment.found(paths, "home")
    paths.key.unlink()  # moved before the folder
    aside = enrolment.leave(paths)
    assert [path.name for path in aside.iterdir()] == ["mesh"]
    assert enrolment.load(paths) is None


# Machines


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    here = {"id": "one"}
    monkeypatch.setattr(enrolment, "machine_id", lambda: here["id"])
    return here


def test_a_copied_data_directory_is_refused(paths: NodePaths, machine: dict[str, str]) -> None:
    enrolment.found(paths, "home")
    machine["id"] = "two"
    error = refused(paths)
    assert error.code == "copied-data-directory"
    assert "--moved" in error.remedy


def test_a_moved_data_directory_is_at_home_again(paths: NodePaths, machine: dict[str, str]) -> None:
    made = enrolment.found(paths, "home")
    machine["id"] = "two"
    enrolment.accept_move(paths)
    read = enrolment.load(paths)
    assert read is not None
    assert (read.identity, read.label) == (made.identity, "home")
    machine["id"] = "one"
    assert refused(paths).code == "copied-data-directory"


@pytest.mark.parametrize(("then", "now"), [("", "two"), ("one", "")])
def test_nothing_is_checked_where_a_machine_has_no_id(
    paths: NodePaths, machine: dict[str, str], then: str, now: str
) -> None:
    machine["id"] = then
    enrolment.found(paths, "home")
    machine["id"] = now
    assert enrolment.load(paths) is not None


def test_a_backup_is_remembered_and_survives_a_move(paths: NodePaths, machine: dict[str, str]) -> None:
    made = enrolment.found(paths, "home")
    assert made.backed_up_s() == 0
    before = time.time()
    enrolment.note_backup(paths)
    machine["id"] = "two"
    enrolment.accept_move(paths)
    assert before <= made.backed_up_s() <= time.time()
    assert enrolment.load(paths) is not None


def test_a_node_alone_moves_freely(paths: NodePaths) -> None:
    enrolment.accept_move(paths)
    assert not list(paths.data_dir.iterdir())


# Labels


@pytest.mark.parametrize(
    ("given", "shown"),
    [("home", "home"), ("  a \n b\x1b[31m ", "a b [31m"), ("", "mesh"), ("\0", "mesh"), ("x" * 99, "x" * 64)],
)
def test_a_label_is_short_and_prints(given: str, shown: str) -> None:
    assert enrolment.shown_label(given) == shown
