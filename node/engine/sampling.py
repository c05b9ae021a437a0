"""Which sampler a request gets: none for greedy (numpy's argmax is 20 times faster), a chain of llama.cpp's otherwise.

Order of the chain: penalties, top-k, top-p, min-p, temperature, then the draw, as llama.cpp orders them.
"""

from mesh.wire import engine_pb2
from node.engine import llama
from node.errors import KithError

#: Tokens that a repeat penalty looks back on.
PENALTY_TOKENS = 256

#: llama.cpp reads this seed as "take a random one".
_RANDOM_SEED = 0xFFFFFFFF


def seed_of(sampling: engine_pb2.Sampling) -> int:
    """The request's 64-bit seed, folded to the 32 bits of llama.cpp; never the one that means "random"."""
    folded = (sampling.seed ^ (sampling.seed >> 32)) & 0xFFFFFFFF
    return folded if folded != _RANDOM_SEED else _RANDOM_SEED >> 1


def check(sampling: engine_pb2.Sampling) -> None:
    """Raises `KithError` (`bad-request`) for values that no sampler accepts."""
    within = {
        "temperature": 0 <= sampling.temperature <= 100,
        "top_p": 0 <= sampling.top_p <= 1,
        "min_p": 0 <= sampling.min_p <= 1,
        "repeat_penalty": 0 <= sampling.repeat_penalty <= 10,
        "top_k": sampling.top_k <= 1_000_000,
    }
    for name, good in within.items():
        if not good:
            raise KithError("bad-request", f"the sampling value {name} is out of range", "See the API's limits.")


def chain_of(sampling: engine_pb2.Sampling, model: llama.Model) -> llama.Chain | None:
    """None: greedy without penalties. The caller closes the chain."""
    penalised = sampling.repeat_penalty not in (0.0, 1.0)
    if sampling.temperature <= 0 and not penalised:
        return None
    chain = llama.Chain()
    if penalised:
        chain.add_penalties(model.vocabulary_size, PENALTY_TOKENS, sampling.repeat_penalty)
    if sampling.temperature <= 0:
        chain.add_greedy()
        return chain
    if sampling.top_k:
        chain.add_top_k(sampling.top_k)
    if 0 < sampling.top_p < 1:
        chain.add_top_p(sampling.top_p)
    if sampling.min_p > 0:
        chain.add_min_p(sampling.min_p)
    chain.add_temperature(sampling.temperature)
    chain.add_draw(seed_of(sampling))
    return chain
