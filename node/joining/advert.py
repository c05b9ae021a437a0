"""Finding who invites on this network: an mDNS advert that lives as long as its invite, and the search for it.

What is advertised: a random instance and server name, the join port, the addresses, the nameplate of the code and the
id of the token. None of it is secret, and none says which mesh or machine it is.

Idea: adverts are hints. Whoever forges one gets one frame with a blinded element from the joiner, and one guess at the
code; so a joiner with a code asks one machine only, and where two show the same nameplate it asks its person instead.

Not guaranteed: that multicast works; HOST:PORT always does.

Source: RFC 6762 (mDNS), RFC 6763 (DNS-SD); python-zeroconf.
"""

import asyncio
import ipaddress
import secrets
from collections.abc import Callable, Sequence
from logging import Logger
from typing import Any

from zeroconf import DNSQuestionType, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from node.interfaces import Interface, Place
from node.multicast import instance, open_multicast

SERVICE_TYPE = "_kith-join._tcp.local."
#: Adverts looked at, and addresses taken from one. Against a host that floods the network.
ADVERTS_MAX = 32
ADDRESSES_MAX = 8
LOOKUP_MS = 2000
#: After the first advert that fits, how long a second one is waited for, seconds.
SETTLE_S = 0.7

#: Host and port.
Address = tuple[str, int]


class Adverts:
    """The adverts of one door: one an invite. Use from one event loop.

    Args:
        where: the addresses and interfaces of this node now. Sockets are opened with the first invite, and closed with
            the last: an invite is shown on the networks of that moment.
    """

    def __init__(
        self,
        where: Callable[[], Place],
        log: Logger,
        service_type: str = SERVICE_TYPE,
    ) -> None:
        self._where = where
        self._log = log
        self._service_type = service_type
        self._zeroconf: AsyncZeroconf | None = None
        self._infos: dict[str, tuple[AsyncServiceInfo, asyncio.Future[Any]]] = {}

    async def show(self, invite: str, nameplate: str, port: int) -> bool:
        """Advertise an invite: its token's id, its nameplate ("" for none). Returns whether mDNS can be used at all."""
        addresses, interfaces = self._where()
        try:
            if self._zeroconf is None:
                self._zeroconf = open_multicast(interfaces, self._log)
            if self._zeroconf is None:
                return False
            name = secrets.token_hex(4)
            info = AsyncServiceInfo(
                self._service_type,
                f"{name}.{self._service_type}",
                port=port,
                properties={"txtvers": "1", "v": "1", "t": invite, **({"n": nameplate} if nameplate else {})},
                server=f"kith-{name}.local.",
                parsed_addresses=[address.partition("%")[0] for address in addresses],
            )
            announcing = await self._zeroconf.async_register_service(info, cooperating_responders=True)
        except OSError as error:
            self._log.warning("mDNS: an invite is not advertised: %s", error)
            return False
        self._infos[invite] = info, asyncio.ensure_future(announcing)
        return True

    async def hide(self, invite: str) -> None:
        """Say goodbye for an invite. The last one closes the sockets."""
        if (shown := self._infos.pop(invite, None)) is not None and self._zeroconf is not None:
            info, announcing = shown
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)
            await (await self._zeroconf.async_unregister_service(info))
        if not self._infos:
            await self.close()

    async def close(self) -> None:
        for _, announcing in self._infos.values():
            announcing.cancel()
        await asyncio.gather(*(announcing for _, announcing in self._infos.values()), return_exceptions=True)
        self._infos.clear()
        if self._zeroconf is not None:
            zeroconf, self._zeroconf = self._zeroconf, None
            await zeroconf.async_close()


async def find(
    invite: str,
    interfaces: Sequence[Interface],
    log: Logger,
    timeout_s: float,
    service_type: str = SERVICE_TYPE,
) -> list[list[Address]]:
    """Who shows `invite` (a nameplate or a token's id): the addresses of each, best first. Empty after `timeout_s`.

    Raises `OSError` where sockets can not be opened.
    """
    zeroconf = open_multicast(interfaces, log)
    if zeroconf is None:
        return []
    search = _Search(invite)
    browser = AsyncServiceBrowser(
        zeroconf.zeroconf, service_type, handlers=[search.on_change], question_type=DNSQuestionType.QM
    )
    try:
        async with asyncio.timeout(timeout_s):
            await search.hit.wait()
        await asyncio.sleep(min(SETTLE_S, timeout_s))
    except TimeoutError:
        pass
    finally:
        await browser.async_cancel()
        await search.close()
        await zeroconf.async_close()
    return list(search.found.values())


class _Search:
    def __init__(self, invite: str) -> None:
        self.hit = asyncio.Event()
        self.found: dict[str, list[Address]] = {}
        self._invite = invite
        self._seen: set[str] = set()
        self._lookups: set[asyncio.Task[None]] = set()

    def on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            self.found.pop(name, None)  # an invite that ended a moment ago
            return
        if name in self._seen or len(self._seen) >= ADVERTS_MAX:
            return
        self._seen.add(name)
        if (info := instance(zeroconf, service_type, name)) is None:
            return
        if info.load_from_cache(zeroconf):
            self._take(info)
        else:
            lookup = asyncio.create_task(self._look_up(zeroconf, info), name="join-lookup")
            self._lookups.add(lookup)
            lookup.add_done_callback(self._lookups.discard)

    async def close(self) -> None:
        for lookup in self._lookups:
            lookup.cancel()
        await asyncio.gather(*self._lookups, return_exceptions=True)

    async def _look_up(self, zeroconf: Zeroconf, info: AsyncServiceInfo) -> None:
        if await info.async_request(zeroconf, LOOKUP_MS, question_type=DNSQuestionType.QM):
            self._take(info)

    def _take(self, info: AsyncServiceInfo) -> None:
        said = info.decoded_properties
        if not info.port or self._invite not in (said.get("n"), said.get("t")):
            return
        hosts = [text for text in info.parsed_scoped_addresses() if _dialable(text)][:ADDRESSES_MAX]
        if hosts:
            self.found[info.name] = [(host, info.port) for host in hosts]
            self.hit.set()


def _dialable(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.is_link_local and not address.scope_id:
        return False
    return not (address.is_unspecified or address.is_multicast)
