"""Serve: several nodes answering as one. Real daemons over mTLS on loopback, one thread an engine.

  - Against the bare engine (`tokens_ratio`, `ttft_added_ms_p50`): client → node A, without a model → node B, with the
    model of --model. Ten pairs. The same through A's HTTP door (`http_tokens_ratio`, `http_ttft_added_ms_p50`), in ten
    pairs with the bare engine between those.
  - Death of the node that answers (`pause_s_p50`, `continued`): a 64-token prompt, SIGKILL after 32 tokens, greedy; the
    client reads on through node A. `continued` is `equal` and `shown`: the text is that of an uninterrupted run of the
    same prompt, or one engine without any mesh writes both texts, one where the tokens that were sent are read at once
    and one where they are written one by one, up to and with the first token that differs. The rest is `unexplained`.
    Some 20 s each.
  - KV moved between two nodes against reading the prompt again (`kv256_…`, `kv1024_…`, `kv4096_…`): seconds to the
    first token (`read_ttft_s`, `move_ttft_s`, medians), megabytes moved, and what the product's own rule thinks of both
    and whether that is right. KITH_BENCH_KV_ROUNDS prompts of each of KITH_BENCH_KV_TOKENS (256,1024,4096) with
    KITH_BENCH_KV_CTX (6144) tokens of context. One of 4,096 takes as long as an engine reads that, some 30 s.
  - Routing (`routed_…`): the product's router in virtual time, over four simulated engines with set rates and a prefix
    cache; dialogues that grow, and three ways to choose: by costs, the engine with the fewest requests, any. Where all
    caches fit (`fit`) and where they overflow (`overflow`): mean seconds to the first token (`ttft_s`) and the part of
    a prompt that was cached, of KITH_BENCH_ROUTING seeds the median, the least and the most; and in how many seeds a
    way had the least seconds (`quickest`). Two seconds a seed.

KITH_BENCH_PAIRS, KITH_BENCH_DEATHS, KITH_BENCH_KV_ROUNDS, KITH_BENCH_ROUTING: how many; 0 leaves the part out.
KITH_BENCH_TOKENS: of one answer of a pair.
"""

import asyncio

from scripts.benches import _serve_deaths, _serve_kv, _serve_pairs, _serve_routing, model


def figures() -> dict[str, float]:
    path = model()
    found: dict[str, float] = {}
    if _serve_pairs.PAIRS:
        found |= asyncio.run(_serve_pairs.measure(path))
    if _serve_deaths.DEATHS:
        found |= asyncio.run(_serve_deaths.measure(path))
    if _serve_kv.ROUNDS:
        found |= asyncio.run(_serve_kv.measure(path))
    if _serve_routing.SEEDS:
        found |= _serve_routing.measure()
    return found
