"""The command scripts/lan: N hosts on a LAN inside this machine, with a daemon on each.

    scripts/lan N [-- OPTIONS OF kith up]       in the foreground until Ctrl-C; cleans up after itself
    scripts/lan up N [-- OPTIONS OF kith up]    the same, left running
    scripts/lan status                          hosts, addresses, who runs, what is cut
    scripts/lan exec HOST -- COMMAND            a command on a host; `kith` there means the host's node
    scripts/lan kill|freeze|thaw|start HOST
    scripts/lan cut A B [--one-way]             nothing that A sends reaches B any more (nor back)
    scripts/lan heal                            undo all cuts
    scripts/lan down                            end everything

All but the first two take --run NAME where several runs are up. Needs root, iproute2 and nftables.
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from node.errors import ExitCode, KithError
from scripts.daemons import NotInTime
from scripts.lan_hosts import Lan

#: From the start of the daemons until all answer, seconds.
READY_WITHIN_S = 60.0


class Stopped(BaseException):
    """SIGTERM or SIGHUP came: what was made is taken down on the way out."""


def _stop(signal_number: int, _: object) -> None:
    raise Stopped(signal_number)


async def _ready(lan: Lan) -> None:
    await asyncio.gather(*(one.ready(READY_WITHIN_S, engine=False) for one in lan.daemons.values()))


def status(lan: Lan) -> None:
    print(f"run {lan.run}, in {lan.folder}")
    for host, daemon in lan.daemons.items():
        state = f"runs as {daemon.pid}" if daemon.running else "is down"
        print(f"  {host:<4} {lan.network.ipv4(host):<11} {lan.network.ipv6(host):<9} {state}")
    for source, target in lan.network.cuts():
        print(f"  cut: {source} → {target}")
    print(f"  try: scripts/lan exec {lan.network.hosts[0]} -- kith nodes", flush=True)


def _up(count: int, options: list[str], run: str, *, foreground: bool) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    lan = Lan.create(count, options, run)
    left_running = False
    try:
        lan.start()
        asyncio.run(_ready(lan))
        status(lan)
        if foreground:
            print("Ctrl-C ends it", flush=True)
            signal.pause()
        left_running = not foreground
    except (KeyboardInterrupt, Stopped):
        print("\nending", flush=True)
    finally:
        if not left_running:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it behind
            lan.down()
    return 0


def _exec(lan: Lan, host: str, command: list[str]) -> int:
    daemon = lan.daemon(host)
    if not command:
        raise KithError("usage", "no command given", f"scripts/lan exec {host} -- kith nodes", ExitCode.USAGE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    sys.stdout.flush()
    words = [*lan.network.inside(host), "env", f"KITH_DATA_DIR={daemon.data_dir}", f"PATH={path}", *command]
    os.execvp(words[0], words)


def parse(arguments: list[str]) -> argparse.Namespace:
    rest: list[str] = []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, rest = arguments[:cut], arguments[cut + 1 :]
    if arguments and arguments[0].isdigit():
        arguments = ["foreground", *arguments]
    parser = argparse.ArgumentParser(
        prog="scripts/lan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", default="", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("up", "foreground"):
        commands.add_parser(name).add_argument("count", type=int)
    for name in ("kill", "freeze", "thaw", "start", "exec"):
        commands.add_parser(name).add_argument("host")
    cut_parser = commands.add_parser("cut")
    cut_parser.add_argument("a")
    cut_parser.add_argument("b")
    cut_parser.add_argument("--one-way", action="store_true")
    for name in ("heal", "down", "status"):
        commands.add_parser(name)
    for one in commands.choices.values():
        one.add_argument("--run", default="")
    given = parser.parse_args(arguments)
    given.rest = rest
    return given


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    command: str = given.command
    try:
        if command in ("up", "foreground"):
            return _up(given.count, given.rest, given.run, foreground=command == "foreground")
        lan = Lan.find(given.run)
        match command:
            case "exec":
                return _exec(lan, given.host, given.rest)
            case "kill" | "freeze" | "thaw" | "start":
                getattr(lan, command)(given.host)
            case "cut":
                lan.cut(given.a, given.b, one_way=given.one_way)
            case "heal" | "down":
                getattr(lan, command)()
            case "status":
                status(lan)
    except KithError as error:
        print(f"lan: {error.message}\n→ {error.remedy}", file=sys.stderr)
        return int(error.exit_code)
    except NotInTime as late:
        print(f"lan: {late}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
