"""Plans by hash: read from the blobs once, kept while they are of use."""

from collections import OrderedDict

from mesh.wire import common_pb2, work_pb2
from node.blobs import Blobs

KEPT_MAX = 64


class Plans:
    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._kept: OrderedDict[bytes, work_pb2.Plan] = OrderedDict()

    async def get(self, ref: common_pb2.BlobRef) -> work_pb2.Plan:
        """The plan named `ref`. Raises `KithError` (`blob-missing`). Callers do not change it."""
        plan = self._kept.get(ref.sha256)
        if plan is None:
            plan = work_pb2.Plan.FromString(await self._blobs.get(ref))
            self._kept[ref.sha256] = plan
            if len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        self._kept.move_to_end(ref.sha256)
        return plan
