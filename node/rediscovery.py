"""mDNS on whatever network this machine is: discovery begins anew where its addresses or interfaces are other ones.

Why: a board is up before its network is, and a laptop comes to another one. The sockets and the advert of before reach
nobody there.

Not guaranteed: that a network is noticed at once; it is looked every few seconds. Who is linked stays linked.
"""

import asyncio
from collections.abc import Callable

from node.addresses import target
from node.discovery import Discovery
from node.listening import Network
from node.logs import log

#: How often it is looked on which network this machine is, seconds. A look takes a millisecond.
LOOK_S = 5.0


class Rediscovery:
    """Use from one event loop.

    Args:
        network: the one that this machine is on now.
        begin: makes what advertises this node there and reports others.
    """

    def __init__(
        self, network: Callable[[], Network], begin: Callable[[Network], Discovery], look_s: float = LOOK_S
    ) -> None:
        self._network = network
        self._begin = begin
        self._look_s = look_s
        self._discovery: Discovery | None = None
        self.works = False

    async def run(self) -> None:
        """Until cancelled."""
        network = self._network()
        while True:
            self._discovery = self._begin(network)
            reason = await self._discovery.start()
            self.works = not reason
            if reason:
                # It is left running: a slow machine may hear its own advert late.
                log("warning", f"mDNS does not work here: {reason}; only --seed and known peers are dialled")
            while (now := self._network()) == network:  # noqa: ASYNC110 - a kernel tells nobody
                await asyncio.sleep(self._look_s)
            network = now
            log("info", f"this machine's network changed: found at {', '.join(target(*at) for at in now.addresses)}")
            await self._discovery.stop()

    async def stop(self) -> None:
        """Say goodbye and close, once `run` is cancelled."""
        if self._discovery is not None:
            await self._discovery.stop()
