"""`kith model advise`: asking the catalogue, this machine and, where wanted, the live mesh, and saying it in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.cli import output, session
from node.errors import ExitCode, KithError

if TYPE_CHECKING:
    import typer

    from mesh.wire import local_pb2
    from node.models.advise import Advice, Candidate, TaskKind
    from node.models.this_machine import Machine, Measured

COLUMNS = (
    output.Column(""),
    output.Column("model"),
    output.Column("quantisation", "drop"),
    output.Column("file", "drop", number=True),
    output.Column("memory", number=True),
    output.Column("writes/s", number=True),
    output.Column("a task", number=True),
    output.Column("context", "drop", number=True),
    output.Column("tier", "drop", number=True),
    output.Column("licence", "crop"),
    output.Column("languages", "crop"),
)
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def advise_model(ctx: typer.Context, task: str, memory: str, mesh: bool, as_json: bool) -> None:
    from node.models import catalogue
    from node.models.advise import advise
    from node.models.store import ModelStore
    from node.models.this_machine import this_machine

    if task not in catalogue.TASKS:
        raise KithError("usage", f"--task must be one of {', '.join(catalogue.TASKS)}", "", ExitCode.USAGE)
    machine = this_machine(_measured(ctx))
    entries = ModelStore().entries()
    here = {known for entry in entries for known in (entry.manifest.source, entry.manifest.sha256) if known}
    here |= {"" for entry in entries if _is_default(entry.name)}
    advice = advise(catalogue.load(), machine, task, parse_bytes(memory), sorted(here))
    served = session.ask_node(ctx, lambda node: node.nodes()) if mesh else []
    if as_json:
        output.emit(as_dict(advice, machine, served))
    else:
        _print(advice, machine, served, catalogue.load().read)


def parse_bytes(text: str) -> int:
    """8G, 512M or a plain number; 0 where it is empty. Raises `KithError`."""
    if not text:
        return 0
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?|\d{1,15})\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise KithError("usage", f"--memory must be a size, not {text!r}", "as in --memory 8G", ExitCode.USAGE)
    return int(float(found[1]) * UNITS[found[2].upper()])


def _is_default(name: str) -> bool:
    from node.models.default import DEFAULT_FILE

    return name == DEFAULT_FILE


def _measured(ctx: typer.Context) -> Measured | None:
    """What the running node measured with a model of its own; None without one."""
    from node.models.this_machine import Measured

    try:
        shown = session.ask_node(ctx, lambda node: node.show_model())
    except KithError:
        return None
    engine, rates = shown.engine, shown.calibrated
    if not (engine.model_bytes and engine.parameters and rates.decode_tokens_per_s and rates.prefill_tokens_per_s):
        return None
    return Measured(
        engine.model,
        engine.model_bytes,
        engine.parameters,
        rates.prefill_tokens_per_s,
        rates.decode_tokens_per_s,
        _active_share(shown.path),
    )


def _active_share(path: str) -> float:
    """Of the weights in a model file; all, where it can not be told."""
    from node import gguf

    try:
        return gguf.read_header(Path(path)).active_share if path else 1.0
    except KithError:
        return 1.0


def as_dict(advice: Advice, machine: Machine, served: list[local_pb2.NodeInfo]) -> dict[str, Any]:
    return {
        "task": advice.kind.name,
        "prompt_tokens": advice.kind.prompt_tokens,
        "output_tokens": advice.kind.output_tokens,
        "cores": machine.cores,
        "memory_bytes": machine.memory_bytes,
        "model_memory_bytes": advice.memory_bytes,
        "rates_from": advice.rates_from,
        "choice": advice.choice.model.name if advice.choice else None,
        "why": advice.why,
        "local": [_local(one) for one in advice.candidates],
        "hosted": [
            {
                "name": one.model.name,
                "vendor": one.model.vendor,
                "url": one.model.url,
                "input_dollars_per_million": one.model.input,
                "output_dollars_per_million": one.model.output,
                "dollars_per_1000_tasks": round(one.dollars_per_1000, 6),
                "context_tokens": one.model.context,
                "languages": one.model.languages,
                "price_date": one.model.price_date,
                "price_source": one.model.price_source,
            }
            for one in advice.hosted
        ],
        "mesh": [_served(node, agent, advice.kind) for node in served for agent in node.profile.agents],
    }


def _local(one: Candidate) -> dict[str, Any]:
    model = one.model
    return {
        "name": model.name,
        "source": model.source,
        "quantization": model.quantization,
        "bytes": model.bytes,
        "parameters": model.parameters,
        "needs_bytes": one.needs_bytes,
        "fits": one.fits,
        "here": one.here,
        "measured": one.measured,
        "thinks": model.thinks,
        "tier": one.tier,
        "estimated_prefill_tokens_per_s": round(one.prefill_tokens_per_s, 2),
        "estimated_decode_tokens_per_s": round(one.decode_tokens_per_s, 2),
        "estimated_seconds": round(one.seconds, 2),
        "joules_at_most": round(one.joules_max) or None,
        "quick_enough": one.quick_enough,
        "licence": model.licence,
        "languages": model.languages,
        "context_tokens": model.context,
        "sha256": model.sha256,
        "revision": model.revision or None,
        "page": model.page or None,
        "card": model.card,
        "evidence": model.evidence,
        "checked": model.checked,
    }


def _served(node: local_pb2.NodeInfo, agent: Any, kind: TaskKind) -> dict[str, Any]:
    return {
        "node_id": node.node_id,
        "node_name": node.name,
        "model": agent.model,
        "backend": agent.backend,
        "decode_tokens_per_s": agent.decode_tokens_per_s,
        "seconds": round(_seconds(agent, kind), 2) or None,
    }


def _seconds(agent: Any, kind: TaskKind) -> float:
    """Of one task, by the rates that the node measured; 0: not measured."""
    if not agent.prefill_tokens_per_s or not agent.decode_tokens_per_s:
        return 0.0
    read = kind.prompt_tokens / agent.prefill_tokens_per_s
    return float(read + kind.output_tokens / agent.decode_tokens_per_s)


def _print(advice: Advice, machine: Machine, served: list[local_pb2.NodeInfo], read: str) -> None:
    from node.models.advise import CONTEXT_TOKENS

    kind = advice.kind
    print(f"This machine: {machine.cores} cores, {output.size(advice.memory_bytes)} of memory for a model.")
    print(f"Task: {kind.name}, {kind.says} ({kind.prompt_tokens} tokens in, {kind.output_tokens} out).")
    print(output.wrapped(f"Memory: the file, a context of {CONTEXT_TOKENS} tokens, libraries. Speeds, but those called "
                         f"measured, are {advice.rates_from}.") + "\n")  # fmt: skip
    output.table(COLUMNS, [_row(one, advice) for one in advice.candidates])
    print()
    if any(one.model.thinks for one in advice.candidates) and advice.kind.decode_min:
        print(output.wrapped("(thinks): it writes its reasoning before the answer, so a task takes several times as "
                             "long; /no_think in the message turns that off for Qwen3."))  # fmt: skip
    if advice.choice is None:
        print(output.wrapped(f"No choice: {advice.why}."))
    else:
        _print_choice(advice, advice.choice)
    for hosted in advice.hosted:
        price = f"${hosted.dollars_per_1000:.2f} for 1000 such tasks"
        rates = f"${hosted.model.input:g} in, ${hosted.model.output:g} out for a million tokens"
        print(output.wrapped(f"Hosted: {hosted.model.name} ({hosted.model.vendor}): {price} ({rates}), "
                             f"list price as read on {hosted.model.price_date}. Your texts go there: kith up "
                             f"--engine openai --engine-url {hosted.model.url} "
                             f"--model {hosted.model.name}"))  # fmt: skip
    for node in served:
        for agent in node.profile.agents:
            seconds = _seconds(agent, kind)
            takes = f", such a task in {output.seconds(seconds)}" if seconds else ""
            print(output.one_line(f"In the mesh now: {agent.model} on {node.name}{takes}"))
    print(output.dim(f"The list is of {read}; its tiers are our order of what to expect, no measurement."))


def _row(one: Candidate, advice: Advice) -> tuple[str, ...]:
    return (
        "→" if one is advice.choice else "",
        one.model.name + "".join(_marks(one)),
        one.model.quantization,
        output.size(one.model.bytes),
        output.size(one.needs_bytes) if one.fits else "too large",
        output.rate(one.decode_tokens_per_s) if advice.kind.output_tokens else "–",
        output.seconds(one.seconds),
        f"{one.model.context:,}",
        str(one.tier),
        one.model.licence,
        one.model.languages,
    )


def _marks(one: Candidate) -> list[str]:
    marks = {" (here)": one.here, " (measured)": one.measured, " (thinks)": one.model.thinks}
    return [mark for mark, is_so in marks.items() if is_so]


def _print_choice(advice: Advice, choice: Candidate) -> None:
    print(f"{output.bold('Choice')}: {choice.model.name}")
    print(output.wrapped(f"why: {advice.why}", "  ", "  "))
    if choice.joules_max:
        kilowatt_hours = 1000 * choice.joules_max / 3.6e6
        print(
            f"  energy: at most {kilowatt_hours:.2g} kWh for 1000 such tasks, by the CPU's power limit (an upper bound)"
        )
    else:
        print("  energy: not known: this system does not say what power its CPU may draw")
    print(f"  card: {choice.model.card}, compared on {choice.model.checked}; more: {choice.model.evidence}")
    if choice.model.note:
        print(f"  note: {choice.model.note}")
    if not choice.here:
        print(f"  fetch it: kith model pull {choice.model.source}".rstrip())
