"""Keeps discovery on the networks that the machine is on now: laptops move, and boxes start before their network does.

Idea: discovery's sockets and its advert are made for one set of interfaces and addresses. So it is looked now and then
what they are, and where they changed, discovery begins anew there, as after a start: its advert is a new one, so peers
on the new network dial.

Does not: move links or the listening port. A node listens on all its addresses; a link that lost its address is the
links' matter (node/links.py), and the hello on the next one tells the new address.
"""

import asyncio
from collections.abc import Callable
from logging import Logger

from node.discovery import Discovery
from node.interfaces import Interface, Place
from node.logs import where

#: How often it is looked, seconds.
LOOK_S = 5.0


class Roaming:
    """Use from one event loop; `stop` it at the end.

    Args:
        where: the place now.
        made: discovery at these addresses, on these interfaces; not started.
        look_s: how often it is looked, seconds.
    """

    def __init__(
        self,
        where: Callable[[], Place],
        made: Callable[[list[str], list[Interface]], Discovery],
        log: Logger,
        look_s: float = LOOK_S,
    ) -> None:
        self._where = where
        self._made = made
        self._log = log
        self._look_s = look_s
        self._discovery: Discovery | None = None
        self._looking: asyncio.Task[None] | None = None
        self._at: Place | None = None  # where discovery was begun; None: nowhere yet, or in vain
        self._reason = ""  # why it did not work there

    @property
    def works(self) -> bool:
        """Whether multicast works where this node is: it heard itself there."""
        return self._discovery is not None and self._discovery.heard

    def start(self) -> None:
        self._looking = asyncio.create_task(self._look(), name="mdns-place")

    async def stop(self) -> None:
        """Say goodbye and close. Safe to call at any time, also twice."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self._discovery is not None:
            await self._discovery.stop()

    async def _look(self) -> None:
        said = ""
        while True:
            try:
                reason = await self._settled()
            except Exception as error:  # whatever a library raises: the next look begins anew
                self._at = None
                reason = f"it failed inside ({where(error)})"
            if reason and reason != said:
                self._log.warning("mDNS does not work here: %s; only --seed and known peers are dialled", reason)
            said = reason
            await asyncio.sleep(self._look_s)

    async def _settled(self) -> str:
        """Discovery where this node is now. Returns why it does not work there, or ""."""
        now, before = self._where(), self._at
        if now == before and self._discovery is not None and self._discovery.running:
            return self._reason
        if before is not None and now != before:
            self._log.info("the network changed: this node is at %s", ", ".join(now[0]) or "no address")
        self._at = now
        if self._discovery is not None:
            await self._discovery.stop()
        self._discovery = self._made(*now)
        # It is left running: a slow machine may hear its own advert late.
        self._reason = await self._discovery.start()
        return self._reason
