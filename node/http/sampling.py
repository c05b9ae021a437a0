"""How to choose tokens, and when to stop: OpenAI's fields, and those that other servers of local models have too.

Every field is checked for its bounds. Does not: know whether an agent honours all of them; those behind `--engine
openai` pass on what their server takes.
"""

import time
from collections.abc import Mapping
from typing import Any

from mesh.wire import engine_pb2
from node.http.fields import Refused, integer, mapping, number, text

#: Where nothing is said. OpenAI's is 1: too hot for small models.
TEMPERATURE = 0.7
TEMPERATURE_MAX = 2.0
#: Less holds no other tokens, and to an engine 0 would mean all of them.
TOP_P_MIN = 1e-6
SEED_MAX = (1 << 63) - 1
STOPS_MAX = 8
BIASES_MAX = 1024
BIAS_MAX = 100.0
TOKENS_MAX = 1 << 20
TOKEN_IDS = 1 << 32


def apply_sampling(body: Mapping[str, Any], request: engine_pb2.GenerateRequest) -> None:
    """Raises `Refused`."""
    sampling = request.sampling
    sampling.temperature = number(body, "temperature", TEMPERATURE, 0.0, TEMPERATURE_MAX)
    sampling.top_p = max(TOP_P_MIN, number(body, "top_p", 1.0, 0.0, 1.0))
    sampling.top_k = integer(body, "top_k", 0, 0, 1 << 20)
    sampling.min_p = number(body, "min_p", 0.0, 0.0, 1.0)
    sampling.repeat_penalty = number(body, "repeat_penalty", 0.0, 0.0, 10.0)
    sampling.frequency_penalty = number(body, "frequency_penalty", 0.0, -2.0, 2.0)
    sampling.presence_penalty = number(body, "presence_penalty", 0.0, -2.0, 2.0)
    sampling.seed = integer(body, "seed", time.time_ns() & 0xFFFFFFFF, 0, SEED_MAX)
    for token, bias in _biases(body.get("logit_bias")).items():
        sampling.logit_bias[token] = bias
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > STOPS_MAX:
        raise Refused(f"stop is neither a text nor a list of at most {STOPS_MAX} texts", "stop")
    request.stop.extend(text(one, "stop") for one in stops)
    if not all(request.stop):
        raise Refused("stop holds an empty text", "stop")


def tokens_max(body: Mapping[str, Any], *keys: str) -> int:
    """The first of these fields that is there; 0: what fits. Raises `Refused`."""
    for key in keys:
        if body.get(key) is not None:
            return integer(body, key, 0, 1, TOKENS_MAX)
    return 0


def _biases(value: Any) -> dict[int, float]:
    if not value:
        return {}
    biases = mapping(value, "logit_bias")
    if len(biases) > BIASES_MAX:
        raise Refused(f"logit_bias has more than {BIASES_MAX:,} entries", "logit_bias")
    found = {}
    for key in biases:
        if not (key.isascii() and key.isdigit() and len(key) < 11 and int(key) < TOKEN_IDS):
            raise Refused("logit_bias has a key that is no token id", "logit_bias")
        found[int(key)] = number(biases, key, 0.0, -BIAS_MAX, BIAS_MAX)
    return found
