"""Cost of one task on one agent, in seconds, term by term.

Why: the allocator must compare a task that waits behind others on a fast machine with one that starts at once on a
slow machine. Seconds are the common unit, and every term is kept by name so that `kith explain` can print it.

    queue    what the agent already has to do: queued prompt tokens / prefill rate + queued output tokens / decode rate
    load     loading its model, where that is not in memory
    prefill  reading this task's prompt: prompt tokens / prefill rate; those that it has cached are not read, or are
             brought from another agent where that is quicker
    decode   writing its answer: output tokens / decode rate

The terms sum to the cost.

Not guaranteed: that a task takes this long. Queued output counts as if it was decoded one sequence after the other,
which is an upper bound for an engine that decodes in batches, and output tokens are an upper bound too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Rates of an agent that was not measured yet, tokens/s: a 0.5B model on one laptop thread. Slow on purpose: such an
#: agent gets work when measured ones are busy, and has rates of its own after that.
PREFILL_PRIOR_TOKENS_PER_S = 65.0
DECODE_PRIOR_TOKENS_PER_S = 13.0
#: Published rates are held between these: a profile comes from another node, and a false one must turn no cost into
#: zero or infinity.
RATE_MIN_TOKENS_PER_S = 1e-3
RATE_MAX_TOKENS_PER_S = 1e6
#: And no model is said to take longer to load, seconds.
LOAD_MAX_S = 600.0


@dataclass(frozen=True, slots=True)
class AgentLoad:
    """What one agent can do and how much it has to do. Invariant: counts are not negative."""

    agent_id: str  # unique in a round, e.g. "<node id>/default"
    prefill_tokens_per_s: float = 0.0  # measured; 0: not measured
    decode_tokens_per_s: float = 0.0  # measured, one sequence alone; 0: not measured
    queued_prompt_tokens: int = 0
    queued_output_tokens: int = 0
    context_tokens: int = 0  # per slot; 0: not known, so it forbids nothing
    slots_free: int = 1  # tasks it can take in this round
    abilities: frozenset[str] = frozenset({"generate"})
    model: str = ""
    draining: bool = False  # takes no new work
    load_s: float = 0.0  # until its model is in memory, estimated; 0: it is


@dataclass(frozen=True, slots=True)
class TaskNeed:
    """What one task asks of an agent."""

    task_id: str  # unique in a round
    prompt_tokens: int
    output_tokens: int
    ability: str = "generate"
    abilities: frozenset[str] = frozenset()  # further ones that it needs
    forbidden_agents: frozenset[str] = field(default_factory=frozenset)  # it failed there, or its panel sits there
    panel: str = ""  # tasks of one non-empty panel go to distinct agents
    priority: int = 0  # higher is served first; equal ones in the order given


@dataclass(frozen=True, slots=True)
class Cached:
    """What of a prompt's beginning an agent need not read. Invariant: counts are not negative."""

    tokens: int = 0  # in its own cache
    elsewhere_tokens: int = 0  # in the cache of an agent that it can take them from
    move_s: float = 0.0  # what taking them costs

    def prefill_s(self, prompt_tokens: int, prefill_tokens_per_s: float) -> float:
        """The lesser of reading what is not cached here, and of moving and reading the rest."""
        read = max(0, prompt_tokens - self.tokens) / prefill_tokens_per_s
        if self.elsewhere_tokens <= self.tokens:
            return read
        return min(read, self.move_s + max(0, prompt_tokens - self.elsewhere_tokens) / prefill_tokens_per_s)

    def moves(self, prompt_tokens: int, prefill_tokens_per_s: float) -> bool:
        """Whether moving is the lesser."""
        here = Cached(self.tokens).prefill_s(prompt_tokens, prefill_tokens_per_s)
        return self.prefill_s(prompt_tokens, prefill_tokens_per_s) < here


NOTHING_CACHED = Cached()


def cost_terms(agent: AgentLoad, task: TaskNeed, cached: Cached = NOTHING_CACHED) -> dict[str, float] | None:
    """Seconds of `task` on `agent` by term, or None where the agent can not do it (`why_not` says why).

    Free slots are not looked at: they bound how many tasks an agent gets, not what one costs.
    """
    if why_not(agent, task):
        return None
    prefill, decode = rates(agent)
    terms = {"queue": agent.queued_prompt_tokens / prefill + agent.queued_output_tokens / decode}
    if agent.load_s > 0.0:
        terms["load"] = min(agent.load_s, LOAD_MAX_S)
    terms["prefill"] = cached.prefill_s(task.prompt_tokens, prefill)
    terms["decode"] = task.output_tokens / decode
    return terms


def why_not(agent: AgentLoad, task: TaskNeed) -> str:
    """Why `agent` can not do `task`, as a phrase after "because"; empty where it can."""
    if agent.draining:
        return "it takes no new work"
    if lacking := sorted(({task.ability} | task.abilities) - agent.abilities):
        return f"it can not {' nor '.join(map(_phrase, lacking))}"
    if agent.agent_id in task.forbidden_agents:
        return "it is excluded for this task"
    needed = task.prompt_tokens + task.output_tokens
    if 0 < agent.context_tokens < needed:
        return f"its context holds {agent.context_tokens} tokens and the task needs {needed}"
    return ""


#: What an agent lacks, as a phrase after "it can not"; other abilities are verbs themselves.
_PHRASES = {
    "grammar": "follow a grammar",
    "json_schema": "hold to a JSON schema",
    "logprobs": "tell log-probabilities",
    "tools": "call tools",
    "kv": "move its cache",
    "continue": "go on from a given beginning",
    "continue_form": "go on within a grammar or schema",
}


def _phrase(ability: str) -> str:
    return _PHRASES.get(ability, ability)


def cost_matrix(agents: Sequence[AgentLoad], tasks: Sequence[TaskNeed]) -> list[list[float]]:
    """Seconds, one row a task and one column an agent; `math.inf` where the agent can not do the task."""
    return [[_total(cost_terms(agent, task)) for agent in agents] for task in tasks]


def rates(agent: AgentLoad) -> tuple[float, float]:
    """Tokens a second of prefill and decode, safe to divide by."""
    return (
        _rate(agent.prefill_tokens_per_s, PREFILL_PRIOR_TOKENS_PER_S),
        _rate(agent.decode_tokens_per_s, DECODE_PRIOR_TOKENS_PER_S),
    )


def _total(terms: dict[str, float] | None) -> float:
    return math.inf if terms is None else sum(terms.values())


def _rate(measured: float, prior: float) -> float:
    """A rate that is safe to divide by."""
    if not math.isfinite(measured) or measured <= 0.0:
        return prior
    return min(max(measured, RATE_MIN_TOKENS_PER_S), RATE_MAX_TOKENS_PER_S)
