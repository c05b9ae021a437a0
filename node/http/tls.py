"""Where the HTTP door may open, and with which certificate.

Idea: on loopback plain HTTP is fine. Where other machines can reach it, it is TLS with a certificate of the owner's, or
the node's own (clients then trust the mesh's CA file and ask for `<node id>.kith`), and nobody enters without a key. A
certificate that was renewed on disk is taken over within a minute.

Threat: keys and prompts that anybody in the same Wi-Fi reads.
"""

import asyncio
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from node.errors import ExitCode, KithError
from node.logs import log

RELOAD_EVERY_S = 60.0
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass
class Certificate:
    """A certificate and its key on disk, as the door shows them."""

    certificate: Path
    key: Path

    def __post_init__(self) -> None:
        """Raises `KithError` (`bad-certificate`)."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._load()
        self._loaded_at = self._changed_at()

    def names(self) -> frozenset[str]:
        """Names and addresses in it, lower-case."""
        try:
            found = x509.load_pem_x509_certificate(self.certificate.read_bytes())
            held = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, x509.ExtensionNotFound):
            return frozenset()
        names = held.get_values_for_type(x509.DNSName)
        addresses = held.get_values_for_type(x509.IPAddress)
        return frozenset(name.lower() for name in names) | {str(address) for address in addresses}

    async def keep_fresh(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(RELOAD_EVERY_S)
            self.refresh()

    def refresh(self) -> None:
        """Take over what changed on disk. A new one that can not be read is said, and the old one stays."""
        try:
            changed_at = self._changed_at()
            if changed_at == self._loaded_at:
                return
            self._load()
            self._loaded_at = changed_at
        except (KithError, OSError) as error:
            log("warning", f"the HTTP door keeps its certificate: {error}")

    def _changed_at(self) -> tuple[int, int]:
        return self.certificate.stat().st_mtime_ns, self.key.stat().st_mtime_ns

    def _load(self) -> None:
        try:
            self.context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise KithError(
                "bad-certificate",
                f"the certificate {self.certificate} with the key {self.key} can not be used: {error}",
                "Give PEM files that belong together as http_cert and http_key.",
                ExitCode.CANNOT_START,
            ) from error


def hosts_of(listening: str, extra: tuple[str, ...], certificate: Certificate | None) -> frozenset[str]:
    """Names by which a Host header may call this door, beside the address that a connection reached.

    Args:
        listening: host of the setting; with a wildcard this machine's name is one.
        extra: the setting `http_hosts`.
    """
    hosts = set(LOOPBACK_NAMES) | {name.lower().rstrip(".") for name in extra}
    try:
        wildcard = ipaddress.ip_address(listening).is_unspecified
    except ValueError:
        wildcard = False
    if wildcard:
        hosts |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
    else:
        hosts.add(listening.lower().partition("%")[0])
    if certificate is not None:
        hosts |= certificate.names()
    return frozenset(hosts)
