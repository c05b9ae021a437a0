"""Sockets for mDNS: opened on the chosen interfaces that take multicast, and on no other.

python-zeroconf gives up all interfaces for one that refuses, so each is asked first whether the group can be joined.
It also believes whatever name a packet gives to an instance. A name of another type raises when it is looked up, in a
handler, and stays in the browser's queue to raise again with every later packet; a label that was no UTF-8 grows while
it is read, and the browser never asks again when it fails to write it. So one packet would end discovery: `instance`
takes plain names only, and removes others from the cache; and a question that can not be written with the answers that
the cache knows is sent without them (they only save others from answering: RFC 6762, section 7.1). Library limits:
`::1` does not work; link-local IPv6 needs a zone.
"""

import ipaddress
import re
import socket
import struct
from collections.abc import Sequence
from logging import Logger
from typing import Any

from zeroconf import Error, IPVersion, Zeroconf
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from node.interfaces import Interface

_GROUP_4 = socket.inet_pton(socket.AF_INET, "224.0.0.251")
_GROUP_6 = socket.inet_pton(socket.AF_INET6, "ff02::fb")
_LABEL = re.compile(r"[!-~]{1,63}")
_PTR, _IN = 12, 1


class Speaker(Zeroconf):
    """Sends whatever can be sent: no record that a stranger put into the cache keeps a question from being asked."""

    def async_send(self, out: Any, *args: Any, **named: Any) -> None:
        try:
            super().async_send(out, *args, **named)
        except (Error, ValueError):
            bare = type(out)(out.flags, out.multicast, out.id)
            for question in out.questions:
                bare.add_question(question)
            try:
                if bare.questions:
                    super().async_send(bare, *args, **named)
            except (Error, ValueError):
                return  # asks for a name that is none


def open_multicast(interfaces: Sequence[Interface], log: Logger) -> AsyncZeroconf | None:
    """Sockets on every interface that takes multicast; None where none does. Raises `OSError`."""
    four: list[str | int] = []
    six: list[str | int] = []
    for interface in interfaces:
        for address in interface.addresses:
            if address.version == 4 and _joins(interface, address, log):
                four.append(str(address))
        if not interface.loopback:
            v6 = next((address for address in interface.addresses if address.version == 6), None)
            if v6 is not None and _joins(interface, v6, log):
                six.append(interface.index)
    if not four and not six:
        return None
    version = IPVersion.All if four and six else IPVersion.V6Only if six else IPVersion.V4Only
    return AsyncZeroconf(zc=Speaker(interfaces=[*four, *six], ip_version=version))


def instance(zeroconf: Zeroconf, service_type: str, name: str) -> AsyncServiceInfo | None:
    """The instance that somebody advertises under this name. None, and forgotten, where it is no plain name."""
    label, _, type_ = name.partition(".")
    if type_.lower() == service_type and _LABEL.fullmatch(label):
        return AsyncServiceInfo(service_type, name)
    pointers = zeroconf.cache.get_all_by_details(service_type, _PTR, _IN)
    zeroconf.cache.async_remove_records([one for one in pointers if getattr(one, "alias", "") == name])
    return None


def _joins(interface: Interface, address: ipaddress.IPv4Address | ipaddress.IPv6Address, log: Logger) -> bool:
    """Whether the group can be joined there."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            if address.version == 4:
                probe.bind((str(address), 0))
                probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _GROUP_4 + address.packed)
            else:
                group = _GROUP_6 + struct.pack("@I", interface.index)
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
    except OSError as error:
        log.info("mDNS: not on %s, address %s: %s", interface.name, address, error)
        return False
    return True
