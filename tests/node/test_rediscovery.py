"""Discovery that begins anew on another network, through real multicast on loopback."""

import asyncio
from ipaddress import ip_address

import pytest

from node.discovery import Discovery
from node.interfaces import Interface
from node.listening import Network
from node.rediscovery import Rediscovery
from tests.node.test_discovery import LOG, LOOPBACK, MESH, Nodes, needs_multicast, nodes, take

__all__ = ["nodes"]

PORT = 7001
NOWHERE = Network([("192.0.2.1", PORT)], [Interface("eth9", 9999, (ip_address("192.0.2.1"),))])
HERE = Network([("127.0.0.1", PORT)], [LOOPBACK])


@needs_multicast
async def test_who_starts_without_a_network_is_found_once_it_is_on_one(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    at, found = NOWHERE, asyncio.Queue[tuple[str, int]]()
    begun: list[list[str]] = []
    tried = asyncio.Event()

    def now() -> Network:
        if begun:
            tried.set()
        return at

    def begin(network: Network) -> Discovery:
        hosts = [host for host, _ in network.addresses]
        begun.append(hosts)
        return Discovery(
            "n",
            PORT,
            hosts,
            network.interfaces,
            lambda host, port: found.put_nowait((host, port)),
            LOG,
            MESH,
            service_type=nodes.service_type,
        )

    _, found_by_other = await nodes.start(7002)
    discovery = Rediscovery(now, begin, look_s=0.01)
    running = asyncio.create_task(discovery.run())
    try:
        await asyncio.wait_for(tried.wait(), 60)
        assert not discovery.works
        at = HERE
        assert await take(found_by_other, 1) == [("127.0.0.1", PORT)]
        assert await take(found, 1) == [("127.0.0.1", 7002)]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await discovery.stop()
    assert begun == [["192.0.2.1"], ["127.0.0.1"]], "anew for another network, and only then"
