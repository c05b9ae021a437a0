"""Serve: several nodes answering as one. Real daemons over mTLS on loopback, one thread an engine.

  - Against the bare engine (`tokens_ratio`, `ttft_added_ms_p50`): client → node A, without a model → node B, with the
    model of --model. Ten pairs.
  - Death of the node that answers (`pause_s_p50`, `continued`): a 64-token prompt, SIGKILL after 32 tokens, greedy; the
    client reads on through node A. `continued` is `equal` and `shown`: the text is that of an uninterrupted run of the
    same prompt, or one engine without any mesh writes both texts, one where the tokens that were sent are read at once
    and one where they are written one by one, up to and with the first token that differs. The rest is `unexplained`.
    Some 20 s each.
  - Routing (`routed_…`): a simulation in virtual time of four engines with set rates and a prefix cache, dialogues that
    grow, and three ways to choose; where all caches fit (`fit`) and where they overflow (`overflow`). Mean seconds to
    the first token, and the part of the prompt tokens that were cached.

KITH_BENCH_PAIRS, KITH_BENCH_DEATHS: how many; 0 leaves the part out. KITH_BENCH_TOKENS: of one answer of a pair.
"""

import asyncio

from scripts.benches import _serve_deaths, _serve_pairs, _serve_routing, model


def figures() -> dict[str, float]:
    path = model()
    found: dict[str, float] = {}
    if _serve_pairs.PAIRS:
        found |= asyncio.run(_serve_pairs.measure(path))
    if _serve_deaths.DEATHS:
        found |= asyncio.run(_serve_deaths.measure(path))
    return found | _serve_routing.measure()
