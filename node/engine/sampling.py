"""Which token comes next: by a request's sampling values, and by its grammar where it has one.

Greedy is numpy's argmax, 20 times faster than a chain of llama.cpp's samplers, which does the rest. Order of the
chain: bias, penalties, top-k, top-p, min-p, temperature, then the draw, as llama.cpp orders them.

Each draw has a seed of its own, made of the request's seed and the number of the token in the answer. So an answer that
goes on elsewhere from the tokens so far draws the same from there on, and a grammar's refusals shift nothing.

The grammar comes last: the token that was chosen is checked, and only when it is refused another is chosen, without
the refused ones. That draws from the same distribution as to take away beforehand all that the grammar refuses.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mesh.wire import engine_pb2
from node.engine import llama
from node.engine.gbnf import bad_grammar
from node.engine.grammar import Matcher
from node.errors import ExitCode, KithError
from node.limits import LOGIT_BIAS_MAX

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Tokens of the answer that penalties look back on.
PENALTY_TOKENS = 256

#: Choices that a grammar may refuse before all that it allows is worked out, where that is much.
TRIES = 12

#: Of so many of the likeliest tokens it is looked which ones a grammar allows, before the whole vocabulary is.
LIKELY = 256

#: llama.cpp reads this seed as "take a random one".
_RANDOM_SEED = 0xFFFFFFFF
_MASK_64 = (1 << 64) - 1


def seed_of(seed: int, number: int, attempt: int = 0) -> int:
    """The 32-bit seed for token `number` of an answer under a request's 64-bit seed (splitmix64); never the one that
    means "random". `attempt`: at most 15, each of its own, for what was refused must not steer what comes instead."""
    mixed = (seed + (number << 4 | attempt) * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK_64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK_64
    folded = (mixed ^ (mixed >> 31)) & 0xFFFFFFFF
    return folded if folded != _RANDOM_SEED else _RANDOM_SEED >> 1


def check(sampling: engine_pb2.Sampling, vocabulary_size: int) -> None:
    """Raises `KithError` (`bad-request`) for values that no sampler accepts."""
    within = {
        "temperature": 0 <= sampling.temperature <= 100,
        "top_p": 0 <= sampling.top_p <= 1,
        "min_p": 0 <= sampling.min_p <= 1,
        "repeat_penalty": 0 <= sampling.repeat_penalty <= 10,
        "frequency_penalty": -10 <= sampling.frequency_penalty <= 10,
        "presence_penalty": -10 <= sampling.presence_penalty <= 10,
        "top_k": sampling.top_k <= 1_000_000,
        "logit_bias": len(sampling.logit_bias) <= LOGIT_BIAS_MAX
        and all(-100 <= bias <= 100 for bias in sampling.logit_bias.values()),
    }
    for name, good in within.items():
        if not good:
            message = f"the sampling value {name} is out of range"
            raise KithError("bad-request", message, "See the API's limits.", ExitCode.BAD_INPUT)
    for token in sampling.logit_bias:
        if token >= vocabulary_size:
            message = f"logit_bias names the token {token}; the model has {vocabulary_size:,} tokens"
            raise KithError("bad-request", message, "Use token ids of this model.", ExitCode.BAD_INPUT)


def chain_of(sampling: engine_pb2.Sampling, model: llama.Model) -> llama.Chain | None:
    """None: greedy without penalties and bias. The caller closes the chain."""
    repeat = sampling.repeat_penalty or 1.0
    penalised = repeat != 1.0 or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
    if sampling.temperature <= 0 and not penalised and not sampling.logit_bias:
        return None
    chain = llama.Chain(model)
    if sampling.logit_bias:
        chain.add_logit_bias(sampling.logit_bias)
    if penalised:
        chain.add_penalties(PENALTY_TOKENS, repeat, sampling.frequency_penalty, sampling.presence_penalty)
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
    return chain


class Sampler:
    """Chooses the tokens of one answer. Close it."""

    def __init__(self, sampling: engine_pb2.Sampling, model: llama.Model, matcher: Matcher | None = None) -> None:
        self._seed = sampling.seed if sampling.temperature > 0 else None
        self._is_end = model.is_end
        self._chain = chain_of(sampling, model)
        self._matcher = matcher
        self._number = 0  # of tokens in the answer

    @property
    def complete(self) -> bool:
        """Nothing can follow in the grammar."""
        return self._matcher is not None and self._matcher.over

    def resume(self, tokens: Sequence[int]) -> None:
        """The answer so far. Raises `KithError` (`bad-grammar`) where it breaks the grammar."""
        if self._matcher is not None and not self._matcher.resume(tokens):
            raise bad_grammar("the answer so far does not follow it")
        self._number += len(tokens)
        if self._chain is not None:
            for token in tokens:
                self._chain.accept(token)

    def take(self, logits: "NDArray[np.float32]") -> int:
        """The next token. Raises `KithError` (`bad-grammar`)."""
        token = self._choose(logits)
        if self._matcher is not None and not self._matcher.allows(token):
            token = self._choose_allowed(logits.copy(), token, self._matcher)
        self._keep(token)
        return token

    def _choose(self, logits: "NDArray[np.float32]", attempt: int = 0) -> int:
        if self._chain is None:
            return int(logits.argmax())
        return self._chain.sample(logits, None if self._seed is None else seed_of(self._seed, self._number, attempt))

    def _choose_allowed(self, logits: "NDArray[np.float32]", refused: int, matcher: Matcher) -> int:
        allowed = matcher.allowed(patient=False)
        if allowed is None:
            row = logits.copy()
            for attempt in range(1, TRIES):
                row[refused] = -np.inf
                refused = self._choose(row, attempt)
                if matcher.allows(refused):
                    return refused
            allowed = self._likely(logits, matcher)
            if not len(allowed):
                allowed = matcher.allowed()
        assert allowed is not None
        if not len(allowed):
            raise bad_grammar("no token of the model can follow what was said")
        likeliest = int(allowed[logits[allowed].argmax()])
        if self._chain is None:
            return likeliest
        row = np.full_like(logits, -np.inf)
        row[allowed] = logits[allowed]
        token = self._choose(row, TRIES)
        return token if np.isfinite(row[token]) else likeliest

    @staticmethod
    def _likely(logits: "NDArray[np.float32]", matcher: Matcher) -> "NDArray[np.int32]":
        """Those of the likeliest tokens that may come: to look through the whole vocabulary takes hundreds of times as
        long, and in bounded text each character is a place that was never looked at."""
        first = -min(LIKELY, len(logits))
        tokens = np.argpartition(logits, first)[first:]
        return np.array([token for token in tokens.tolist() if matcher.allows(token)], dtype=np.int32)

    def _keep(self, token: int) -> None:
        self._number += 1
        if self._chain is not None:
            self._chain.accept(token)
        if self._matcher is not None and not self._is_end(token):
            self._matcher.accept(token)

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()
