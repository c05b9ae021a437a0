"""Which model for this machine and kind of task: the best that fits and is quick enough, with the reasons.

    writes (tokens/s) = bytes of memory read a second / bytes of the weights that a token uses
    reads  (tokens/s) = what a node measured, scaled by parameters that a token uses; else PREFILL_OVER_DECODE × writes

Idea: of the catalogue's models that suit the task, those whose weights, cache and libraries fit in memory are ranked by
tier; the best tier that is fast enough wins, the quicker one of two equals. What is estimated is called so.
A hosted model is set against it with its price; it is never chosen, because it sends the text away: that is the owner's
decision.

Not guaranteed: the tier is our reading of published reports, of the models as published; quantisation costs some of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from node.gguf import OVERHEAD_BYTES
from node.models.catalogue import TIER_MAX, Catalogue, HostedModel, LocalModel
from node.models.this_machine import Machine

#: Reading a prompt is bound by arithmetic, writing by memory: so many times faster on CPUs that were measured. A guess.
PREFILL_OVER_DECODE = 3.0
#: Share of the bandwidth that an engine reaches: measured 86–97 % of the roofline.
BANDWIDTH_SHARE = 0.85
#: Left to everything else on the machine.
MEMORY_SHARE = 0.9
CONTEXT_TOKENS = 4096


@dataclass(frozen=True)
class TaskKind:
    """`decode_min`: tokens/s below which it is no fun; 0: writing does not matter.

    `seconds_max`: nobody waits longer for one task, and a job of the mesh is many.
    """

    name: str
    prompt_tokens: int
    output_tokens: int
    decode_min: float
    seconds_max: float
    says: str


KINDS = {
    kind.name: kind
    for kind in (
        TaskKind("chat", 500, 300, 6.0, 90.0, "a dialogue: answers are read as they come, about six tokens a second"),
        TaskKind("summarise", 3000, 250, 3.0, 300.0, "long texts in, short ones out: reading speed and context count"),
        TaskKind("code", 1000, 600, 6.0, 240.0, "programs: models trained on code"),
        TaskKind("extract", 1500, 150, 3.0, 120.0, "fields out of texts: following the form counts"),
        TaskKind("embed", 500, 0, 0.0, 10.0, "vectors for search: nothing is written"),
        TaskKind("classify", 300, 5, 0.0, 30.0, "one of several labels: almost nothing is written"),
    )
}


@dataclass(frozen=True)
class Candidate:
    """Rates and times are estimates, for one request alone."""

    model: LocalModel
    tier: int
    needs_bytes: int
    fits: bool
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    seconds: float  # one task of this kind
    joules_max: float  # at the CPU's power limit; 0: not known
    quick_enough: bool
    here: bool  # the file is on this machine
    measured: bool  # the rates are of this very model, as a node here measured it


@dataclass(frozen=True)
class Hosted:
    model: HostedModel
    dollars_per_1000: float  # tasks of this kind


@dataclass(frozen=True)
class Advice:
    kind: TaskKind
    memory_bytes: int
    rates_from: str
    candidates: tuple[Candidate, ...]  # the best first
    choice: Candidate | None
    why: str
    hosted: tuple[Hosted, ...]


def advise(
    catalogue: Catalogue, machine: Machine, task: str, memory_bytes: int = 0, here: Sequence[str] = ()
) -> Advice:
    """
    Args:
        memory_bytes: what the model may take; 0: nine tenths of what is free.
        here: sources and hashes of the files that are on this machine.
    """
    kind = KINDS[task]
    memory = memory_bytes or int(MEMORY_SHARE * machine.available_bytes)
    found = [
        _candidate(model, kind, machine, memory, model.source in here or model.sha256 in here)
        for model in catalogue.local
        if task in model.tasks
    ]
    found.sort(key=lambda one: (not (one.fits and one.quick_enough), not one.fits, -one.tier, one.seconds))
    choice, why = _choose(found, kind)
    hosted = tuple(
        Hosted(model, 1000 * model.price(kind.prompt_tokens, kind.output_tokens))
        for model in sorted(catalogue.hosted, key=lambda model: model.price(kind.prompt_tokens, kind.output_tokens))
        if task in model.tasks
    )
    return Advice(kind, memory, _rates_from(machine), tuple(found), choice, why, hosted)


def _candidate(model: LocalModel, kind: TaskKind, machine: Machine, memory: int, here: bool) -> Candidate:
    context = min(CONTEXT_TOKENS, model.context)
    needs = model.bytes + model.kv_bytes_per_token * context + OVERHEAD_BYTES
    prefill, decode = rates(model, machine)
    seconds = (kind.prompt_tokens / prefill + kind.output_tokens / decode) if prefill and decode else 0.0
    return Candidate(
        model,
        model.tasks[kind.name],
        needs,
        needs <= memory,
        prefill,
        decode,
        seconds,
        seconds * machine.watts_max,
        decode >= kind.decode_min and seconds <= kind.seconds_max,
        here,
        _is_measured(model, machine),
    )


def _is_measured(model: LocalModel, machine: Machine) -> bool:
    return machine.measured is not None and machine.measured.model_bytes == model.bytes


def rates(model: LocalModel, machine: Machine) -> tuple[float, float]:
    """Tokens/s read and written, estimated where this very model was not measured; 0 where nothing is known."""
    active_bytes = model.bytes * model.active_share
    if (measured := machine.measured) is not None:
        if _is_measured(model, machine):
            return measured.prefill_tokens_per_s, measured.decode_tokens_per_s
        decode = measured.decode_tokens_per_s * measured.model_bytes * measured.active_share / active_bytes
        active = model.active or model.parameters
        return measured.prefill_tokens_per_s * measured.parameters * measured.active_share / active, decode
    decode = BANDWIDTH_SHARE * machine.read_bytes_per_s / active_bytes
    return PREFILL_OVER_DECODE * decode, decode


def _rates_from(machine: Machine) -> str:
    if machine.measured is not None:
        return f"estimated from what this node measured with {machine.measured.model}"
    return f"estimated from memory that is read at {machine.read_bytes_per_s / 1e9:.1f} GB/s, measured now"


def _choose(found: list[Candidate], kind: TaskKind) -> tuple[Candidate | None, str]:
    fitting = [one for one in found if one.fits]
    if not fitting:
        smallest = min((one.needs_bytes for one in found), default=0)
        return None, f"none fits: the smallest needs {smallest / 1e9:.1f} GB of memory"
    quick = [one for one in fitting if one.quick_enough]
    if not quick:
        best = min(fitting, key=lambda one: (one.seconds, -one.decode_tokens_per_s))
        writes = f"writes {kind.decode_min:g} tokens/s and " if kind.decode_min else ""
        return best, f"no model that fits {writes}does such a task in {kind.seconds_max:g} s here, so the quickest one"
    best = quick[0]
    among = f"the best of the {len(quick)} that fit and are" if len(quick) > 1 else "the only one that fits and is"
    words = [f"tier {best.tier} of {TIER_MAX} for this kind of task, {among} quick enough"]
    if equals := [one for one in quick[1:] if one.tier == best.tier]:
        names = ", ".join(one.model.name for one in equals)
        words.append(f"quicker than {names}, which {'is' if len(equals) == 1 else 'are'} as good")
    if slower := [one for one in fitting if not one.quick_enough and one.tier > best.tier]:
        words.append(f"{slower[0].model.name} would be better, and too slow here")
    if larger := [one for one in found if not one.fits and one.tier > best.tier]:
        least = min(larger, key=lambda one: one.needs_bytes)
        words.append(f"{least.model.name} would be better with {least.needs_bytes / 1e9:.1f} GB of memory")
    return best, "; ".join(words)
