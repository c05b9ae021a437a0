"""`kith doctor`: is this machine fit to be a node, and if not, what to do; in plain words.

Idea: a check is a function that yields findings and never raises; one that fails unexpectedly is itself a finding.
With an address it is about the way to that machine instead (reaching.py).
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli import output, session
from node.cli.finding import Finding
from node.errors import ExitCode, KithError

if TYPE_CHECKING:
    from mesh.wire import local_pb2
    from node.config import NodeConfig

#: The mDNS group (RFC 6762, section 3), and how long a datagram to it may take on this machine, seconds.
MDNS_GROUP = "224.0.0.251"
MULTICAST_WAIT_S = 1.0
#: Below this much free disk space a journal and a model are in danger, bytes.
DISK_FREE_BYTES_MIN = 1024**3
DEADLINE_S = 3.0
#: Environment variables that are no settings.
OTHER_VARIABLES = ("KITH_DATA_DIR", "KITH_MODELS", "KITH_DEBUG")
#: Where messages begin, columns.
INDENT = 18


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    ctx: typer.Context,
    address: Annotated[
        str | None, typer.Argument(metavar="[HOST:PORT]", help="Examine the way to the node at this address instead.")
    ] = None,
    as_json: session.Json = False,
) -> int:
    """Check this machine and its node, or the way to another one. Ends with 0 where nothing stands in the way."""
    tell = None if as_json else _print
    if address is None:
        findings = list(examine(session.data_dir(ctx), tell))
    else:
        from node.cli.reaching import reach

        findings = []
        for finding in reach(session.data_dir(ctx), address):
            findings.append(finding)
            if tell is not None:
                tell(finding)
    failed = any(finding.level == "fail" for finding in findings)
    if as_json:
        output.emit({"ok": not failed, "checks": [vars(finding) for finding in findings]})
    return ExitCode.FAILED if failed else ExitCode.OK


def _print(finding: Finding) -> None:
    style = {"ok": "32", "warn": "33", "fail": "1;31"}[finding.level]
    head = f"{output.styled(f'{finding.level:<5}', style)} {finding.check:<11} "
    print(head + output.wrapped(output.one_line(finding.message), " " * INDENT, ""))
    if finding.remedy:
        print(output.wrapped("→ " + output.one_line(finding.remedy), " " * INDENT), flush=True)


def examine(folder: Path, tell: Callable[[Finding], None] | None) -> Iterator[Finding]:
    """Every finding about the node of `folder`, told as it is made."""
    state = _State(folder)
    for check in (
        _python,
        _settings,
        _data_dir,
        _key,
        _mesh,
        _daemon,
        _port,
        _engine,
        _model,
        _interfaces,
        _peers,
    ):
        try:
            found = list(check(state))
        except KithError as error:
            found = [Finding(check.__name__.strip("_"), "fail", error.message, error.remedy)]
        except Exception as error:
            words = f"the check itself failed: {type(error).__name__}: {error}"
            found = [Finding(check.__name__.strip("_"), "warn", words, "please report it")]
        for finding in found:
            if tell is not None:
                tell(finding)
            yield finding


@dataclass
class _State:
    folder: Path
    config: NodeConfig | None = None
    status: local_pb2.StatusReply | None = None


def _python(_state: _State) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info < (3, 15):
        yield Finding("python", "ok", f"Python {version}")
    else:
        yield Finding("python", "fail", f"Python {version} is not supported", "use Python 3.11 to 3.14")


def _settings(state: _State) -> Iterator[Finding]:
    import difflib

    from node.cli.settings import DEFAULT, SETTINGS, environment_name, load_config

    state.config = load_config(state.folder, {})
    chosen = [name for name, origin in state.config.origins.items() if origin != DEFAULT]
    yield Finding("settings", "ok", f"set by you: {', '.join(chosen)}" if chosen else "all as they come")
    known = [*OTHER_VARIABLES, *(environment_name(setting.name) for setting in SETTINGS)]
    for variable in sorted(name for name in os.environ if name.startswith("KITH_") and name not in known):
        if near := difflib.get_close_matches(variable, known, 1, 0.8):
            yield Finding("settings", "warn", f"${variable} means nothing to kith", f"did you mean ${near[0]}?")


def _data_dir(state: _State) -> Iterator[Finding]:
    folder = state.folder
    if not folder.exists():
        parent = next(one for one in folder.absolute().parents if one.exists())
        if not os.access(parent, os.W_OK):
            remedy = "name another folder: kith --data-dir DIR …"
            yield Finding("data", "fail", f"{folder} can not be made: {parent} is not writable", remedy)
            return
        yield Finding("data", "ok", f"{folder} will be made by the first `kith up`")
        folder = parent
    elif not folder.is_dir():
        yield Finding("data", "fail", f"{folder} is not a folder", "name another one: kith --data-dir DIR …")
        return
    elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("data", "fail", f"{folder} can not be written to", f"chmod u+rwx {folder}")
        return
    else:
        yield Finding("data", "ok", f"{folder} is writable")
    free = shutil.disk_usage(folder).free
    if free < DISK_FREE_BYTES_MIN:
        yield Finding("data", "warn", f"only {output.size(free)} of disk space is free", "make room, at least 1 GiB")


def _key(state: _State) -> Iterator[Finding]:
    from node.keys import load_key
    from node.paths import NodePaths

    path = NodePaths(state.folder).key
    if not path.exists():
        yield Finding("key", "ok", "none yet: the first `kith up` makes one")
        return
    info = path.stat()
    if info.st_mode & 0o077:
        yield Finding("key", "fail", f"others can read {path}, and whoever holds it is the node", f"chmod 600 {path}")
    elif not os.access(path, os.R_OK):
        yield Finding("key", "fail", f"{path} belongs to another user", "run kith as that user")
    else:
        load_key(path)  # what it raises is told
        yield Finding("key", "ok", "there, and only yours to read")


def _mesh(state: _State) -> Iterator[Finding]:
    from node import enrolment
    from node.cli.reaching import own_clock
    from node.interfaces import is_loopback
    from node.listening import address_of
    from node.paths import NodePaths

    enrolled = enrolment.load(NodePaths(state.folder))
    if enrolled is None:
        remedy = "kith init makes one, kith join CODE enters one"
        yield Finding("mesh", "ok", f"in none, so this node works alone; {remedy}")
        return
    if troubles := list(own_clock(enrolled)):
        yield from troubles
    else:
        days = (enrolled.identity.not_after - time.time()) / 86_400
        words = (
            f"{enrolled.label} ({enrolled.mesh_id[:12]}), as {enrolled.identity.role}; certificate for {days:.0f} days"
        )
        yield Finding("mesh", "ok", words)
    if state.config is not None and state.config.listen and is_loopback(address_of(state.config.listen)[0]):
        words = f"it listens on {state.config.listen}, where no other machine reaches it"
        yield Finding("mesh", "warn", words, "kith up --listen 0.0.0.0:0, or leave --listen out")


def _daemon(state: _State) -> Iterator[Finding]:
    import asyncio

    from node.client import NodeClient

    async def ask() -> local_pb2.StatusReply:
        async with NodeClient(state.folder) as node:
            return await node.status(DEADLINE_S)

    try:
        state.status = now = asyncio.run(ask())
    except KithError as error:
        level = "warn" if error.message.startswith("no node runs") else "fail"
        yield Finding("node", level, error.message, error.remedy)
        return
    yield Finding("node", "ok", f"{now.name} ({now.node_id[:12]}) has been up for {output.seconds(now.uptime_s)}")
    if now.revoked:
        words = f"this node was cut off from its mesh: {output.one_line(now.revoked)}"
        yield Finding("node", "fail", words, "kith leave, then kith join with a new invite")
    if now.engine_state == "ready":
        yield Finding("node", "ok", f"its engine is ready: {now.agent.model}")
    else:
        level = "fail" if now.engine_state == "failed" else "warn"
        yield Finding("node", level, f"its engine is {now.engine_state}: {now.engine_problem or 'wait'}", "kith logs")


def _port(state: _State) -> Iterator[Finding]:
    from node.addresses import split_address

    if state.config is None or state.status is not None:
        return  # the port is in use by the node itself
    for name, text in (("listen", state.config.listen), ("http", state.config.http)):
        parts = split_address(text)
        if parts is None or parts[1] == 0:
            continue
        family = socket.AF_INET6 if ":" in parts[0] else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(parts)
            except OSError as error:
                yield Finding(
                    "port", "fail", f"{text} can not be used: {error.strerror}", f"choose another one: --{name}"
                )
                continue
        yield Finding("port", "ok", f"{text} is free")


def _back_end(state: _State) -> str:
    """What the running node generates with, else what it would."""
    running = state.status.agent.backend if state.status is not None else ""
    return running or (state.config.engine if state.config is not None else "llama")


def _engine(state: _State) -> Iterator[Finding]:
    from node.engine.installed import LIBRARIES, installed

    if (name := _back_end(state)) not in LIBRARIES:
        yield Finding("engine", "ok", f"{name}: needs no library here")
        return
    if not installed(name):
        yield _no_library(name)
        return
    if name == "xllamacpp":
        yield _ready_made()
        return
    import subprocess

    # In a process of its own: a library built for another CPU ends its process, and must not end ours.
    code = "import llama_cpp as l; print(l.__version__); print(l.llama_print_system_info().decode())"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    build = "reinstall it for this machine: pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python"
    if done.returncode < 0:
        yield Finding("engine", "fail", f"llama-cpp-python dies here (signal {-done.returncode})", build)
    elif done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Finding("engine", "fail", f"llama-cpp-python can not be loaded: {last}", build)
    else:
        version, _, features = done.stdout.partition("\n")
        words = [part.partition("=")[0].strip() for part in features.replace("CPU :", "|").split("|") if "= 1" in part]
        yield Finding("engine", "ok", f"llama-cpp-python {version}, built for: {', '.join(words) or 'any CPU'}")


def _no_library(name: str) -> Finding:
    """What the engine needs is not installed: the one command that brings an engine here."""
    from node.engine.installed import LIBRARIES, installed

    other = next((one for one in LIBRARIES if one != name and installed(one)), "")
    if other:
        return Finding("engine", "fail", f"{name}: its library is not installed", f"kith up --engine {other}")
    compiler = any(shutil.which(one) for one in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if one)
    extra = name if name != "llama" or compiler else "xllamacpp"
    why = "" if compiler or name != "llama" else ", and there is no C++ compiler to build it"
    remedy = f"pip install 'kithmesh[{extra}]'"
    return Finding("engine", "fail", f"{name}: its library is not installed{why}", remedy)


def _ready_made() -> Finding:
    import subprocess

    code = "import xllamacpp as x; print(x.__version__); print(x.get_system_info())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]
        remedy = "pip install --force-reinstall 'kithmesh[xllamacpp]'"
        return Finding("engine", "fail", f"xllamacpp can not be loaded: {last}", remedy)
    version, _, features = done.stdout.partition("\n")
    words = [part.partition("=")[0].strip() for part in features.replace("CPU :", "|").split("|") if "= 1" in part]
    return Finding("engine", "ok", f"xllamacpp {version}, ready-made for: {', '.join(words) or 'any CPU'}")


def _model(state: _State) -> Iterator[Finding]:
    from node.config import FILE_ENGINES

    config = state.config
    if config is None or _back_end(state) not in FILE_ENGINES:
        return
    from node.models import has_default_model, resolve_model

    path = resolve_model(config.model)  # raises `bad-model` where the user's own file is not there
    if config.model or has_default_model():
        yield Finding("model", "ok", f"{path} ({output.size(path.stat().st_size)})")
    else:
        remedy = "kith model pull (the first `kith up` does it too)"
        yield Finding("model", "warn", "the default model is not here yet", remedy)


def _interfaces(state: _State) -> Iterator[Finding]:
    if state.config is None:
        return
    if not state.config.mdns:
        yield Finding("network", "ok", "mDNS is off: peers come from seeds")
        return
    from node.interfaces import choose, interfaces, is_loopback
    from node.listening import where_to_listen

    host = where_to_listen(state.config.listen)[0]
    chosen = choose(state.config.interfaces, host)
    for interface in chosen:
        address = next((one for one in interface.addresses if one.version == 4), None)
        if address is not None:
            yield _multicast(interface.name, str(address))
    left_out = [one for one in interfaces() if one not in chosen]
    if chosen and not (state.config.listen or state.config.interfaces) and all(one.loopback for one in chosen):
        words = "this machine is on no network, so only nodes on it find each other"
        yield Finding("network", "warn", words, "join a network: a running node notices within seconds")
    if left_out:
        why = "because the node listens on loopback" if is_loopback(host) else ""
        words = ", ".join(
            f"{one.name}" + ("" if why else f" ({one.why_left_out() or 'not named'})") for one in left_out
        )
        yield Finding("network", "ok", f"left out {why}: {words}".replace(" :", ":"))
    if not chosen:
        yield Finding(
            "network", "warn", "no interface is left for mDNS", "name one: --interface NAME, or peers: --seed"
        )


def _multicast(name: str, address: str) -> Finding:
    """Whether a datagram to the mDNS group leaves by the interface and is heard on it."""
    token = os.urandom(8)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth,
    ):
        try:
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ear.bind((MDNS_GROUP, 0))  # a port of our own: other programs' answers are none of our business
            membership = socket.inet_aton(MDNS_GROUP) + socket.inet_aton(address)
            ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            ear.settimeout(MULTICAST_WAIT_S)
            mouth.sendto(token, (MDNS_GROUP, ear.getsockname()[1]))
            while ear.recv(64) != token:
                pass
        except OSError as error:
            why = error.strerror or "nothing came back"
            remedy = "nodes can still be named by hand: kith up --seed HOST:PORT"
            return Finding("network", "warn", f"{name} ({address}): multicast does not work here: {why}", remedy)
    return Finding("network", "ok", f"{name} ({address}): multicast works")


def _peers(state: _State) -> Iterator[Finding]:
    if state.status is None:
        return
    import asyncio

    from node.cli.as_json import member_state
    from node.client import NodeClient

    async def ask() -> list[local_pb2.NodeInfo]:
        async with NodeClient(state.folder) as node:
            return await node.nodes()

    others = [member for member in asyncio.run(ask()) if not member.self]
    alive = [member for member in others if member_state(member) == "alive"]
    if alive:
        names = ", ".join(output.one_line(member.name, 20) for member in alive[:8])
        yield Finding("peers", "ok", f"{len(alive)} in sight: {names}")
        return
    remedy = "start one elsewhere; where multicast is blocked: kith up --seed HOST:PORT"
    yield Finding("peers", "warn", "no other node in sight; this one works alone", remedy)
