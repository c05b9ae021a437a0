"""Membership on running nodes: invites at the local door, renewal and promotion over mTLS, revocation. Real daemons."""

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest

from mesh.certificates import Role
from mesh.identity import NodeId
from mesh.wire import local_pb2, mesh_pb2, mesh_pb2_grpc
from node import enrolment
from node.credentials import Credentials
from node.errors import ExitCode, KithError
from node.handshake import identify
from node.joining.codes import parse
from node.joining.joiner import join
from node.keys import load_or_make_key
from node.listening import prepare_folders
from node.paths import NodePaths
from scripts.daemons import Daemon, formed, until
from scripts.throwaway import ThrowawayMesh
from tests.conftest import DaemonFactory
from tests.node.joining.doors import LOG
from tests.node.test_discovery import LOOPBACK

pytestmark = pytest.mark.slow

DAY_S = 86_400.0


async def seed_of(node: Daemon) -> str:
    address = (await node.status()).addresses[0]
    return f"{address.host}:{address.port}"


async def founded(daemon: DaemonFactory, tmp_path: Path, mesh: ThrowawayMesh) -> Daemon:
    """A running issuer."""
    mesh.enrol(tmp_path / "founder", Role.ISSUER)
    founder = daemon(name="founder", alone=True)
    await founder.ready(engine=False)
    return founder


async def invited(founder: Daemon, request: local_pb2.InviteRequest) -> local_pb2.InviteOpened:
    """A detached invite."""
    request.detached = True
    async with founder.client() as client:
        [event] = [event async for event in client.invite(request)]
    return event.opened


async def join_at(opened: local_pb2.InviteOpened, data_dir: Path, secret: str = "") -> enrolment.Enrolment:
    prepare_folders(NodePaths(data_dir))
    door = opened.addresses[0]
    where = f"{door.host}:{door.port}"
    joined = await join(NodePaths(data_dir), parse(secret or opened.code), where, data_dir.name, [LOOPBACK], LOG)
    return joined.enrolment


async def test_who_joined_links_and_is_seen_by_the_inviter(daemon: DaemonFactory, tmp_path: Path) -> None:
    founder = await founded(daemon, tmp_path, ThrowawayMesh())
    async with founder.client() as client:
        events = client.invite(local_pb2.InviteRequest())
        opened = (await anext(events)).opened
        member = await join_at(opened, tmp_path / "ben")
        happened = [event.happened async for event in events]
    assert [(one.what, one.reason) for one in happened] == [("joined", ""), ("closed", "used")]
    assert (happened[0].name, happened[0].node_id) == ("ben", member.key.node_id)
    assert happened[0].fingerprint == member.key.node_id[:6]
    # No seed and no mDNS: what the welcome said is enough.
    ben = daemon(name="ben", alone=True)
    await formed([founder, ben])
    async with founder.client() as client:
        assert (await client.status()).mesh.issuers == 1
    async with ben.client() as client:
        with pytest.raises(KithError) as refused:
            await anext(client.invite(local_pb2.InviteRequest()))
    assert refused.value.code == "not-an-issuer"
    assert refused.value.exit_code is ExitCode.UNAVAILABLE
    assert "founder" in refused.value.remedy


async def test_an_invite_ends_with_whoever_waits_for_it_unless_detached(daemon: DaemonFactory, tmp_path: Path) -> None:
    founder = await founded(daemon, tmp_path, ThrowawayMesh())
    kept = await invited(founder, local_pb2.InviteRequest(uses=2, role="worker", no_code=True))
    assert kept.code == ""
    async with founder.client() as client:
        events = client.invite(local_pb2.InviteRequest())
        opened = (await anext(events)).opened
        await events.aclose()

    async def gone() -> bool:
        try:
            await join_at(opened, tmp_path / "late")
        except KithError as error:
            return error.code == "invite-unknown"
        raise AssertionError("an invite that was ended let somebody in")

    await until(gone, 10.0, "the invite ended with its stream")
    worker = await join_at(kept, tmp_path / "worker", kept.token)
    assert worker.identity.role is Role.WORKER


async def test_the_local_door_refuses_what_makes_no_sense(daemon: DaemonFactory, tmp_path: Path) -> None:
    founder = await founded(daemon, tmp_path, ThrowawayMesh())
    alone = daemon(name="alone", alone=True)
    await alone.ready(engine=False)
    async with founder.client() as client:
        for request in (
            local_pb2.InviteRequest(role="issuer"),
            local_pb2.InviteRequest(role="king"),
            local_pb2.InviteRequest(ttl_s=1e9),
            local_pb2.InviteRequest(uses=1000),
        ):
            with pytest.raises(KithError) as refused:
                await anext(client.invite(request))
            assert refused.value.code == "bad-request"
        for name in ("nobody", "", "f"):
            with pytest.raises(KithError) as refused:
                await client.revoke(name)
            assert refused.value.code == "node-unknown"
        with pytest.raises(KithError, match="does not revoke itself"):
            await client.revoke("founder")
        with pytest.raises(KithError, match="issuer already"):
            await client.promote("founder")
    async with alone.client() as client:
        for ask in (client.promote, client.revoke):
            with pytest.raises(KithError) as refused:
                await ask("founder")
            assert refused.value.code == "not-in-a-mesh"


async def test_an_old_certificate_is_renewed_while_the_node_runs(daemon: DaemonFactory, tmp_path: Path) -> None:
    mesh = ThrowawayMesh()
    founder = await founded(daemon, tmp_path, mesh)
    before = mesh.enrol(tmp_path / "ben", starts_s=-25 * DAY_S)
    ben = daemon("--seed", await seed_of(founder), name="ben", alone=True)
    await formed([founder, ben])

    async def renewed() -> bool:
        return (await ben.status()).mesh.certificate_ends_ms > 1000 * (before.identity.not_after + 20 * DAY_S)

    await until(renewed, 30.0, "the certificate is renewed")
    after = enrolment.load(NodePaths(ben.data_dir))
    assert after is not None
    assert after.key.node_id == before.key.node_id
    assert after.identity.role is Role.NODE
    await formed([founder, ben])


async def test_a_promoted_node_lets_others_in(daemon: DaemonFactory, tmp_path: Path) -> None:
    mesh = ThrowawayMesh()
    founder = await founded(daemon, tmp_path, mesh)
    seed = await seed_of(founder)
    mesh.enrol(tmp_path / "ben")
    mesh.enrol(tmp_path / "worker", Role.WORKER)
    ben = daemon("--seed", seed, name="ben", alone=True)
    worker = daemon("--seed", seed, name="worker", alone=True)
    await formed([founder, ben, worker])
    async with founder.client() as client:
        with pytest.raises(KithError, match="only a node becomes an issuer"):
            await client.promote("worker")
        done = await client.promote("ben")
        assert (done.name, done.issuers) == ("ben", 2)
        with pytest.raises(KithError, match="issuer already"):
            await client.promote("ben")
    assert (await ben.status()).mesh.role == "issuer"
    assert NodePaths(ben.data_dir).ca_key.stat().st_mode & 0o777 == 0o600
    opened = await invited(ben, local_pb2.InviteRequest())
    joined = await join_at(opened, tmp_path / "carla")
    assert joined.mesh_id == mesh.mesh_id
    await formed([founder, ben, worker])


async def test_a_fourth_issuer_is_refused(daemon: DaemonFactory, tmp_path: Path) -> None:
    mesh = ThrowawayMesh()
    founder = await founded(daemon, tmp_path, mesh)
    seed = await seed_of(founder)
    names = ["ben", "carla", "dora"]
    for name in names:
        mesh.enrol(tmp_path / name)
    others = [daemon("--seed", seed, name=name, alone=True) for name in names]
    await formed([founder, *others])
    async with founder.client() as client:
        asked = await asyncio.gather(*(client.promote(name) for name in names), return_exceptions=True)
    # One after the other, also when asked at once.
    [(refused, left_out)] = [
        (answer, other) for answer, other in zip(asked, others, strict=True) if isinstance(answer, KithError)
    ]
    assert refused.code == "too-many-issuers"
    assert not NodePaths(left_out.data_dir).ca_key.exists()
    # Nor does it take the key from an issuer that counts otherwise.
    address = (await left_out.status()).addresses[0]
    credentials = Credentials(mesh.enrol(tmp_path / "caller", Role.ISSUER))
    there = await identify(credentials, address.host, address.port, 10.0)

    async def all_are_known() -> bool:
        return (await left_out.status()).mesh.issuers == 3

    await until(all_are_known, 10.0, "it has heard of all three")
    async with credentials.channel(address.host, address.port, there) as channel:
        stub: mesh_pb2_grpc.MeshAsyncStub = mesh_pb2_grpc.MeshStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as not_taken:
            await stub.TakeAuthority(mesh_pb2.TakeAuthorityRequest(ca_key=_der(mesh)), timeout=10)
    assert not_taken.value.code() is grpc.StatusCode.ABORTED
    assert not NodePaths(left_out.data_dir).ca_key.exists()
    assert "enough nodes hold it" in (left_out.data_dir / "logs" / "kith.log").read_text()


async def test_only_an_issuer_hands_the_ca_key_over(daemon: DaemonFactory, tmp_path: Path) -> None:
    """Another member, with the true key even, is refused; so is a key of another mesh from an issuer."""
    mesh, other = ThrowawayMesh(), ThrowawayMesh()
    mesh.enrol(tmp_path / "ben")
    ben = daemon(name="ben", alone=True)
    status = await ben.ready(engine=False)
    address = status.addresses[0]
    true_key, false_key = (_der(one) for one in (mesh, other))

    async def hand_over(role: Role, ca_key: bytes) -> grpc.StatusCode:
        credentials = Credentials(mesh.enrol(tmp_path / f"caller-{role}", role))
        there = await identify(credentials, address.host, address.port, 10.0)
        async with credentials.channel(address.host, address.port, there) as channel:
            stub: mesh_pb2_grpc.MeshAsyncStub = mesh_pb2_grpc.MeshStub(channel)
            try:
                await stub.TakeAuthority(mesh_pb2.TakeAuthorityRequest(ca_key=ca_key), timeout=10)
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    for role in (Role.NODE, Role.WORKER, Role.CLIENT):
        assert await hand_over(role, true_key) is grpc.StatusCode.PERMISSION_DENIED
    for junk in (false_key, b"", b"junk"):
        assert await hand_over(Role.ISSUER, junk) is grpc.StatusCode.ABORTED
    assert (await ben.status()).mesh.role == "node"
    assert not NodePaths(ben.data_dir).ca_key.exists()
    assert await hand_over(Role.ISSUER, true_key) is grpc.StatusCode.OK
    assert (await ben.status()).mesh.role == "issuer"


async def test_a_revoked_node_is_cut_off_and_does_not_come_back(daemon: DaemonFactory, tmp_path: Path) -> None:
    mesh = ThrowawayMesh()
    founder = await founded(daemon, tmp_path, mesh)
    seed = await seed_of(founder)
    for name in ("ben", "carla"):
        mesh.enrol(tmp_path / name)
    ben, carla = (daemon("--seed", seed, name=name, alone=True) for name in ("ben", "carla"))
    await formed([founder, ben, carla])
    stolen = load_id(carla)
    async with founder.client() as client:
        done = await client.revoke(stolen[:8], "stolen\nfrom the car")
        assert (done.node_id, done.name, done.epoch, done.was_issuer) == (stolen, "carla", 1, False)
        assert done.told == 1, "ben, and not the thief"
        with pytest.raises(KithError, match="revoked already") as refused:
            await client.revoke(stolen[:8])  # not by its name, which may not have come before it was cut off
        assert refused.value.code == "not-revoked"

    async def cut() -> bool:
        return all([(await node.status()).members_alive == 2 for node in (founder, ben)])

    await until(cut, 10.0, "both others have cut it off")
    # Nor does an invite bring its key back, whoever gave it.
    carla.end()
    opened = await invited(founder, local_pb2.InviteRequest())
    with pytest.raises(KithError) as refused:
        await join_at(opened, carla.data_dir)
    assert refused.value.code == "node-revoked"
    # A certificate that is still valid gets no new one.
    credentials = Credentials(mesh.enrol(carla.data_dir))
    door = (await founder.status()).addresses[0]
    there = await identify(credentials, door.host, door.port, 10.0)
    async with credentials.channel(door.host, door.port, there) as channel:
        stub: mesh_pb2_grpc.MeshAsyncStub = mesh_pb2_grpc.MeshStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as denied:
            await stub.Renew(mesh_pb2.RenewRequest(), timeout=10)
        assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
    # The machine joined anew and has its name again: who is cut off already is not meant by it.
    mesh.enrol(tmp_path / "anew")
    anew = daemon("--seed", seed, "--name", "carla", name="anew", alone=True)
    await formed([founder, ben, anew])
    async with founder.client() as client:
        assert (await client.revoke("carla")).node_id == load_id(anew)


async def test_an_issuer_that_was_revoked_lets_nobody_in(daemon: DaemonFactory, tmp_path: Path) -> None:
    """It still has the key, and its owner may not have heard."""
    mesh = ThrowawayMesh()
    founder = await founded(daemon, tmp_path, mesh)
    mesh.enrol(tmp_path / "ben", Role.ISSUER)
    ben = daemon("--seed", await seed_of(founder), name="ben", alone=True)
    await formed([founder, ben])
    async with founder.client() as client:
        await client.revoke(load_id(ben), "stolen")

    async def heard() -> bool:
        return bool((await ben.status()).revoked)

    await until(heard, 10.0, "ben hears of it")
    async with ben.client() as client:
        with pytest.raises(KithError) as refused:
            await invited(ben, local_pb2.InviteRequest())
        assert refused.value.code == "node-denied"
        for asked in (client.promote("founder"), client.revoke("founder")):
            with pytest.raises(KithError) as refused:
                await asked
            assert refused.value.code == "node-denied"


async def test_a_member_that_is_no_issuer_renews_nobody(daemon: DaemonFactory, tmp_path: Path) -> None:
    mesh = ThrowawayMesh()
    mesh.enrol(tmp_path / "ben")
    ben = daemon(name="ben", alone=True)
    address = (await ben.ready(engine=False)).addresses[0]
    credentials = Credentials(mesh.enrol(tmp_path / "caller"))
    there = await identify(credentials, address.host, address.port, 10.0)
    async with credentials.channel(address.host, address.port, there) as channel:
        stub: mesh_pb2_grpc.MeshAsyncStub = mesh_pb2_grpc.MeshStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Renew(mesh_pb2.RenewRequest(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def load_id(node: Daemon) -> NodeId:
    return load_or_make_key(NodePaths(node.data_dir).key).node_id


def _der(mesh: ThrowawayMesh) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return mesh.authority.private_key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
