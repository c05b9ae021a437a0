"""Making, leaving and restoring a mesh: in this process, with no daemon; then with real ones."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mesh.certificates import Role
from node import ca_backup as backups
from node import enrolment
from node.errors import ExitCode
from node.keys import load_or_make_key
from node.paths import NodePaths
from scripts.throwaway import ThrowawayMesh
from tests.node.cli.conftest import Kith
from tests.node.cli.test_through_daemon import kith as run_kith
from tests.node.cli.test_through_daemon import value

if TYPE_CHECKING:
    from scripts.daemons import Daemon

PASSPHRASE = "correct 怎么办 battery"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "SCRYPT_N", 1 << 8)


@pytest.fixture
def passphrase(tmp_path: Path) -> str:
    file = tmp_path / "passphrase"
    file.write_text(f"{PASSPHRASE}\nanother line\n", encoding="utf-8")
    return str(file)


def test_init_makes_a_mesh_and_says_what_is_next(kith: Kith, data_dir: Path) -> None:
    done = kith("init", "--label", "our\x1b room")
    assert done.code == ExitCode.OK
    enrolled = enrolment.load(NodePaths(data_dir))
    assert enrolled is not None
    assert enrolled.authority is not None
    assert f"mesh 'our room' ({enrolled.mesh_id[:12]})" in done.out
    for command in ("up", "invite", "ca backup FILE"):
        assert f"kith --data-dir {data_dir} {command}" in done.out


def test_init_as_json(kith: Kith, data_dir: Path) -> None:
    made = kith("init", "--json").json
    enrolled = enrolment.load(NodePaths(data_dir))
    assert enrolled is not None
    assert made == {
        "mesh_id": enrolled.mesh_id,
        "label": os.uname().nodename,
        "node_id": enrolled.key.node_id,
        "role": "issuer",
    }


def test_init_twice_is_refused(kith: Kith, data_dir: Path) -> None:
    kith("init")
    before = (data_dir / "mesh" / "ca.pem").read_bytes()
    again = kith("init")
    assert again.code == ExitCode.USAGE
    assert "is in a mesh already" in again.err
    assert f"kith --data-dir {data_dir} leave" in again.err
    assert (data_dir / "mesh" / "ca.pem").read_bytes() == before


def test_leave_moves_everything_aside(kith: Kith, data_dir: Path) -> None:
    mine = ThrowawayMesh().enrol(data_dir)
    left = kith("leave", "--json").json
    assert left["left"] is True
    aside = Path(left["moved_to"])
    back = enrolment.load(NodePaths(aside))
    assert back is not None
    assert back.identity == mine.identity
    assert enrolment.load(NodePaths(data_dir)) is None


def test_leave_without_a_mesh(kith: Kith, data_dir: Path) -> None:
    done = kith("leave")
    assert done.code == ExitCode.USAGE
    assert "is in no mesh" in done.err
    assert not data_dir.exists()


def test_a_lone_issuer_leaves_by_force_only(kith: Kith, data_dir: Path) -> None:
    kith("init")
    refused = kith("leave")
    assert refused.code == ExitCode.UNAVAILABLE
    assert "holds the CA key" in refused.err
    assert "kith ca backup" in refused.err
    assert enrolment.load(NodePaths(data_dir)) is not None
    assert "moved back, it is a member again" in kith("leave", "--force").out
    assert enrolment.load(NodePaths(data_dir)) is None


def test_a_copied_data_directory_does_not_start(kith: Kith, data_dir: Path) -> None:
    kith("init")
    about = data_dir / "mesh" / "mesh.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"machine": "0" * 64}))
    for command in (["up", "--engine", "echo"], ["ca", "backup", str(data_dir / "b"), "--passphrase-file", "/x"]):
        done = kith(*command)
        assert done.code == ExitCode.CANNOT_START
        assert "comes from another machine" in done.err
        assert f"kith --data-dir {data_dir} up --moved" in done.err
    assert kith("leave", "--force").code == ExitCode.OK


# The CA in a drawer


def test_backup_and_restore(kith: Kith, data_dir: Path, tmp_path: Path, passphrase: str) -> None:
    made = kith("init", "--label", "home", "--json").json
    file = tmp_path / "ca.backup"
    said = kith("ca", "backup", str(file), "--passphrase-file", passphrase)
    assert said.code == ExitCode.OK
    assert f"kith ca restore {file}" in said.out
    assert PASSPHRASE not in said.out
    assert file.stat().st_mode & 0o777 == 0o600
    enrolled = enrolment.load(NodePaths(data_dir))
    assert enrolled is not None
    assert enrolled.backed_up_s() > 0

    kith("leave", "--force")
    restored = kith("ca", "restore", str(file), "--passphrase-file", passphrase, "--json").json
    assert restored["mesh_id"] == made["mesh_id"]
    assert (restored["label"], restored["role"]) == ("home", "issuer")
    assert restored["node_id"] != made["node_id"]


def test_a_backup_replaces_no_file(kith: Kith, tmp_path: Path, passphrase: str) -> None:
    kith("init")
    file = tmp_path / "ca.backup"
    file.write_text("precious")
    done = kith("ca", "backup", str(file), "--passphrase-file", passphrase)
    assert done.code == ExitCode.BAD_INPUT
    assert "can not be written" in done.err
    assert file.read_text() == "precious"


@pytest.mark.parametrize("content", [None, "", "\nsecond line", "\xff" * 5000])
def test_a_passphrase_file_that_is_none(kith: Kith, tmp_path: Path, content: str | None) -> None:
    kith("init")
    if content is not None:
        (tmp_path / "pass").write_text(content, encoding="latin-1")
    done = kith("ca", "backup", str(tmp_path / "b"), "--passphrase-file", str(tmp_path / "pass"))
    assert done.code in (ExitCode.USAGE, ExitCode.BAD_INPUT)
    assert not (tmp_path / "b").exists()


def test_a_wrong_passphrase_is_said(kith: Kith, data_dir: Path, tmp_path: Path, passphrase: str) -> None:
    kith("init")
    kith("ca", "backup", str(tmp_path / "b"), "--passphrase-file", passphrase)
    kith("leave", "--force")
    Path(passphrase).write_text("something else")
    done = kith("ca", "restore", str(tmp_path / "b"), "--passphrase-file", passphrase)
    assert done.code == ExitCode.BAD_INPUT
    assert "does not open this backup" in done.err
    assert not (data_dir / "mesh").exists()


def test_who_is_no_issuer_has_no_ca(kith: Kith, data_dir: Path, tmp_path: Path, passphrase: str) -> None:
    ThrowawayMesh().enrol(data_dir)
    done = kith("ca", "backup", str(tmp_path / "b"), "--passphrase-file", passphrase)
    assert done.code == ExitCode.USAGE
    assert "does not hold the CA key" in done.err


def test_a_script_without_a_terminal_is_told_of_the_option(kith: Kith, tmp_path: Path) -> None:
    kith("init")
    done = kith("ca", "backup", str(tmp_path / "b"))
    assert done.code == ExitCode.USAGE
    assert "--passphrase-file" in done.err


def test_a_passphrase_is_asked_for_twice_and_never_shown(kith: Kith, data_dir: Path, tmp_path: Path) -> None:
    kith("init", "--label", "home")
    keyboard, terminal = pty.openpty()
    command = [sys.executable, "-m", "node.cli.main", "--data-dir", str(data_dir), "ca", "backup", str(tmp_path / "b")]
    with subprocess.Popen(
        command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as asking:
        assert asking.stderr is not None
        seen = b""
        for asked in (b"Passphrase for mesh 'home'", b"Repeat for confirmation"):
            while asked not in seen or not seen.endswith(b": "):
                piece = os.read(asking.stderr.fileno(), 4096)
                assert piece, seen
                seen += piece
            seen = b""
            os.write(keyboard, f"{PASSPHRASE}\n".encode())
        out, err = asking.communicate(timeout=120)
    os.set_blocking(keyboard, False)
    try:
        echoed = os.read(keyboard, 4096)
    except BlockingIOError:
        echoed = b""
    os.close(keyboard)
    os.close(terminal)
    assert asking.returncode == 0, err
    for shown in (echoed, out, err):
        assert b"battery" not in shown
    assert backups.mesh_in((tmp_path / "b").read_bytes())[1] == "home"


# With real daemons

DaemonFactory = Callable[..., "Daemon"]


def down(node: Daemon) -> None:
    run_kith(node, "down")
    assert node.process is not None
    assert node.process.wait(20) == 0


def test_nothing_changes_under_a_running_node(daemon: DaemonFactory) -> None:
    node = daemon(alone=True)
    asyncio.run(node.ready(engine=False))
    assert value(node, "status")["mesh"] is None
    assert "runs alone" in run_kith(node, "status")
    assert "runs already" in run_kith(node, "init", code=ExitCode.CANNOT_START)
    assert not NodePaths(node.data_dir).mesh.exists()


@pytest.mark.slow
def test_the_life_of_a_founder(daemon: DaemonFactory, tmp_path: Path, passphrase: str) -> None:
    node = daemon(name="anna", alone=True)
    asyncio.run(node.ready())
    assert "this node is in no mesh" in node.output.read_text(encoding="utf-8")
    alone = value(node, "status")
    run_kith(node, "knowledge", "add", "The key hangs behind the door.")
    down(node)

    made = value(node, "init", "--label", "home")
    assert made["node_id"] == alone["node_id"]
    node.output.unlink()
    node.start()
    status = asyncio.run(node.ready())
    assert (status.mesh.mesh_id, status.mesh.label, status.mesh.role) == (made["mesh_id"], "home", "issuer")
    assert status.mesh.issuers == 1
    assert "home" in run_kith(node, "status")
    assert "key hangs" in run_kith(node, "knowledge", "search", "key")  # what it did alone stays
    assert "alone holds the CA key" in node.output.read_text(encoding="utf-8")
    assert "no other node is known" in run_kith(node, "leave", code=ExitCode.UNAVAILABLE)

    run_kith(node, "ca", "backup", str(tmp_path / "b"), "--passphrase-file", passphrase)
    assert value(node, "status")["mesh"]["backed_up_ms"] > 0
    said = run_kith(node, "status")
    assert "alone holds the CA key" in said, "a backup renews nobody"
    assert "kith ca backup" not in said

    run_kith(node, "leave", "--force")  # stops it
    assert node.process is not None
    assert node.process.wait(10) == 0
    node.output.unlink()
    node.start()
    fresh = asyncio.run(node.ready())
    assert not fresh.HasField("mesh")
    assert fresh.node_id != alone["node_id"]
    assert value(node, "knowledge", "search", "key")["hits"] == []


@pytest.mark.slow
def test_a_moved_data_directory_starts_when_it_is_said(daemon: DaemonFactory) -> None:
    node = daemon()
    asyncio.run(node.ready(engine=False))
    down(node)
    about = NodePaths(node.data_dir).about_mesh
    about.write_text(json.dumps(json.loads(about.read_text()) | {"machine": "0" * 64}))
    node.arguments, node.mesh = [*node.arguments, "--moved"], None
    node.start()
    assert asyncio.run(node.ready(engine=False)).mesh.role == "node"
    assert json.loads(about.read_text())["machine"] != "0" * 64


@pytest.mark.slow
def test_what_a_node_did_alone_becomes_known_to_the_mesh_it_joins(daemon: DaemonFactory) -> None:
    founder = daemon(name="anna", alone=True)
    asyncio.run(founder.ready())
    down(founder)
    run_kith(founder, "init")
    founder.start()
    asyncio.run(founder.ready())
    host = value(founder, "status")["addresses"][0]

    joining = daemon("--seed", host, name="ben", alone=True)
    asyncio.run(joining.ready())
    run_kith(joining, "knowledge", "add", "The ladder stands in the shed.")
    down(joining)
    issuer = enrolment.load(NodePaths(founder.data_dir))
    assert issuer is not None
    paths = NodePaths(joining.data_dir)
    before = load_or_make_key(paths.key)
    enrolment.enrol(paths, issuer.roots.ders, issuer.issue(before.public_key, Role.NODE), issuer.label)
    joining.start()

    async def known() -> list[str]:
        from scripts.daemons import formed, until

        await formed([founder, joining])

        async def found() -> list[str] | None:
            async with founder.client() as client:
                hits = await client.search_knowledge("ladder", 5)
            return [hit.author_id for hit in hits] or None

        return await until(found, 30, "the founder knows what the other did alone")

    assert asyncio.run(known()) == [before.node_id]


@pytest.mark.slow
def test_one_of_two_issuers_leaves_freely_and_the_other_is_then_the_last(daemon: DaemonFactory, tmp_path: Path) -> None:
    mesh = ThrowawayMesh()
    for name in ("anna", "ben"):
        mesh.enrol(tmp_path / name, Role.ISSUER)
    anna = daemon(name="anna", alone=True)
    asyncio.run(anna.ready(engine=False))
    ben = daemon("--seed", value(anna, "status")["addresses"][0], name="ben", alone=True)

    async def knows(node: Daemon, issuers: int) -> None:
        from scripts.daemons import until

        async def probe() -> bool:
            return (await node.status()).mesh.issuers == issuers

        await until(probe, 30, f"{node.label} knows of {issuers} issuers")

    asyncio.run(ben.ready(engine=False))
    for node in (anna, ben):
        asyncio.run(knows(node, 2))
        assert "alone holds the CA key" not in run_kith(node, "status")
    assert "left" in run_kith(ben, "leave")
    asyncio.run(knows(anna, 1))
    assert "alone holds the CA key" in run_kith(anna, "status")
    assert "no other node is known" in run_kith(anna, "leave", code=ExitCode.UNAVAILABLE)
