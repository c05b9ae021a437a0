"""Addresses of nodes met before: a restarted node finds its mesh without mDNS and seeds. A hint, never trusted."""

import contextlib
import json
import os
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


def save_peers(path: Path, replica: Replica) -> None:
    """Keep the addresses of members that were linked. Failing to is no failure."""
    members = sorted(replica.membership.members.values(), key=lambda member: -member.last_heard)
    entries = [{"host": host, "port": port} for member in members for host, port in member.addresses][:PEERS_MAX]
    draft = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        draft.write_text(json.dumps(entries))
        draft.replace(path)
