"""Faults of hosts and networks, drawn by a seed: what a nemesis does to a LAN of real daemons, and undoes again.

A fault is what it does (`begin`), and what mends it (`end`). Both may be called for several faults at a time, also for
the same host, in any order: a fault that finds its host in another fault's hands does what is still possible. What is
done to the network lasts until `mend_all`, so that the end of one cut does not end another; after it every host runs,
nothing is cut, no frame is lost and no process is stopped.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from scripts.daemons import ENGINE, SOLVER, Daemon
from scripts.lan_hosts import Lan

#: Per cent of frames lost while the network is bad.
LOSS_PERCENT = 20


@dataclass
class Fault:
    """One fault as drawn: `name` says what and where."""

    name: str
    begin: Callable[[], None]
    end: Callable[[], None]


def draw(lan: Lan, random: Random, count: int) -> list[Fault]:
    """So many faults of random kinds on random hosts, no two the same."""
    drawn: dict[str, Fault] = {}
    while len(drawn) < count:
        fault = _draw(lan, random)
        drawn.setdefault(fault.name, fault)
    return list(drawn.values())


def _draw(lan: Lan, random: Random) -> Fault:
    hosts = lan.network.hosts
    host, other = random.sample(hosts, 2)
    daemon = lan.daemons[host]

    def signalled(number: int) -> Callable[[], None]:
        return lambda: daemon.send(number)

    kinds: list[Fault] = [
        Fault(f"kill {host}", lambda: _kill(daemon), lambda: _start(lan, host)),
        Fault(f"stop {host}", lambda: _end(daemon), lambda: _start(lan, host)),
        Fault(f"freeze daemon of {host}", signalled(signal.SIGSTOP), signalled(signal.SIGCONT)),
        Fault(f"freeze {host}", lambda: lan.freeze(host), lambda: lan.thaw(host)),
        Fault(f"block loop of {host}", signalled(signal.SIGUSR1), _nothing),
        Fault(f"jump clock of {host}", signalled(signal.SIGUSR2), _nothing),
        Fault(f"kill engine of {host}", lambda: _children(daemon, ENGINE, signal.SIGKILL), _nothing),
        Fault(
            f"hang engine of {host}",
            lambda: _children(daemon, ENGINE, signal.SIGSTOP),
            lambda: _children(daemon, ENGINE, signal.SIGCONT),
        ),
        Fault("kill solvers", lambda: _kill_solvers(lan), _nothing),
        Fault(f"isolate {host}", lambda: lan.isolate(host), _nothing),
        Fault(f"cut {host} from {other}", lambda: lan.cut(host, other), _nothing),
        Fault(f"cut {host} to {other} one way", lambda: lan.cut(host, other, one_way=True), _nothing),
        Fault(f"nobody hears {host}", lambda: _mute(lan, host), _nothing),
        Fault(f"lose {LOSS_PERCENT} %", lambda: lan.lose(LOSS_PERCENT), _nothing),
    ]
    for small in (one for one in hosts if lan.daemons[one].data_dir.is_mount()):
        kinds.append(Fault(f"fill disk of {small}", partial(lan.fill_disk, small), partial(lan.free_disk, small)))
    if len(hosts) > 3:
        kinds.append(Fault(f"split off {host} and {other}", lambda: lan.isolate(host, other), _nothing))
    if random.random() < 0.05:  # rare, and slow to mend
        return Fault("kill all", lambda: _kill_all(lan), lambda: mend_all(lan))
    return random.choice(kinds)


def mend_all(lan: Lan) -> None:
    """Undo whatever is left."""
    lan.heal()
    for host, daemon in lan.daemons.items():
        daemon.send_all(signal.SIGCONT)
        lan.free_disk(host)
        _start(lan, host)


def _nothing() -> None:
    pass


def _mute(lan: Lan, host: str) -> None:
    for other in lan.network.hosts:
        if other != host:
            lan.cut(host, other, one_way=True)


def _start(lan: Lan, host: str) -> None:
    if not lan.daemons[host].running:
        lan.start(host)


def _kill(daemon: Daemon) -> None:
    if daemon.running:
        daemon.kill()


def _kill_solvers(lan: Lan) -> None:
    """Who leads has one, and who led lately."""
    for daemon in lan.daemons.values():
        _children(daemon, SOLVER, signal.SIGKILL)


def _kill_all(lan: Lan) -> None:
    for daemon in lan.daemons.values():
        _kill(daemon)


def _end(daemon: Daemon) -> None:
    if daemon.running:
        daemon.end()


def _children(daemon: Daemon, module: str, number: int) -> None:
    try:
        daemon.send_children(module, number)
    except ProcessLookupError:
        return  # it went by itself meanwhile
