"""What waits to be written to one peer, bounded in messages and in bytes: what does not fit is dropped.

Threat: a peer that asks for much and reads nothing; what it asked for would wait in memory.
"""

import asyncio
from collections import deque

from mesh.wire import mesh_pb2
from node.limits import MESSAGE_BYTES_MAX

#: Messages waiting for one slow peer, and their bytes: some pushes of facts, 1 MiB each.
QUEUE_MAX = 2000
BYTES_MAX = 8 << 20


class Outbox:
    """Belongs to one event loop; one reader."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[mesh_pb2.LinkMessage, int]] = deque()
        self._bytes = 0
        self._ended = False
        self._came = asyncio.Event()

    def put(self, message: mesh_pb2.LinkMessage) -> bool:
        """False where it was dropped."""
        size = message.ByteSize()
        if size > MESSAGE_BYTES_MAX:  # gRPC would not send it, and end the link
            return False
        if self._ended or len(self._waiting) >= QUEUE_MAX or self._bytes + size > BYTES_MAX:
            return False
        self._waiting.append((message, size))
        self._bytes += size
        self._came.set()
        return True

    def end(self) -> None:
        """Nothing more comes; what waits can still be taken."""
        self._ended = True
        self._came.set()

    async def take(self) -> mesh_pb2.LinkMessage | None:
        """The next one; None at the end."""
        while not self._waiting:
            if self._ended:
                return None
            self._came.clear()
            await self._came.wait()
        message, size = self._waiting.popleft()
        self._bytes -= size
        return message
