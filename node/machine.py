"""Which machine this is: so that a data directory that was copied to another one is noticed.

Two nodes with one key are one node that says two different things. The copy must not start by mistake.

Idea: the operating system's machine id, hashed with the node's id, so that a data directory tells nobody the machine's
id. Where the system has none, nothing is checked.

Does not: notice a copy on the same machine, or of a whole disk image (the journal's fork detection does, later).
"""

import hashlib
import subprocess
import sys
from pathlib import Path

from mesh.identity import NodeId

LINUX_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


def machine_mark(node_id: NodeId, machine_id: str) -> str:
    """64 hex digits, different for every node; empty where the machine has no id."""
    if not machine_id:
        return ""
    return hashlib.sha256(f"kith-machine-v1\0{machine_id}\0{node_id}".encode()).hexdigest()


def machine_id() -> str:
    """The operating system's id of this machine; empty where it has none."""
    if sys.platform == "darwin":
        return _platform_uuid()
    for file in LINUX_FILES:
        try:
            found = file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if found and found != "uninitialized":
            return found
    return ""


def _platform_uuid() -> str:
    try:
        listed = subprocess.run(
            ["/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == '"IOPlatformUUID"':
            return value.strip().strip('"')
    return ""
