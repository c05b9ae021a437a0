"""What is remembered of running jobs: small, and of so many."""

import random
from typing import Any, cast

from mesh.replica import Replica
from mesh.wire import work_pb2
from node.snapshots import PROGRESS_BYTES_MAX, PROGRESS_JOBS_MAX, Snapshots
from tests.node.working import KEY


def test_progress_of_megabytes_is_not_kept_and_of_many_jobs_the_latest_is() -> None:
    snapshots = Snapshots(Replica(KEY, 1, 1, random.Random(1)), cast(Any, None))
    for number in range(PROGRESS_JOBS_MAX + 3):
        snapshots.progress_received(work_pb2.JobProgress(job_id=b"%d" % number))
    snapshots.progress_received(work_pb2.JobProgress(job_id=b"large", waiting_for="x" * PROGRESS_BYTES_MAX))
    assert list(snapshots._progress) == [b"%d" % number for number in range(3, PROGRESS_JOBS_MAX + 3)]
