"""What the result of a task depends on, as one hash: a result serves any task with the same key.

Idea: two plans of one job may hold the same task under different numbers, because the job was planned again or on two
sides of a cut. The key leaves out what does not shape the result (the plan, the index, estimates) and takes in what
does: kind, parameters, output limit, replica, seed, and the inputs, by the hashes of their content.

Does not: match across releases that serialise a message otherwise. Such a task is done again.
"""

import hashlib
from collections.abc import Iterable

from mesh.wire import work_pb2

_DOMAIN = b"kith-task-v1"


def task_key(task: work_pb2.Task, input_hashes: Iterable[bytes]) -> bytes:
    """32 bytes; empty for a task of a kind that this release does not know, which matches nothing.

    Args:
        input_hashes: of the results of `task.depends_on`, in that order.
    """
    kind = task.WhichOneof("kind")
    if kind is None:
        return b""
    parts = [
        _DOMAIN,
        kind.encode(),
        getattr(task, kind).SerializeToString(deterministic=True),
        b"%d,%d,%d" % (task.output_tokens_max, task.replica, task.seed),
        *input_hashes,
    ]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.digest()
