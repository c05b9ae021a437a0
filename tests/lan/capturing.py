"""Everything that crosses the switch of a test LAN, and what can be read in it.

Idea: a packet socket (packet(7)) in the switch's namespace sees each frame at the ports of the bridge, before and after
it was forwarded. Its own count of dropped frames tells whether anything was missed. Streams are put together again
from the segments, so that a word that two packets share is still found.

Does not: decrypt. IPv4 and IPv6 without extension headers, TCP and UDP; everything else is searched as it came.
"""

import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scripts.lan_network import Network

#: Runs in the switch's namespace: writes each frame with its length until standard input ends, then how many were lost.
SCRIPT = """
import select, socket, struct, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
s.setblocking(False)
with open(sys.argv[1], "wb") as out:
    print("listening", flush=True)
    going = True
    while going:
        ready, _, _ = select.select([s, sys.stdin], [], [])
        going = sys.stdin not in ready
        while True:
            try:
                frame = s.recv(1 << 17)
            except BlockingIOError:
                break
            out.write(struct.pack("!I", len(frame)) + frame)
print(struct.unpack("II", s.getsockopt(263, 6, 8))[1])  # SOL_PACKET, PACKET_STATISTICS: dropped
"""

Flow = tuple[bytes, int, bytes, int]
TCP, UDP, MDNS_PORT = 6, 17, 5353


@dataclass
class Capture:
    """What was seen. `frames` is complete where `dropped` is 0."""

    frames: list[bytes] = field(default_factory=list)
    dropped: int = -1

    def streams(self) -> dict[Flow, bytes]:
        """What each TCP connection carried, one way."""
        parts: dict[Flow, dict[int, bytes]] = defaultdict(dict)
        for protocol, source, target, segment in map(_split, self.frames):
            if protocol != TCP or len(segment) < 20:
                continue
            sport, dport, sequence = struct.unpack("!HHI", segment[:8])
            if payload := segment[(segment[12] >> 4) * 4 :]:
                part = parts[source, sport, target, dport]
                part[sequence] = max(payload, part.get(sequence, b""), key=len)
        return {flow: _joined(part) for flow, part in parts.items()}

    def datagrams(self, port: int) -> list[bytes]:
        """UDP payloads to this port."""
        found = []
        for protocol, _, _, packet in map(_split, self.frames):
            if protocol == UDP and len(packet) >= 8 and struct.unpack("!H", packet[2:4])[0] == port:
                found.append(packet[8:])
        return found

    def places_of(self, needle: bytes) -> list[str]:
        """Where these bytes can be read, any case of ASCII letters."""
        wanted = needle.lower()
        found = [f"frame {number}" for number, frame in enumerate(self.frames) if wanted in frame.lower()]
        return found + [f"stream {flow}" for flow, data in self.streams().items() if wanted in data.lower()]


def _split(frame: bytes) -> tuple[int, bytes, bytes, bytes]:
    """Protocol, source, target and what IP carries; protocol 0 for what is no IP."""
    kind = frame[12:14]
    if kind == b"\x08\x00" and len(frame) >= 34:
        header = 14 + (frame[14] & 15) * 4
        return frame[23], frame[26:30], frame[30:34], frame[header : 14 + struct.unpack("!H", frame[16:18])[0]]
    if kind == b"\x86\xdd" and len(frame) >= 54:
        return frame[20], frame[22:38], frame[38:54], frame[54 : 54 + struct.unpack("!H", frame[18:20])[0]]
    return 0, b"", b"", frame


def _joined(parts: dict[int, bytes]) -> bytes:
    """Segments in order; what was sent twice counts once. Sequence numbers may wrap."""
    first = min(parts)
    if max(parts) - first > 1 << 31:
        first = min(sequence for sequence in parts if sequence > 1 << 31)
    data = bytearray()
    for offset, payload in sorted(((sequence - first) % (1 << 32), payload) for sequence, payload in parts.items()):
        data += payload[max(0, len(data) - offset) :] if offset <= len(data) else payload
    return bytes(data)


@contextmanager
def capturing(network: Network, file: Path, capture: Capture) -> Iterator[None]:
    """Capture all that crosses the switch within the block; `capture` holds it afterwards."""
    command = [*network.inside("net"), sys.executable, "-c", SCRIPT, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as listener:
        assert listener.stdin is not None
        assert listener.stdout is not None
        assert listener.stdout.readline() == b"listening\n"
        yield
        said, _ = listener.communicate(timeout=30)
    capture.dropped = int(said)
    data = file.read_bytes()
    at = 0
    while at < len(data):
        (length,) = struct.unpack("!I", data[at : at + 4])
        capture.frames.append(data[at + 4 : at + 4 + length])
        at += 4 + length
