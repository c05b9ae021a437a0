"""What systemd is told of a node: the text of a unit that starts it at boot and again after a crash.

Idea: a unit a data directory. What the node does stays in `node.toml`; the unit says only where the node is and how it
lives and dies. `kith down` ends with 0, so the node stays down; every other end is followed by a new start, for ever:
nobody sits at an edge box to start it by hand. That holds for wrong settings too (exit code 2): an interface or a name
that is not there yet at boot is one of them, and a file that was put right counts at the next try.

It waits for no network: a node without one starts, and finds it later (node/roaming.py); a setting that needs an
address at once is tried again.

Does not: keep a node from its devices, `/tmp` or executable memory. GPU drivers need the first and the last; a data
directory with a long path has its socket in `/tmp`, where the commands look for it.

Source: systemd.unit(5), systemd.service(5), systemd.exec(5), systemd.kill(5).
"""

import glob
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from node.errors import ExitCode, KithError
from node.paths import NodePaths

#: First line of every unit that is ours to replace and to delete.
MARK = "# Written by `kith service install`."
#: Pause before a new start, seconds: a wrong setting costs a start of Python each time.
RESTART_S = 10
#: A start includes reading the journal and checking the model's file: on a slow disk it takes minutes.
START_S = 300
#: A stopping node gives its tasks 2 s, then ends its engine and says goodbye: seconds. What is left then is killed.
STOP_S = 30
#: How long the event loop may stand still, seconds. The mesh gives the node's work to others within seconds; this is
#: for the node that nobody would find hung. systemd counts time in which the machine runs, so a laptop that slept is
#: not taken for a hung one. Where a kernel's clock goes on in bursts of a light sleep (s2idle; systemd's issues 9538
#: and 20284 tell of 3 minutes that passed so), the worst is a new start after a night: five minutes make that rare.
#: A daemon that somebody stopped with SIGSTOP counts as hung.
WATCHDOG_S = 300
#: Letters of a folder's name in the name of its unit.
NAME_LETTERS = 40


@dataclass(frozen=True)
class Unit:
    """Raises `KithError` (`bad-path`) where systemd could not read a path.

    Args:
        data_dir: absolute.
        python: the interpreter, absolute; the packages of kithmesh are found by it.
        user: whom the node runs as; empty: a unit of the user's own systemd, which runs as that user.
    """

    data_dir: Path
    python: Path
    user: str = ""

    def __post_init__(self) -> None:
        for path in (self.data_dir, self.python):
            if any(letter < " " or letter == "\x7f" or "\ud800" <= letter <= "\udfff" for letter in str(path)):
                raise KithError(
                    "bad-path",
                    f"systemd can not read the path {str(path)!r}: it has control characters or is not UTF-8",
                    "Choose another one with --data-dir.",
                    ExitCode.USAGE,
                )

    @property
    def name(self) -> str:
        """For people the folder's name, and eight digits that tell it from others of that name."""
        plain = re.sub(r"[^A-Za-z0-9_.]+", "-", self.data_dir.name)[:NAME_LETTERS].strip("-.") or "node"
        return f"kith-{plain}-{hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:8]}.service"

    @property
    def command(self) -> list[str]:
        """`-P`: packages in the folder that systemd starts in are not ours."""
        return [str(self.python), "-P", "-m", "node.cli.main", "--data-dir", str(self.data_dir), "up"]

    @property
    def text(self) -> str:
        variables = glob.escape(str(NodePaths(self.data_dir).variables).replace("\\", "\\\\"))
        lines = [
            MARK,
            "# The next one undoes what is changed here; changes of your own: systemctl edit.",
            "[Unit]",
            f"Description=kithmesh node ({_plain(str(self.data_dir))})",
            "StartLimitIntervalSec=0",
            # Stopped before the network is taken down: the goodbye gets out, and another node leads at once. A user's
            # systemd as a whole is.
            *(["After=network.target"] if self.user else []),
            "",
            "[Service]",
            "Type=notify",
            *([f"User={_plain(self.user)}"] if self.user else []),
            # The colon: no variables are put into the command.
            "ExecStart=:" + " ".join(map(_word, self.command)),
            # Where a watchdog found the event loop: the stacks of all threads, without values.
            "Environment=PYTHONFAULTHANDLER=1",
            f"EnvironmentFile=-{_plain(variables)}",
            "Restart=on-failure",
            f"RestartSec={RESTART_S}",
            f"TimeoutStartSec={START_S}",
            f"TimeoutStopSec={STOP_S}",
            f"WatchdogSec={WATCHDOG_S}",
            # The node ends its engine itself, after the tasks; what outlives the node is killed.
            "KillMode=mixed",
            # An engine that took too much memory is the node's to start again.
            "OOMPolicy=continue",
            # A core would hold the node's key, and prompts.
            "LimitCORE=0",
            "NoNewPrivileges=yes",
            # In a user's systemd this would need user namespaces, which not every system grants.
            *(["ProtectSystem=full"] if self.user else []),
            "",
            "[Install]",
            f"WantedBy={'multi-user' if self.user else 'default'}.target",
        ]
        return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """As systemd takes text literally."""
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """As one word of a command."""
    if re.fullmatch(r"[\w/.,:=@+-]+", text, re.ASCII):
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_plain(quoted)}"'
