"""`kith`, with notes of what its KV moves cost, and made to move where somebody holds a prompt: for the bench `serve`.

Notes are lines of JSON appended to the file KITH_KV_NOTES: {tokens, rule_s} where the router asks what a move would
take, {came, bytes, seconds} where one took place here. With KITH_KV_FORCE=1 the node is told that any move takes no
time, so it always chooses one; what it would have been told is in the note.

Run in place of the module `node.cli.main`. What moves, how, and how long is waited for it is the node's own.
"""

import json
import os
import time

from mesh.identity import NodeId
from mesh.wire import engine_pb2, facts_pb2
from node.cli.main import main
from node.kv_moves import Brought, KvMoves

#: How to run it: what goes between the interpreter's options and the arguments of `kith`.
ENTRY = (__file__,)
NOTES = os.environ.get("KITH_KV_NOTES", os.devnull)
FORCED = os.environ.get("KITH_KV_FORCE") == "1"

_move_s, _bring, _fetch = KvMoves.move_s, KvMoves.bring, KvMoves._fetch
_fetched = 0


def _note(**values: float) -> None:
    with open(NOTES, "a", encoding="ascii") as file:
        file.write(json.dumps(values) + "\n")


def _asked(self: KvMoves, tokens: int, agent: facts_pb2.AgentProfile, holder: NodeId, taker: NodeId) -> float:
    rule_s = _move_s(self, tokens, agent, holder, taker)
    _note(tokens=tokens, rule_s=rule_s)
    return 0.0 if FORCED else rule_s


async def _fetch_noted(self: KvMoves, *arguments: object) -> tuple[int, bytes]:
    global _fetched
    tokens, state = await _fetch(self, *arguments)  # type: ignore[arg-type]
    _fetched = len(state)
    return tokens, state


async def _brought(
    self: KvMoves, holder: NodeId, request: engine_pb2.GenerateRequest, tokens: int, *, own_belief: bool = True
) -> Brought:
    global _fetched
    _fetched, began = 0, time.perf_counter()
    brought = await _bring(self, holder, request, tokens, own_belief=own_belief)
    _note(came=brought.tokens, bytes=_fetched, seconds=time.perf_counter() - began)
    return brought


if __name__ == "__main__":
    KvMoves.move_s = _asked  # type: ignore[method-assign]
    KvMoves.bring = _brought  # type: ignore[method-assign]
    KvMoves._fetch = _fetch_noted  # type: ignore[method-assign, assignment]
    main()
