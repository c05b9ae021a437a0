"""`kith chat`: a dialogue with an agent of the mesh, on a terminal or through a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli import output, session
from node.errors import ExitCode, KithError

if TYPE_CHECKING:
    from mesh.wire import engine_pb2, local_pb2
    from node.chat_history import ChatHistory
    from node.client import NodeClient

#: Room for an answer where --max-tokens does not say, tokens.
ANSWER_TOKENS = 256


def register(app: typer.Typer) -> None:
    app.command("chat")(chat)


@dataclass
class Reply:
    """One answer as it came."""

    text: str = ""
    reason: str = ""
    node_id: str = ""
    node_name: str = ""
    model: str = ""
    usage: engine_pb2.GenerateEvent.Finished | None = None


def chat(
    ctx: typer.Context,
    message: Annotated[str | None, typer.Argument(help="Say only this; without it a dialogue begins.")] = None,
    node: Annotated[str, typer.Option("--node", help="Name or id of the node that shall answer.")] = "",
    system: Annotated[str, typer.Option("--system", help="What the agent is told beforehand.")] = "",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=0, help="Length of an answer. 0 is 256.")] = 0,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=5, help="0 takes the likeliest word.")
    ] = 0.7,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Same seed, same answer.")] = 0,
    as_json: session.Json = False,
) -> None:
    """Talk with an agent: /new forgets the dialogue, /exit ends it. Without a terminal each line is a message."""
    from mesh.wire import engine_pb2, local_pb2
    from node.chat_history import ChatHistory

    history = ChatHistory(system=system, answer_tokens=max_tokens or ANSWER_TOKENS)

    def request() -> local_pb2.ChatRequest:
        return local_pb2.ChatRequest(
            node=node,
            request=engine_pb2.GenerateRequest(
                messages=history.messages(),
                max_tokens=history.answer_tokens,
                sampling=engine_pb2.Sampling(temperature=temperature, top_p=0.95 if temperature else 0.0, seed=seed),
                priority=1,
            ),
        )

    def exchange(text: str) -> None:
        if dropped := history.ask(text):
            _aside(f"(the {dropped} oldest messages no longer fit and were dropped)")
        reply = Reply()
        try:
            session.ask_node(ctx, lambda client: _stream(client, request(), reply, as_json))
        except BaseException:
            # An answer that was cut off stays in the dialogue, as the person saw it.
            history.answer(reply.text) if reply.text else history.take_back()
            raise
        history.answer(reply.text)
        if as_json:
            output.emit(_shape(reply))
            sys.stdout.flush()

    if message is not None and not message.strip():
        raise KithError("bad-request", "the message is empty", "say something", ExitCode.BAD_INPUT)
    history.context_tokens = session.ask_node(ctx, lambda client: client.context_tokens(node))
    if message is not None:
        exchange(message)
    else:
        _dialogue(history, exchange, interactive=sys.stdin.isatty() and not as_json)


def _aside(text: str) -> None:
    output.note(output.styled(text, "2", sys.stderr))


async def _stream(client: NodeClient, request: local_pb2.ChatRequest, reply: Reply, as_json: bool) -> None:
    shown = False
    async with contextlib.aclosing(client.chat(request)) as events:
        async for event in events:
            if event.HasField("routed"):
                routed = event.routed
                reply.node_id, reply.node_name, reply.model = routed.agent.node_id, routed.node_name, routed.model
            elif event.generate.HasField("delta"):
                piece = event.generate.delta.text
                reply.text += piece
                if not as_json:
                    shown = True
                    sys.stdout.write(output.clean(piece))
                    sys.stdout.flush()
            elif event.generate.HasField("finished"):
                reply.usage = event.generate.finished
                reply.reason = event.generate.finished.reason
            elif event.generate.HasField("problem"):
                if shown:
                    print()
                raise KithError.from_wire(event.generate.problem)
    if not as_json:
        print("" if reply.text.endswith("\n") else "\n", end="")
        if reply.reason == "length":
            _aside("(cut off at the length limit: --max-tokens)")


def _shape(reply: Reply) -> dict[str, Any]:
    from mesh.wire import common_pb2
    from node.cli import as_json as shapes

    usage = reply.usage.usage if reply.usage is not None else common_pb2.Usage()
    return {
        "text": reply.text,
        "reason": reply.reason,
        "node_id": reply.node_id,
        "node_name": reply.node_name,
        "model": reply.model,
        "usage": shapes.usage(usage),
    }


def _dialogue(history: ChatHistory, exchange: Callable[[str], None], interactive: bool) -> None:
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() line editing and history)
        _aside("/new forgets the dialogue, /exit or Ctrl-D ends it, Ctrl-C stops an answer")
    while (line := _read_line(interactive)) is not None:
        text = line.strip()
        if text == "/exit":
            return
        if text == "/new":
            history.clear()
            if interactive:
                _aside("(a new dialogue)")
        elif interactive and text.startswith("/") and " " not in text:
            _aside(f"(there is no command {text}; there are /new and /exit)")
        elif text:
            _exchange_or_say_why(text, exchange, interactive)


def _exchange_or_say_why(text: str, exchange: Callable[[str], None], interactive: bool) -> None:
    """In a dialogue with a person, an error or Ctrl-C ends the answer and not the dialogue."""
    try:
        exchange(text)
    except KeyboardInterrupt:
        if not interactive:
            raise
        _aside("\n(stopped)")
    except KithError as error:
        if not interactive or error.exit_code == ExitCode.UNREACHABLE:
            raise
        output.emit_error(error, as_json=False)


def _read_line(interactive: bool) -> str | None:
    if interactive:
        try:
            return input("> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()  # the message begins on a line of its own
            raise
    return sys.stdin.readline() or None
