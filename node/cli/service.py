"""The life of a node: `up`, `down`, `status`, `logs`, `version`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli import output, session
from node.errors import ExitCode, KithError

if TYPE_CHECKING:
    from mesh.wire import local_pb2
    from node.config import NodeConfig

#: Bytes read from the end of the log for `kith logs`, and lines that it prints at most.
LOG_TAIL_BYTES = 8 * 1024 * 1024
LOG_LINES_MAX = 100_000
#: How often a starting node is asked whether it is ready, and how often a followed log is looked at, seconds.
READY_POLL_S = 0.05
FOLLOW_POLL_S = 0.25
#: And one whose engine failed, which may still come.
FAILED_POLL_S = 5.0

EXPOSED = "to members of its mesh only: both sides of every connection prove who they are"
ALONE = "to nobody: this node is in no mesh (kith init makes one, kith join enters one)"


def register(app: typer.Typer) -> None:
    for command in (up, down, status, logs, version):
        app.command(command.__name__)(command)


def up(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Option("--name", help="What people call this node. [default: host name]")] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="Address of the mesh service.")
    ] = None,
    seed: Annotated[
        list[str] | None, typer.Option("--seed", metavar="HOST:PORT", help="A node to dial; may be repeated.")
    ] = None,
    interface: Annotated[
        list[str] | None, typer.Option("--interface", help="Network interface for mDNS; may be repeated.")
    ] = None,
    no_mdns: Annotated[bool, typer.Option("--no-mdns", help="Neither announce nor look for nodes by mDNS.")] = False,
    network: Annotated[
        str | None, typer.Option("--network", metavar="lan|wan|local", help="How patient to be with silent nodes.")
    ] = None,
    disk_budget: Annotated[
        int | None, typer.Option("--disk-budget", metavar="MIB", help="Most that jobs and copies may take on disk.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="A stored model, a GGUF file or hf://…; may be repeated. For openai: its name."),
    ] = None,
    memory_budget: Annotated[
        int | None, typer.Option("--memory-budget", metavar="MIB", help="Most that all engines may take.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="llama|xllamacpp|openai|echo", help="What generates.")
    ] = None,
    engine_url: Annotated[str | None, typer.Option("--engine-url", metavar="URL", help="Base URL for openai.")] = None,
    slots: Annotated[int | None, typer.Option("--slots", help="Requests served at the same time.")] = None,
    ctx_tokens: Annotated[int | None, typer.Option("--ctx", help="Context of a slot, tokens.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads of the engine; 0 shares the cores.")] = None,
    gpu_layers: Annotated[int | None, typer.Option("--gpu-layers", help="Layers on the GPU; -1 is all.")] = None,
    http: Annotated[
        str | None,
        typer.Option("--http", metavar="HOST:PORT", help="Open the HTTP door: TLS and keys beyond loopback."),
    ] = None,
    moved: Annotated[
        bool, typer.Option("--moved", help="The data directory came from another machine and runs no more there.")
    ] = False,
    log_level: Annotated[
        str | None, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Read this file instead of DIR/node.toml.")
    ] = None,
) -> None:
    """Run a node in the foreground, until Ctrl-C or `kith down`."""
    from node.cli.settings import load_config

    config = load_config(
        session.data_dir(ctx),
        {
            "name": name,
            "listen": listen,
            "seeds": tuple(seed) if seed else None,
            "interfaces": tuple(interface) if interface else None,
            "mdns": False if no_mdns else None,
            "network": network,
            "disk_budget_mb": disk_budget,
            "engine": engine,
            "model": model[0] if model else None,
            "more_models": tuple(model[1:]) if model and len(model) > 1 else None,
            "memory_budget_mb": memory_budget,
            "engine_url": engine_url,
            "slots": slots,
            "ctx": ctx_tokens,
            "threads": threads,
            "gpu_layers": gpu_layers,
            "http": http,
            "log_level": log_level,
        },
        file=file,
    )
    if moved:
        from node import enrolment
        from node.paths import NodePaths

        enrolment.accept_move(NodePaths(config.data_dir))
    import asyncio

    from node.handshake_log import HandshakeLog

    with HandshakeLog():
        asyncio.run(_serve(config))
    print("stopped")


async def _serve(config: NodeConfig) -> None:
    import asyncio

    import node.daemon
    from node import supervisor

    served = asyncio.create_task(node.daemon.run(config), name="daemon")
    announced = asyncio.create_task(_announce(config), name="announce")
    watched = asyncio.create_task(supervisor.keep_alive(), name="watchdog")
    try:
        await asyncio.wait({served, announced}, return_when=asyncio.FIRST_COMPLETED)
        await served
    finally:
        for task in (announced, served, watched):
            task.cancel()
        await asyncio.gather(announced, served, watched, return_exceptions=True)


async def _announce(config: NodeConfig) -> None:
    """Print a line when the node answers at its own door, and one when its engine is ready or has failed."""
    import asyncio
    import os

    from node import supervisor
    from node.client import NodeClient
    from node.config import FILE_ENGINES

    said_ready, said_failed = False, ""
    while True:
        try:
            async with NodeClient(config.data_dir) as client:
                now = await client.status()
        except KithError:
            await asyncio.sleep(READY_POLL_S)
            continue
        if now.pid not in (0, os.getpid()):
            return  # another daemon holds this data directory; ours is about to say so
        if config.http and not now.http_address:
            await asyncio.sleep(READY_POLL_S)
            continue  # its last door opens now, or ends the start
        if not said_ready:
            said_ready = True
            supervisor.notify("READY=1")
            _print_ready(now, config)
            if now.engine_state == "starting" and config.engine in FILE_ENGINES:
                print(await asyncio.to_thread(_loading, config), flush=True)
        # A ready engine's rates follow a moment later, with the node's profile.
        if now.engine_state == "stopped":
            return  # the node ends
        if now.engine_state == "ready" and now.agent.backend:
            _print_engine(now)
            return
        if now.engine_state == "failed" and now.engine_problem != said_failed:
            said_failed = now.engine_problem
            _print_engine(now)
            if config.engine == "openai":
                print("  it is tried again by itself, until the server can be used", flush=True)
        await asyncio.sleep(FAILED_POLL_S if said_failed else 10 * READY_POLL_S)


def _print_ready(now: local_pb2.StatusReply, config: NodeConfig) -> None:
    from node.cli.as_json import address_text

    at = ", ".join(address_text(address) for address in now.addresses)
    print(f"{output.bold('ready')}  {output.clean(now.name)} ({now.node_id[:12]}) {f'at {at}' if at else 'alone'}")
    print(f"  data     {config.data_dir}")
    if now.HasField("mesh"):
        print(f"  mesh     {output.one_line(now.mesh.label)} ({now.mesh.mesh_id[:12]}), as {now.mesh.role}")
    print(f"  exposed  {EXPOSED if at else ALONE}")
    if now.http_address:
        from node.http.door import scheme

        print(f"  http     {scheme(config)}://{now.http_address}")
    print(f"  ask      kith --data-dir {config.data_dir} ask 'Which planet is the largest?'")
    print(f"  stop     Ctrl-C, or: kith --data-dir {config.data_dir} down", flush=True)
    for warning in membership_warnings(now):
        print(f"  warning  {warning}", flush=True)


def membership_warnings(now: local_pb2.StatusReply) -> list[str]:
    """What may end this node's membership, or the mesh, each with its remedy."""
    import time

    if not now.HasField("mesh"):
        return []
    mesh, warnings = now.mesh, []
    left_s = mesh.certificate_ends_ms / 1000 - time.time()
    if left_s < 0:
        warnings.append(
            f"this node's certificate ended {output.seconds(-left_s)} ago: no member talks to it until an issuer "
            "renews it (is the clock right?)"
        )
    if mesh.role == "issuer" and mesh.issuers <= 1:
        remedy = "kith promote NODE" if mesh.backed_up_ms else "kith ca backup FILE, and kith promote NODE"
        warnings.append(
            f"this node alone holds the CA key: while it is away nobody can be let in, cut off or renewed ({remedy})"
        )
    return warnings


def _loading(config: NodeConfig) -> str:
    from node.models import has_default_model
    from node.models.source import HubSource, is_hub, parse, pulled_from
    from node.models.store import ModelStore

    far = f"kith --data-dir {config.data_dir} logs --follow shows how far it is"
    if is_hub(config.model):
        source = parse(config.model)
        if isinstance(source, HubSource) and pulled_from(source, ModelStore()) is None:
            return f"engine starting: {source} is fetched; {far}"
    if config.model or has_default_model():
        return "engine starting: it loads the model and measures itself"
    return f"engine starting: the default model is fetched once (98 MB); {far}"


def _print_engine(now: local_pb2.StatusReply) -> None:
    if now.engine_state == "failed":
        print(f"engine failed: {output.one_line(now.engine_problem)}", flush=True)
        return
    agent = now.agent
    speed = (
        f"reads {output.rate(agent.prefill_tokens_per_s)} and writes {output.rate(agent.decode_tokens_per_s)} tokens/s"
    )
    print(f"engine {now.engine_state}: {output.one_line(agent.model)} ({agent.backend}), {speed}", flush=True)


def down(
    ctx: typer.Context,
    drain: Annotated[
        float, typer.Option("--drain", metavar="SECONDS", min=0, max=3600, help="Time for running tasks. 0 is 10 s.")
    ] = 0.0,
    as_json: session.Json = False,
) -> None:
    """Stop the node: it finishes what runs, says goodbye and ends."""
    running = stop(session.data_dir(ctx), drain, quiet=as_json)
    if as_json:
        output.emit({"stopped": True, "running_tasks": running})
    else:
        print("stopped")


def stop(folder: Path, drain_s: float = 0.0, *, quiet: bool = False) -> int:
    """Stop the node of `folder` and wait for its end; how many tasks ran when it was asked. Raises `KithError`."""
    import asyncio
    import time

    from node.client import NodeClient

    async def ask() -> int:
        async with NodeClient(folder) as node:
            return await node.shutdown(drain_s)

    running = asyncio.run(ask())
    if running and not quiet:
        output.note(f"waiting for {running} running task{'s' if running > 1 else ''} to finish")
    deadline = time.monotonic() + (drain_s or 10.0) + 20.0
    while locked(folder):
        if time.monotonic() > deadline:
            raise KithError(
                "node-timeout",
                "the node was asked to stop and still runs",
                f"look at its log: kith --data-dir {folder} logs",
                ExitCode.UNREACHABLE,
            )
        time.sleep(READY_POLL_S)
    return running


def locked(folder: Path) -> bool:
    """Whether a daemon still answers at the door of `folder` or holds its lock."""
    import fcntl
    import socket

    from node.paths import NodePaths

    paths = NodePaths(folder)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(paths.socket))
            return True
        except OSError:
            pass
    try:
        with paths.pid.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def status(ctx: typer.Context, as_json: session.Json = False) -> None:
    """Say how the node is."""
    now = session.ask_node(ctx, lambda node: node.status())
    from node.cli import as_json as shapes

    if as_json:
        output.emit(shapes.status(now))
        return
    agent, load = now.agent, now.load
    leader = "none known" if not now.leader.leader_id else now.leader.leader_id[:12]
    if now.role == "leader":
        leader = "this node"
    lines = {
        "node": f"{now.name} ({now.node_id[:12]}), version {now.software_version}, process {now.pid}",
        "mesh": _mesh_line(now),
        "up for": output.seconds(now.uptime_s),
        "address": ", ".join(shapes.address_text(address) for address in now.addresses) or "–",
        "role": f"{now.role}, term {now.term}; leader: {leader}",
        "members": f"{now.members_alive} alive; discovery by {'mDNS and ' if now.mdns else ''}seeds"
        + (f"; {now.network} timing" if now.network else ""),
        "engine": now.engine_state + (f": {now.engine_problem}" if now.engine_problem else ""),
        "model": f"{agent.model or '–'} ({agent.backend or '–'}), {agent.context_tokens} tokens a slot",
        "speed": f"reads {output.rate(agent.prefill_tokens_per_s)}, writes "
        f"{output.rate(agent.decode_tokens_per_s)} tokens/s",
        "load": f"{load.slots_busy} of {load.slots_total} slots busy, {load.queued_prompt_tokens} prompt tokens queued"
        + (", draining" if load.draining else "")
        + (", the engine stands still" if load.engine_stalled else ""),
        "jobs": f"{now.jobs_open} open; {now.facts} facts in the journal",
        "solver": now.solver_state or "–",
        "http": now.http_address or "closed",
        "data": now.data_dir
        + (
            f", {output.size(now.disk_used_bytes)} of {output.size(now.disk_budget_bytes)}"
            if now.disk_used_bytes
            else ""
        ),
    }
    if now.kv_cache:
        lines["kv cache"] = f"{now.kv_cache} ({now.kv_cache_why})"
    if now.revoked:
        lines["revoked"] = f"this node was cut off from its mesh: {now.revoked}; kith leave, then kith join anew"
    if now.denied:
        told = [(one.name or one.node_id[:12]) + (f" ({one.reason})" if one.reason else "") for one in now.denied]
        lines["denied"] = ", ".join(told)
    if now.forked:
        names = ", ".join(node_id[:12] for node_id in now.forked)
        lines["forked"] = f"{names} wrote two histories (a copied data directory?): what came after counts nowhere"
    for warning in membership_warnings(now):
        lines["warning"] = f"{lines['warning']}; {warning}" if "warning" in lines else warning
    for key, text in lines.items():
        print(output.dim(f"{key:<9}") + output.wrapped(output.one_line(text), " " * 9, ""))


def _mesh_line(now: local_pb2.StatusReply) -> str:
    import time

    if not now.HasField("mesh"):
        return "none: it runs alone; kith init makes a mesh, kith join enters one"
    mesh = now.mesh
    left_s = mesh.certificate_ends_ms / 1000 - time.time()
    ends = f"ends in {output.seconds(left_s)}" if left_s >= 0 else "has ended"
    return f"{mesh.label} ({mesh.mesh_id[:12]}), as {mesh.role}; certificate {ends}"


def logs(
    ctx: typer.Context,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, max=LOG_LINES_MAX, help="How many, from the end.")] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on printing what is added.")] = False,
    as_json: session.Json = False,
) -> None:
    """Print the end of the node's log. It never holds prompt text."""
    from node.paths import NodePaths

    if follow and as_json:
        raise KithError("usage", "--follow and --json do not go together", "leave one out", ExitCode.USAGE)
    path = NodePaths(session.data_dir(ctx)).log
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            text = stream.read(LOG_TAIL_BYTES).decode(errors="replace")
    except OSError as error:
        raise KithError(
            "no-log",
            f"there is no log at {path}",
            f"a node that ran writes one: kith --data-dir {session.data_dir(ctx)} up",
            ExitCode.NOT_FOUND,
        ) from error
    tail = text.splitlines()[-lines:] if lines else []
    if as_json:
        output.emit({"path": str(path), "lines": tail})
        return
    for line in tail:
        print(output.clean(line))
    if follow:
        _follow(path)


def _follow(path: Path) -> None:
    """Print what is added to the log until Ctrl-C; goes on in the new file when the log is rotated."""
    import sys
    import time

    stream = path.open("rb")
    try:
        stream.seek(0, 2)
        inode = path.stat().st_ino
        while True:
            sys.stdout.flush()
            if line := stream.readline():
                sys.stdout.write(output.clean(line.decode(errors="replace")))
                continue
            time.sleep(FOLLOW_POLL_S)
            try:
                now = path.stat()
            except FileNotFoundError:
                continue  # between two files
            if now.st_ino != inode or now.st_size < stream.tell():
                stream.close()
                stream = path.open("rb")
                inode = now.st_ino
    finally:
        stream.close()


def version(as_json: session.Json = False) -> None:
    """Print the version of this command and what it runs on."""
    import platform

    import node

    if as_json:
        output.emit({"version": node.__version__, "python": platform.python_version(), "system": platform.system()})
    else:
        print(f"kith {node.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
