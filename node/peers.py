"""Addresses of nodes met before: a restarted node finds its mesh without mDNS and seeds. A hint, never trusted."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from mesh.replica import Replica

PEERS_MAX = 64
FILE_BYTES_MAX = 64 * 1024


def load_peers(path: Path) -> list[tuple[str, int]]:
    """What was kept; nothing where the file is missing or unreadable."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            return []
        entries = json.loads(path.read_text())
        return [(str(entry["host"]), int(entry["port"])) for entry in entries[:PEERS_MAX]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def keep_addresses(path: Path, addresses: Sequence[tuple[str, int]]) -> None:
    """Put these before what was kept. Failing to is no failure."""
    _save(path, list(dict.fromkeys([*addresses, *load_peers(path)])))


def save_peers(path: Path, replica: Replica) -> None:
    """Keep the addresses of members that were linked. Failing to is no failure."""
    members = sorted(replica.membership.members.values(), key=lambda member: -member.last_heard)
    _save(path, [address for member in members for address in member.addresses])


def _save(path: Path, addresses: Sequence[tuple[str, int]]) -> None:
    entries = [{"host": host, "port": port} for host, port in addresses[:PEERS_MAX]]
    draft = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        draft.write_text(json.dumps(entries))
        draft.replace(path)
