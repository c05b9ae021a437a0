"""Three real nodes: one is revoked on the issuer, and every node ends at once what the revoked one holds open."""

import asyncio
import time

import grpc
import pytest

from mesh.certificates import Role
from mesh.identity import NodeId
from mesh.wire import engine_pb2, membership_pb2, mesh_pb2, mesh_pb2_grpc
from scripts.daemons import Daemon, formed, until
from tests.security.attackers import Attacker, Place
from tests.security.conftest import Besieged

pytestmark = pytest.mark.timeout(120)

#: From the revocation to the end of everything that the revoked node holds open, anywhere, seconds.
CUT_OFF_S = 2.0


async def seen_alive(daemon: Daemon, node_id: NodeId) -> bool:
    alive = [node.node_id for node in await daemon.nodes() if node.state == membership_pb2.MEMBER_STATE_ALIVE]
    return node_id in alive


async def streaming(attacker: Attacker, place: Place, began: asyncio.Event) -> tuple[grpc.StatusCode, float]:
    """Hold a generation open until it is ended from the other side: how, and when."""
    request = engine_pb2.GenerateRequest(prompt="word " * 30, max_tokens=4000)
    async with attacker.channel(place) as channel:
        call = mesh_pb2_grpc.MeshStub(channel).Generate(mesh_pb2.GenerateCall(request=request), timeout=60)
        try:
            async for _ in call:
                began.set()
        except grpc.aio.AioRpcError as error:
            return error.code(), time.monotonic()
        return await call.code(), time.monotonic()


async def test_a_revoked_node_is_cut_off_by_all_in_the_midst_of_streams(besieged: Besieged) -> None:
    issuer = besieged.start("issuer", Role.ISSUER, pace=20.0)
    first = await Place.of(issuer, besieged.mesh.authority.ca_der)
    seed = ["--seed", f"{first.host}:{first.port}"]
    others = [besieged.start(name, Role.NODE, *seed, pace=20.0) for name in ("second", "third")]
    second, third = [await Place.of(one, first.ca) for one in others]
    await formed([issuer, *others], 40)

    # Whoever stole the third node's disk calls with its key beside the node itself.
    stolen = Attacker(await asyncio.to_thread(besieged.mesh.enrol, others[1].data_dir, Role.NODE))
    started = [asyncio.Event(), asyncio.Event()]
    streams = [
        asyncio.create_task(streaming(stolen, place, event))
        for place, event in zip((first, second), started, strict=True)
    ]
    async with asyncio.timeout(20):
        await asyncio.gather(*(event.wait() for event in started))

    async with issuer.client() as client:
        began = time.monotonic()
        await client.revoke(third.node_id, "stolen")
    ends = await asyncio.gather(*streams)
    assert [code for code, _ in ends] == [grpc.StatusCode.PERMISSION_DENIED] * 2
    assert max(at for _, at in ends) - began < CUT_OFF_S

    async def gone() -> bool:
        return not (await seen_alive(issuer, third.node_id) or await seen_alive(others[0], third.node_id))

    await until(gone, CUT_OFF_S, "the revoked node is out of both views")
    for place in (first, second):
        answer = await stolen.call(place, "CountTokens")
        assert answer.code is grpc.StatusCode.PERMISSION_DENIED
    # The two that are left go on.
    await formed([issuer, others[0]], 20)
