"""The file of the model that a node was told to serve, fetched where it is not here yet."""

from collections.abc import Callable
from pathlib import Path

from node.models import hub
from node.models.default import ensure_default_model
from node.models.source import HubSource, is_hub, parse, pulled_from, resolve_model
from node.models.store import ModelStore

#: Said again each time that so much more came.
TELL_SHARE = 0.1


def obtain(spec: str, say: Callable[[str], None]) -> Path:
    """Blocks, for as long as fetching takes. Raises `KithError`."""
    if not spec:
        return ensure_default_model(say)
    if not is_hub(spec):
        return resolve_model(spec)
    source, store = parse(spec), ModelStore()
    assert isinstance(source, HubSource)
    if (here := pulled_from(source, store)) is not None:
        return here.path
    say(f"Fetching {source}.")
    return hub.pull(source, store, progress=Tenths(say)).path


class Tenths:
    """Progress for a log: a line for each tenth."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told = 0.0

    def __call__(self, done: int, size: int) -> None:
        if size and done / size >= self._told + TELL_SHARE:
            self._told = done / size
            self._say(f"Fetched {done / 1e6:.0f} of {size / 1e6:.0f} MB.")
