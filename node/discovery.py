"""Finding peers on the LAN by mDNS: a hint where to dial, nothing more.

An advert says "something answers on this address and port". Who it is, only the connection proves; that it lives, only
the connection keeps proving. So removed adverts are ignored, and a found address is given away once.

What is advertised: an instance name and a server name that are random at every start, the port, the addresses,
`v=<lowest protocol version>` and `m=<tag of the mesh>`. No host name, node id, model or user: everybody in a café reads
it. The tag is another one every day (UTC), so that who meets a node on two days can not tell its mesh by it; only who
knows the mesh's id can. Clocks differ, so yesterday's and tomorrow's are understood too.

Start-up is as quick as mDNS allows: browsing begins before registering, and the names are not probed for (that takes a
second), because RFC 6762 section 8.1 asks for probes only where uniqueness is not assured otherwise, and 32 random bits
assure it. Questions ask for multicast answers, since several nodes on one machine share the port and a unicast answer
would reach one of them.

Not guaranteed: that multicast works. Wi-Fi access points, VPNs and containers drop it; `start` says so, and seeds are
always possible. A link-local IPv6 address without a zone is dropped.

Source: RFC 6762 (mDNS), RFC 6763 (DNS-SD, section 6 for the TXT record); python-zeroconf.
"""

import asyncio
import datetime
import hashlib
import hmac
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from logging import Logger
from typing import Any

from zeroconf import DNSQuestionType, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from node.hellos import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN
from node.interfaces import Interface
from node.multicast import instance, open_multicast

SERVICE_TYPE = "_kith._tcp.local."
VERSIONS_SPOKEN = [str(version) for version in range(PROTOCOL_VERSION_MIN, PROTOCOL_VERSION + 1)]
#: Addresses remembered as given away; the oldest is forgotten first. Threat: a host that floods the LAN with adverts.
CANDIDATES_MAX = 64
#: Addresses taken from one advert. The same threat.
ADDRESSES_PER_ADVERT_MAX = 8
#: Lookups of adverts that came without their address records, at the same time and each in milliseconds.
LOOKUPS_MAX = 16
LOOKUP_MS = 2000
#: Seconds within which a node hears its own first advert where multicast works (it is sent at once; measured: 20 ms).
SELF_HEARD_S = 2.0
#: How often it is looked whether a new day has begun, seconds.
DAY_LOOK_S = 300.0


def utc_today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def daily_tag(mesh_id: str, day: datetime.date) -> str:
    """8 hex digits."""
    return hmac.new(mesh_id.encode(), day.isoformat().encode(), hashlib.sha256).hexdigest()[:8]


class Discovery:
    """Advertises one node and reports the others. Use from one event loop.

    Args:
        node_hint: what log lines call this node; never sent.
        port: of the mesh service.
        addresses: that others should dial; link-local IPv6 ones with or without zone.
        interfaces: to speak and listen on.
        on_found: called on the event loop with the host (an address literal) and port of a candidate, once for each
            that an advert names; a peer that was started again is reported again.
        mesh_id: adverts of another mesh are left alone.
        service_type: nodes see only those of the same one.
        today: for tests.
    """

    def __init__(
        self,
        node_hint: str,
        port: int,
        addresses: Sequence[str],
        interfaces: Sequence[Interface],
        on_found: Callable[[str, int], None],
        log: Logger,
        mesh_id: str,
        *,
        service_type: str = SERVICE_TYPE,
        today: Callable[[], datetime.date] = utc_today,
    ) -> None:
        self._mesh_id = mesh_id
        self._today = today
        self._service_type = service_type
        self._node_hint = node_hint
        self._port = port
        self._addresses = list(addresses)
        self._interfaces = list(interfaces)
        self._on_found = on_found
        self._log = log
        self._instance = f"{secrets.token_hex(4)}.{service_type}"
        self._loopback = bool(addresses) and all(ipaddress.ip_address(address).is_loopback for address in addresses)
        self._given: OrderedDict[tuple[str, str, int], None] = OrderedDict()
        self._lookups: set[asyncio.Task[None]] = set()
        self._self_heard = asyncio.Event()
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._announcing: asyncio.Future[Any] | None = None
        self._following_days: asyncio.Task[None] | None = None

    @property
    def instance(self) -> str:
        """The advert's name, random at every start."""
        return self._instance

    @property
    def running(self) -> bool:
        """Whether it has sockets: it was started where an interface takes multicast, and not stopped."""
        return self._zeroconf is not None

    @property
    def heard(self) -> bool:
        """Whether it heard its own advert, so multicast works."""
        return self._self_heard.is_set()

    async def start(self) -> str:
        """Browse and advertise. Returns "" where multicast works, else the reason why peers are not found by it.

        Where sockets could be opened it goes on browsing and advertising all the same.
        """
        try:
            self._zeroconf = open_multicast(self._interfaces, self._log)
        except OSError as error:
            return f"multicast DNS can not be used here: {error.strerror or error}"
        if self._zeroconf is None:
            names = ", ".join(interface.name for interface in self._interfaces) or "none"
            return f"no interface for multicast DNS (interfaces chosen: {names})"
        zeroconf = self._zeroconf.zeroconf
        self._browser = AsyncServiceBrowser(
            zeroconf, self._service_type, handlers=[self._on_change], question_type=DNSQuestionType.QM
        )
        day = self._today()
        try:
            self._announcing = asyncio.ensure_future(
                await self._zeroconf.async_register_service(self._advert(day), cooperating_responders=True)
            )
            self._following_days = asyncio.create_task(self._follow_days(self._zeroconf, day), name="mdns-days")
            async with asyncio.timeout(SELF_HEARD_S):
                await self._self_heard.wait()
        except TimeoutError:
            return f"multicast does not work on {', '.join(interface.name for interface in self._interfaces)}"
        except OSError as error:
            return f"multicast DNS can not be used here: {error.strerror or error}"
        return ""

    async def stop(self) -> None:
        """Say goodbye and close. Safe to call at any time, also twice."""
        for lookup in self._lookups:
            lookup.cancel()
        await asyncio.gather(*self._lookups, return_exceptions=True)
        if self._browser is not None:
            await self._browser.async_cancel()
            self._browser = None
        for task in filter(None, (self._announcing, self._following_days)):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._announcing = self._following_days = None
        if self._zeroconf is not None:
            zeroconf, self._zeroconf = self._zeroconf, None
            await zeroconf.async_close()

    def _advert(self, day: datetime.date) -> AsyncServiceInfo:
        return AsyncServiceInfo(
            self._service_type,
            self._instance,
            port=self._port,
            properties={"txtvers": "1", "v": str(PROTOCOL_VERSION_MIN), "m": daily_tag(self._mesh_id, day)},
            server=f"kith-{self._instance.partition('.')[0]}.local.",
            parsed_addresses=[address.partition("%")[0] for address in self._addresses],
        )

    async def _follow_days(self, zeroconf: AsyncZeroconf, day: datetime.date) -> None:
        """Advertise each day's tag."""
        while True:
            await asyncio.sleep(DAY_LOOK_S)
            if (now := self._today()) != day:
                day = now
                await (await zeroconf.async_update_service(self._advert(day)))

    def _is_of_this_mesh(self, tag: str) -> bool:
        days = (self._today() + datetime.timedelta(days=shift) for shift in (-1, 0, 1))
        return any(hmac.compare_digest(tag.encode(), daily_tag(self._mesh_id, day).encode()) for day in days)

    def _on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Runs on the event loop, once for each change of each instance."""
        if name.casefold() == self._instance:
            self._self_heard.set()
            return
        if state_change is ServiceStateChange.Removed:
            return
        if (info := instance(zeroconf, service_type, name)) is None:
            return
        if info.load_from_cache(zeroconf):
            self._report(info)
        elif len(self._lookups) < LOOKUPS_MAX:
            lookup = asyncio.create_task(self._look_up(zeroconf, info), name="mdns-lookup")
            self._lookups.add(lookup)
            lookup.add_done_callback(self._lookups.discard)

    async def _look_up(self, zeroconf: Zeroconf, info: AsyncServiceInfo) -> None:
        if await info.async_request(zeroconf, LOOKUP_MS, question_type=DNSQuestionType.QM):
            self._report(info)

    def _report(self, info: AsyncServiceInfo) -> None:
        version = info.decoded_properties.get("v")
        if version not in VERSIONS_SPOKEN:
            self._log.info("discovery: %s speaks protocol %s, this node %d", info.name, version, PROTOCOL_VERSION)
            return
        if not info.port or not self._is_of_this_mesh(info.decoded_properties.get("m") or ""):
            return
        for host in [text for text in info.parsed_scoped_addresses() if self._dialable(text)][
            :ADDRESSES_PER_ADVERT_MAX
        ]:
            key = (info.name, host, info.port)
            if key in self._given:
                continue
            self._given[key] = None
            if len(self._given) > CANDIDATES_MAX:
                self._given.popitem(last=False)
            self._log.debug("discovery: %s found %s port %d", self._node_hint, host, info.port)
            self._on_found(host, info.port)

    def _dialable(self, text: str) -> bool:
        """Whether an advertised address makes sense from here. Loopback: only for a node that is on loopback itself,
        so that no advert can make a node dial what listens on its own machine."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        if address.is_loopback or self._loopback:
            return address.is_loopback and self._loopback
        if isinstance(address, ipaddress.IPv6Address) and address.is_link_local and not address.scope_id:
            return False
        return not (address.is_unspecified or address.is_multicast)
