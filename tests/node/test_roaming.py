"""Discovery on a machine whose networks change, through real multicast on loopback."""

import asyncio
import logging
import secrets
from functools import partial

import pytest

from node.discovery import Discovery
from node.interfaces import Place
from node.roaming import Roaming
from scripts.daemons import until
from tests.node.test_discovery import FOUND_WITHIN_S, LOOPBACK, MESH, needs_multicast

LOG = logging.getLogger("test.roaming")
NOWHERE: Place = ([], [])


class Mover:
    """A node that roams, and one that stays and reports whom it finds."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.found: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        service_type = f"_kt{secrets.token_hex(4)}._tcp.local."
        made = partial(
            Discovery, "mover", 7001, on_found=lambda *_: None, log=LOG, mesh_id=MESH, service_type=service_type
        )
        self.roaming = Roaming(lambda: self.place, made, LOG, look_s=0.01)
        found = self.found
        self._stays = Discovery(
            "stays",
            7002,
            ["127.0.0.1"],
            [LOOPBACK],
            lambda host, port: found.put_nowait((host, port)),
            LOG,
            MESH,
            service_type=service_type,
        )

    async def __aenter__(self) -> "Mover":
        self.roaming.start()
        assert await self._stays.start() == ""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.roaming.stop()
        await self.roaming.stop()
        await self._stays.stop()

    async def seen(self) -> tuple[str, int]:
        async with asyncio.timeout(FOUND_WITHIN_S):
            return await self.found.get()


@needs_multicast
async def test_a_node_that_starts_without_a_network_is_found_when_it_has_one(caplog: pytest.LogCaptureFixture) -> None:
    async with Mover(NOWHERE) as mover:

        async def said() -> bool:
            return bool(caplog.messages)

        async def works() -> bool:
            return mover.roaming.works

        await until(said, FOUND_WITHIN_S, "why nothing is found")
        assert not await works()
        mover.place = (["127.0.0.1"], [LOOPBACK])
        assert await mover.seen() == ("127.0.0.1", 7001)
        await until(works, FOUND_WITHIN_S, "its own advert")
    assert len(caplog.messages) == 1, "what does not work is said once, however often it is looked"


@needs_multicast
async def test_a_node_whose_address_changes_is_found_under_the_new_one() -> None:
    async with Mover((["127.0.0.1"], [LOOPBACK])) as mover:
        assert await mover.seen() == ("127.0.0.1", 7001)
        mover.place = (["127.0.0.2"], [LOOPBACK])
        assert await mover.seen() == ("127.0.0.2", 7001)
        mover.place = NOWHERE


async def test_a_look_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    looks = 0

    def where() -> Place:
        nonlocal looks
        looks += 1
        if looks < 3:
            raise RuntimeError("whatever a library raises")
        return NOWHERE

    made = partial(Discovery, "mover", 7001, on_found=lambda *_: None, log=LOG, mesh_id=MESH)
    roaming = Roaming(where, made, LOG, look_s=0.01)
    roaming.start()

    async def said() -> bool:
        return any("mDNS does not work here" in message for message in caplog.messages)

    await until(said, FOUND_WITHIN_S, "a look after those that failed")
    await roaming.stop()
    assert sum("RuntimeError" in message for message in caplog.messages) == 1, "said once"
