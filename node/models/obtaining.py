"""The file of the model that a node was told to serve, fetched where it is not here yet.

A fetch ends with the node: it is left where it is, and the next one goes on from what came (from the package index,
which gives the default model, it begins anew).
"""

import threading
from collections.abc import Callable
from pathlib import Path

from node.detached import detached
from node.errors import KithError
from node.models import hub
from node.models.default import ensure_default_model
from node.models.source import HubSource, is_hub, parse, pulled_from, resolve_model
from node.models.store import ModelStore

#: Said again each time that so much more came.
TELL_SHARE = 0.1
#: A thread that hangs in a read from the Hub is left after this; the program that fetches the default model is ended,
#: which takes as long at most.
LEFT_AFTER_S, ENDED_WITHIN_S = 0.5, 6.0


async def obtained(spec: str, say: Callable[[str], None]) -> Path:
    """As `obtain`; where it is cancelled, fetching ends. Raises `KithError`."""
    stop = threading.Event()
    within_s = LEFT_AFTER_S if is_hub(spec) else ENDED_WITHIN_S
    return await detached(lambda: obtain(spec, say, stop.is_set), f"obtain {spec}", stop.set, within_s)


def obtain(spec: str, say: Callable[[str], None], stopped: Callable[[], bool] = lambda: False) -> Path:
    """Blocks, for as long as fetching takes, or until it is `stopped`. Raises `KithError`."""
    if not spec:
        return ensure_default_model(say, stopped)
    if not is_hub(spec):
        return resolve_model(spec)
    source, store = parse(spec), ModelStore()
    assert isinstance(source, HubSource)
    if (here := pulled_from(source, store)) is not None:
        return here.path
    say(f"Fetching {source}.")
    tell = Tenths(say)

    def progress(done: int, size: int) -> None:
        if stopped():
            raise KithError("cancelled", f"fetching {source} was stopped", "The next pull goes on.")
        tell(done, size)

    return hub.pull(source, store, progress=progress).path


class Tenths:
    """Progress for a log: a line for each tenth."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told = 0.0

    def __call__(self, done: int, size: int) -> None:
        if size and done / size >= self._told + TELL_SHARE:
            self._told = done / size
            self._say(f"Fetched {done / 1e6:.0f} of {size / 1e6:.0f} MB.")
