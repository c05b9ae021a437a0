"""`kith model`: what this node's engine holds, and fetching the default model by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from node.cli import output, session

if TYPE_CHECKING:
    from mesh.wire import local_pb2

group = typer.Typer(help="The model of this node.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="model")


@group.command("show")
def show(ctx: typer.Context, as_json: session.Json = False) -> None:
    """Say what the node's engine has loaded and how fast it is."""
    from node.cli import as_json as shapes

    reply = session.ask_node(ctx, lambda node: node.show_model())
    if as_json:
        output.emit(shapes.model(reply))
        return
    for key, text in _lines(reply).items():
        print(f"{output.dim(f'{key:<13}')}{output.one_line(text)}")


def _lines(reply: local_pb2.ShowModelReply) -> dict[str, str]:
    engine, rates = reply.engine, reply.calibrated
    parameters = f"{engine.parameters / 1e6:.0f} M" if engine.parameters < 1e9 else f"{engine.parameters / 1e9:.1f} B"
    return {
        "model": engine.model or "–",
        "file": reply.path or "–",
        "size": f"{output.size(engine.model_bytes)}, {parameters} parameters, {engine.quantization or '–'}"
        if engine.model_bytes
        else "–",
        "architecture": engine.architecture or "–",
        "context": f"{engine.context_tokens} tokens a slot, {engine.slots} slots"
        + (f"; trained on {engine.trained_context_tokens}" if engine.trained_context_tokens else ""),
        "threads": str(engine.threads),
        "template": "in the file" if engine.has_chat_template else "none",
        "abilities": ", ".join(engine.abilities) or "–",
        "speed": f"reads {output.rate(rates.prefill_tokens_per_s)}, writes {output.rate(rates.decode_tokens_per_s)} "
        "tokens/s, measured when it started",
        "loaded in": output.seconds(engine.load_seconds),
        "licence": engine.licence or "–",
        "built for": engine.system_info or "–",
    }


@group.command("pull")
def pull(as_json: session.Json = False) -> None:
    """Fetch the default model, checked by its hash; nothing happens where it is already there."""
    from node.models import ensure_default_model

    path = ensure_default_model() if as_json else ensure_default_model(lambda line: output.note(output.clean(line)))
    if as_json:
        output.emit({"path": str(path), "bytes": path.stat().st_size})
    else:
        print(f"the default model is at {path}")
