"""Changes the KV cache between split and unified while an engine runs, as `kv_choice` wants it.

A change is made between two steps. What idle slots hold goes to ordinary memory first (`spill.py`) and comes back when
a prompt wants it; what running requests hold is copied out, the cache is made anew, and it is copied in. So no request
ends or waits for others, or reads again unless a copy does not go in, and there are never two caches at a time. The
copies take at most about as much memory as spilled prefixes may; where running requests hold more, the change waits
until they do not.

Where there is no memory for a cache of the other kind, all goes on with this one, and no other change is tried.

Not guaranteed: that what was read under an adapter is still there for later requests, for such is never spilled; that
logits go on as they would have, see "Is a seed's output always the same?" in docs/engine.md.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence

from node.engine import llama
from node.engine.adapters import Adapters
from node.engine.kv_cache import KvCache, Slot
from node.engine.kv_choice import UNIFIED, KvChoice
from node.engine.radix import RadixTrie


class KvChanging:
    """Belongs to the thread that owns the context; `told` may be read by any."""

    def __init__(self, context: llama.Context, cache: KvCache, adapters: Adapters, token_bytes: int) -> None:
        """`token_bytes`: what a token takes in a sequence's state."""
        self._context = context
        self._cache = cache
        self._adapters = adapters
        self._token_bytes = token_bytes
        self._choice = KvChoice(context.kind)
        self._prompts: defaultdict[str, RadixTrie[int]] = defaultdict(RadixTrie)  # by adapter: those at work
        self._of: dict[int, tuple[str, int]] = {}  # adapter and tokens of each
        self._new = 0  # of them, since the last look
        self._refused = ""  # why no change is tried any more
        self.changes = 0
        self.told = self._tell()  # kind, and why

    def _tell(self) -> tuple[str, str]:
        return self._choice.kind, self._refused or self._choice.why

    def came(self, key: int, prompt: Sequence[int], adapter: str) -> None:
        """A request is being worked at from now on; see `look`."""
        self._prompts[adapter].insert(key, prompt)
        self._of[key] = adapter, len(prompt)
        self._new += 1

    def look(self) -> None:
        """All that come in this step have come: what each of them meets is counted."""
        if not self._new:
            return
        distinct = sum(trie.tokens for trie in self._prompts.values())
        total = sum(tokens for _, tokens in self._of.values())
        for _ in range(self._new):
            self._choice.seen(distinct, total)
        self._new = 0
        self.told = self._tell()

    def went(self, key: int) -> None:
        """It is over."""
        adapter, _ = self._of.pop(key)
        self._prompts[adapter].remove(key)

    def step(self, running: Sequence[Slot]) -> None:
        """Change, where it is wanted and possible now. Raises `KithError`: there is no memory for any cache.

        Args:
            running: the slots that requests are using.
        """
        if self._refused or self._choice.wanted == self._choice.kind:
            return
        holding = [slot for slot in running if slot.held]
        # An estimate: to ask the library takes milliseconds a sequence, and this may be asked at every step.
        if sum(len(slot.held) for slot in holding) * self._token_bytes <= self._cache.spill.limit_bytes:
            self._change(holding)

    def _change(self, holding: Sequence[Slot]) -> None:
        wanted, why = self._choice.wanted, self._choice.why
        self._cache.spill_idle()
        self._cache.forget_copy()
        states = {slot.id: self._context.state(slot.id) for slot in holding}
        self._context.change(wanted == UNIFIED)
        self._adapters.forget()
        for slot in holding:
            state = states.pop(slot.id)
            if not (state and self._context.restore(slot.id, state)):
                slot.held = []  # it is read again
        if self._context.kind == wanted:
            self._choice.changed(wanted)
            self.changes += 1
            said = f"the KV cache is {wanted} now ({why})"
        else:
            self._refused = f"auto: there was no memory for a {wanted} KV cache"
            said = f"the KV cache stays {self._context.kind} ({self._refused})"
        self.told = self._tell()
        print(said, file=sys.stderr, flush=True)
