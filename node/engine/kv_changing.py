"""Changes the KV cache between split and unified while an engine runs, as `kv_choice` wants it.

A change is made between two steps. What idle slots hold goes to ordinary memory first (`spill.py`) and comes back when
a prompt wants it; what running requests hold is copied out, the cache is made anew, and it is copied in. So no request
ends or waits for others, and there are never two caches at a time. The copies take at most as much memory as spilled
prefixes may; where running requests hold more, the change waits for `WAIT_S`, and then what does not fit is read again,
which loses nothing but time. A scoring of which some logits were seen can not be: one that does not fit is waited for.

Not guaranteed: that what was read under an adapter is still there for later requests, for such is never spilled; that
logits go on as they would have, see "Is a seed's output always the same?" in docs/engine.md.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from node.engine import llama
from node.engine.adapters import Adapters
from node.engine.kv_cache import KvCache, Slot
from node.engine.kv_choice import SPLIT, UNIFIED, KvChoice
from node.engine.radix import RadixTrie

#: How long a change waits at most until what running requests hold can be taken along, seconds.
WAIT_S = 30.0


@dataclass(frozen=True)
class Running:
    """A slot that a request is using. `outputs_from`: the request has seen no logits of tokens before this index."""

    slot: Slot
    outputs_from: int

    @property
    def readable_again(self) -> bool:
        return len(self.slot.held) <= self.outputs_from


class KvChanging:
    """Belongs to the thread that owns the context; `told` may be read by any."""

    def __init__(self, context: llama.Context, cache: KvCache, adapters: Adapters) -> None:
        self._context = context
        self._cache = cache
        self._adapters = adapters
        self._choice = KvChoice(_kind(context))
        self._prompts: defaultdict[str, RadixTrie[int]] = defaultdict(RadixTrie)  # by adapter: those at work
        self._of: dict[int, tuple[str, int]] = {}  # adapter and tokens of each
        self._total = 0  # tokens of all of them
        self._new = 0  # of them, since the last look
        self._wanted_since: float | None = None
        self.changes = 0
        self.told = (self._choice.kind, self._choice.why)

    def came(self, key: int, prompt: Sequence[int], adapter: str) -> None:
        """A request is being worked at from now on; see `look`."""
        self._prompts[adapter].insert(key, prompt)
        self._of[key] = adapter, len(prompt)
        self._total += len(prompt)
        self._new += 1

    def look(self) -> None:
        """All that come in this step have come: what each of them meets is counted."""
        if not self._new:
            return
        distinct = sum(trie.tokens for trie in self._prompts.values())
        for _ in range(self._new):
            self._choice.seen(distinct, self._total)
        self._new = 0
        self.told = (self._choice.kind, self._choice.why)

    def went(self, key: int) -> None:
        """It is over."""
        adapter, tokens = self._of.pop(key)
        self._prompts[adapter].remove(key)
        self._total -= tokens

    def step(self, now: float, running: Sequence[Running]) -> None:
        """Change, where it is wanted and possible now. Raises `KithError`: there is no memory for any cache."""
        if self._choice.wanted == self._choice.kind:
            self._wanted_since = None
            return
        if self._wanted_since is None:
            self._wanted_since = now
        holding = [one for one in running if one.slot.held]
        taken, room = [], self._cache.spill.limit_bytes
        for one in sorted(holding, key=lambda one: one.readable_again):
            size = self._context.state_bytes(one.slot.id)
            if size <= room:
                taken.append(one)
                room -= size
            elif not one.readable_again or now - self._wanted_since < WAIT_S:
                return
        self._change(holding, taken)

    def _change(self, holding: Sequence[Running], taken: Sequence[Running]) -> None:
        wanted, why = self._choice.wanted, self._choice.why
        self._cache.spill_idle()
        self._cache.forget_copy()
        states = {one.slot.id: self._context.state(one.slot.id) for one in taken}
        self._context.change(wanted == UNIFIED)
        self._adapters.forget()
        for one in holding:
            state = states.pop(one.slot.id, None)
            if not (state and self._context.restore(one.slot.id, state)):
                assert one.readable_again
                one.slot.held = []
        self._wanted_since = None
        self._choice.changed(_kind(self._context))
        self.told = (self._choice.kind, self._choice.why)
        self.changes += 1
        print(f"the KV cache is {self._choice.kind} now ({why})", file=sys.stderr, flush=True)


def _kind(context: llama.Context) -> str:
    return UNIFIED if context.unified else SPLIT
