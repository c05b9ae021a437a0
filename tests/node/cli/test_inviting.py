"""Inviting, joining, promoting and revoking as people type it: against a known node, then with real daemons."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from mesh.certificates import Role
from mesh.wire import common_pb2, local_pb2
from node import enrolment
from node.cli import inviting
from node.errors import ExitCode
from node.paths import NodePaths
from scripts.throwaway import ThrowawayMesh
from tests.node.cli.conftest import Kith
from tests.node.cli.local_node import LocalNode, serve
from tests.node.cli.test_through_daemon import kith as run_kith
from tests.node.cli.test_through_daemon import value

if TYPE_CHECKING:
    from scripts.daemons import Daemon

DaemonFactory = Callable[..., "Daemon"]

OPENED = local_pb2.InviteOpened(
    code="7-cactus-violin",
    token="kith1.token",
    addresses=[common_pb2.NodeAddress(host="192.0.2.5", port=7601), common_pb2.NodeAddress(host="fd00::5", port=7601)],
    ttl_s=900,
    uses=1,
    role="node",
    mdns=True,
    mesh_id="abcdef0123456789abcdef0123456789",
    label="home",
)


class Inviter(LocalNode):
    """Answers with what a test says, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[object] = []
        self.opened = OPENED
        self.happened: list[local_pb2.InviteHappened] = []

    def Invite(
        self, request: local_pb2.InviteRequest, context: grpc.ServicerContext
    ) -> Iterator[local_pb2.InviteEvent]:
        self.requests.append(request)
        yield local_pb2.InviteEvent(opened=self.opened)
        for happened in self.happened:
            yield local_pb2.InviteEvent(happened=happened)

    def Promote(self, request: local_pb2.PromoteRequest, context: grpc.ServicerContext) -> local_pb2.PromoteReply:
        self.requests.append(request)
        return local_pb2.PromoteReply(node_id="b" * 32, name="ben", issuers=2)

    def Revoke(self, request: local_pb2.RevokeRequest, context: grpc.ServicerContext) -> local_pb2.RevokeReply:
        self.requests.append(request)
        return local_pb2.RevokeReply(node_id="b" * 32, name="be\x1bn", epoch=3, was_issuer=True, told=2)


@pytest.fixture
def inviter(data_dir: Path) -> Iterator[Inviter]:
    node = Inviter()
    server = serve(data_dir, node)
    yield node
    server.stop(0).wait()


def happened(what: str, reason: str = "", name: str = "", node_id: str = "") -> local_pb2.InviteHappened:
    return local_pb2.InviteHappened(what=what, reason=reason, name=name, node_id=node_id, fingerprint=node_id[:6])


def test_an_invite_shows_the_code_and_then_who_came(kith: Kith, inviter: Inviter) -> None:
    inviter.happened = [happened("joined", "", "lap\x1b[2Jtop", "1253fe" + "0" * 26), happened("closed", "used")]
    done = kith("invite", "--ttl", "2h", "--uses", "3", "--role", "worker")
    assert done.code == ExitCode.OK
    assert inviter.requests == [local_pb2.InviteRequest(ttl_s=7200, uses=3, role="worker")]
    assert "kith join 7-cactus-violin\n" in done.out
    assert "192.0.2.5:7601, [fd00::5]:7601" in done.out
    assert "kith join kith1.token 192.0.2.5:7601" in done.out
    assert "mesh abcdef" in done.out
    assert "fingerprint 1253fe" in done.out
    assert "\x1b[2J" not in done.out


def test_where_mdns_does_not_work_the_address_is_part_of_the_command(kith: Kith, inviter: Inviter) -> None:
    inviter.opened = local_pb2.InviteOpened()
    inviter.opened.CopyFrom(OPENED)
    inviter.opened.mdns = False
    done = kith("invite", "--no-wait")
    assert "kith join 7-cactus-violin 192.0.2.5:7601" in done.out
    assert "Ctrl-C" not in done.out
    assert done.code == ExitCode.OK


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([happened("refused", "secret", "192.0.2.9"), happened("closed", "void")], "void after a wrong try"),
        ([happened("closed", "expired")], "expired"),
    ],
)
def test_an_invite_that_nobody_used_is_no_success(
    kith: Kith, inviter: Inviter, events: list[local_pb2.InviteHappened], said: str
) -> None:
    inviter.happened = events
    done = kith("invite")
    assert done.code == ExitCode.FAILED
    assert said in done.out


def test_an_invite_as_json(kith: Kith, inviter: Inviter) -> None:
    done = kith("invite", "--no-wait", "--json")
    assert done.json["token"] == "kith1.token"
    assert done.json["addresses"] == ["192.0.2.5:7601", "[fd00::5]:7601"]
    inviter.happened = [happened("closed", "used")]
    lines = kith("invite", "--json").out.splitlines()
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("2 h", 7200), ("1d", 86400), (" 5M ", 300)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert inviting._seconds(text) == seconds


@pytest.mark.parametrize(
    "option",
    [("--ttl", "soon"), ("--ttl", "-5m"), ("--ttl", "0s"), ("--ttl", "0"), ("--role", "issuer"), ("--uses", "0")],
)
def test_what_makes_no_sense_is_refused_here(kith: Kith, inviter: Inviter, option: tuple[str, str]) -> None:
    assert kith("invite", *option).code == ExitCode.USAGE
    assert inviter.requests == []


def test_promote_and_revoke_say_what_was_done(kith: Kith, inviter: Inviter) -> None:
    done = kith("promote", "ben")
    assert "ben (bbbbbbbbbbbb) is an issuer now: 2 nodes hold the CA key" in done.out
    assert kith("promote", "ben", "--json").json == {"node_id": "b" * 32, "name": "ben", "issuers": 2}
    done = kith("revoke", "ben", "--reason", "stolen")
    assert "is revoked; 2 linked nodes hear of it now" in done.out
    assert "\x1b" not in done.out
    assert "found a new mesh" in done.err
    assert inviter.requests[-1] == local_pb2.RevokeRequest(node="ben", reason="stolen")
    assert kith("revoke", "ben", "--json").json["epoch"] == 3


def test_a_slip_in_a_code_is_noticed_before_anybody_is_asked(kith: Kith, data_dir: Path) -> None:
    done = kith("join", "7-cactas-violin")
    assert done.code == ExitCode.USAGE
    assert "did you mean cactus" in done.err
    assert not data_dir.exists()


def test_a_secret_can_be_kept_out_of_the_list_of_processes(kith: Kith, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("7-cactas-violin\nmore\n"))
    assert "did you mean cactus" in kith("join", "-").err


def test_join_says_where_nobody_answers(kith: Kith) -> None:
    done = kith("join", "7-cactus-violin", "127.0.0.1:1")
    assert done.code == ExitCode.UNREACHABLE
    assert "kith invite" in done.err


def test_join_under_a_running_node_is_refused(daemon: DaemonFactory) -> None:
    node = daemon(alone=True)
    asyncio.run(node.ready(engine=False))
    said = run_kith(node, "join", "7-cactus-violin", "127.0.0.1:1", code=ExitCode.CANNOT_START)
    assert " down`" in said


@pytest.mark.slow
def test_a_machine_is_added_with_two_commands(daemon: DaemonFactory, tmp_path: Path) -> None:
    mesh = ThrowawayMesh("home")
    mesh.enrol(tmp_path / "anna", Role.ISSUER)
    anna = daemon(name="anna", alone=True)
    asyncio.run(anna.ready(engine=False))
    command = [sys.executable, "-m", "node.cli.main", "--data-dir", str(anna.data_dir), "invite"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as talk:
        assert talk.stdout is not None
        shown = ""
        while "waiting" not in shown:
            shown += talk.stdout.readline()
        code, address = re.findall(r"kith join (\S+) (\S+)\n", shown)[0]
        ben = daemon(name="ben", alone=True)
        asyncio.run(ben.ready(engine=False))
        run_kith(ben, "down")
        joined = run_kith(ben, "join", code, address)
        rest = talk.stdout.read()
        assert talk.wait(20) == ExitCode.OK
    member = enrolment.load(NodePaths(ben.data_dir))
    assert member is not None
    for fingerprint in (mesh.mesh_id[:6], member.key.node_id[:6]):
        assert fingerprint in joined
    assert f"fingerprint {member.key.node_id[:6]}" in rest
    assert f"kith --data-dir {ben.data_dir} up" in joined
    assert code not in joined
    ben.start()

    async def linked() -> None:
        from scripts.daemons import formed

        await formed([anna, ben])

    asyncio.run(linked())
    assert value(ben, "status")["mesh"]["label"] == "home"


@pytest.mark.slow
def test_ctrl_c_ends_the_invite(daemon: DaemonFactory, tmp_path: Path) -> None:
    ThrowawayMesh().enrol(tmp_path / "anna", Role.ISSUER)
    anna = daemon(name="anna", alone=True)
    asyncio.run(anna.ready(engine=False))
    command = [sys.executable, "-m", "node.cli.main", "--data-dir", str(anna.data_dir), "invite"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as talk:
        assert talk.stdout is not None
        shown = ""
        while "waiting" not in shown:
            shown += talk.stdout.readline()
        talk.send_signal(signal.SIGINT)
        _, said = talk.communicate(timeout=20)
        assert (talk.returncode, said) == (
            ExitCode.INTERRUPTED,
            "kith: the invite was ended: nobody can use it any more\n",
        )
    code, address = re.findall(r"kith join (\S+) (\S+)\n", shown)[0]
    ben = daemon(name="ben", alone=True)
    asyncio.run(ben.ready(engine=False))
    run_kith(ben, "down")

    async def closed() -> bool:
        host, _, port = address.rpartition(":")
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except ConnectionRefusedError:
            return True
        writer.close()
        return False

    async def soon() -> None:
        from scripts.daemons import until

        await until(closed, 10.0, "the join port is closed")

    asyncio.run(soon())
    assert "kith invite" in run_kith(ben, "join", code, address, code=ExitCode.UNREACHABLE)
