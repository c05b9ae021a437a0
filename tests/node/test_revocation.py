"""A node is revoked in a mesh of real processes over mTLS: cut off on all nodes within two seconds, and for good."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.certificates import Role
from mesh.wire import engine_pb2, local_pb2, work_pb2
from node.client import NodeClient
from node.errors import KithError
from scripts.daemons import Daemon, end_all, until
from scripts.throwaway import ThrowawayMesh

#: From `revoke` to cut-off on all nodes; the yardstick of issue and bench.
CUT_OFF_WITHIN_S = 2.0


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Daemon]]:
    """An issuer and two nodes that see each other."""
    mesh = ThrowawayMesh()
    mesh.enrol(tmp_path / "a", Role.ISSUER)
    given = ["--engine", "echo", "--listen", "127.0.0.1:0", "--threads", "1", "--no-mdns"]
    started = [Daemon(tmp_path / "a", given, name="a", mesh=mesh)]
    try:
        started[0].start()
        first = (await started[0].ready()).addresses[0]
        for name in ("b", "c"):
            started.append(Daemon(tmp_path / name, ["--seed", f"{first.host}:{first.port}", *given], name, mesh=mesh))
            started[-1].start()
        for one in started:
            await one.ready()

        async def whole() -> bool:
            return all([(await one.status()).members_alive == 3 for one in started])

        await until(whole, 20.0, "three nodes")
        yield started
    finally:
        assert not end_all(started)


async def test_a_revoked_node_is_cut_off_on_all_nodes_at_once_and_for_good(nodes: list[Daemon]) -> None:
    issuer, other, victim = nodes
    victim_id = (await victim.status()).node_id
    began = time.monotonic()
    async with issuer.client() as client:
        await client.revoke(victim_id, "it was stolen")

    async def cut_off() -> bool:
        seen = [await one.status() for one in (issuer, other)]
        return all(status.members_alive == 2 and status.denied for status in seen)

    await until(cut_off, 10.0, "cut off")
    took_s = time.monotonic() - began
    assert took_s <= CUT_OFF_WITHIN_S, f"{took_s:.2f} s"

    async def withdrawn() -> local_pb2.StatusReply | None:
        status = await victim.status()
        return status if status.revoked else None

    status = await until(withdrawn, 5.0, "the revoked node knows why")
    assert (status.revoked, status.role, status.members_alive) == ("it was stolen", "revoked", 1)
    async with victim.client() as client:
        await refuses_work(client)
    victim.end()
    victim.start()
    assert (await until(withdrawn, 20.0, "it still knows")).members_alive == 1
    for one in (issuer, other):
        assert (await one.status()).members_alive == 2
        [denied] = [info for info in await one.nodes() if info.denied]
        assert (denied.node_id, denied.name, denied.denied_reason) == (victim_id, "c", "it was stolen")


async def refuses_work(client: NodeClient) -> None:
    request = work_pb2.JobRequest(ask=work_pb2.AskRequest(question="Who are you?", panel=1))
    with pytest.raises(KithError) as refused:
        await client.submit(request)
    assert refused.value.code == "node-denied"
    chat = engine_pb2.GenerateRequest(messages=[engine_pb2.ChatMessage(role="user", content="Who are you?")])
    with pytest.raises(KithError, match="was revoked: it was stolen"):
        async for _ in client.chat(local_pb2.ChatRequest(request=chat)):
            pass
