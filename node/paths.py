"""Where a node keeps what it keeps: one place for the layout of the data directory.

node.key        the node's private key, 0600; whoever holds it is the node
mesh/           0700: the mesh that the node is in, see node/enrolment.py; absent: it runs alone
left-TIME-PID/  what `kith leave` moved aside; alone-TIME-PID/ where a worker joined, what it did alone
keys.json       0600: hashes of the API keys of the HTTP door
node.toml       optional configuration file
service.env     optional: environment variables of the node where systemd starts it, NAME=VALUE a line
journal.sqlite  facts, blobs, term and vote
peers.json      addresses of nodes met before
run/            0700: kith.sock (local door; elsewhere where the path is too long), kith.pid (lock: one daemon a folder)
logs/kith.log   rotated; never holds prompt text
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes

import platformdirs

#: Longest path of a Unix socket that every supported system accepts (macOS: 104 with the end marker).
SOCKET_PATH_BYTES_MAX = 100


def expanded(path: str | os.PathLike[str]) -> Path:
    """With the home folder for a leading `~` or `~user`. What only begins so (`~draft.txt`) stays as it is."""
    return Path(os.path.expanduser(path))


def default_data_dir() -> Path:
    """$KITH_DATA_DIR, else the platform's data folder."""
    if given := os.environ.get("KITH_DATA_DIR"):
        return expanded(given)
    return Path(platformdirs.user_data_dir("kithmesh")) / "default"


def models_dir() -> Path:
    """$KITH_MODELS, else the platform's cache folder: model files, shared by all nodes of this user."""
    if given := os.environ.get("KITH_MODELS"):
        return expanded(given)
    return Path(platformdirs.user_cache_dir("kithmesh")) / "models"


@dataclass(frozen=True)
class NodePaths:
    data_dir: Path

    @property
    def key(self) -> Path:
        return self.data_dir / "node.key"

    @property
    def mesh(self) -> Path:
        """0700."""
        return self.data_dir / "mesh"

    @property
    def ca(self) -> Path:
        return self.mesh / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """0600; on issuers only."""
        return self.mesh / "ca.key"

    @property
    def certificate(self) -> Path:
        return self.mesh / "node.pem"

    @property
    def about_mesh(self) -> Path:
        return self.mesh / "mesh.json"

    @property
    def api_keys(self) -> Path:
        return self.data_dir / "keys.json"

    @property
    def config(self) -> Path:
        return self.data_dir / "node.toml"

    @property
    def variables(self) -> Path:
        return self.data_dir / "service.env"

    @property
    def journal(self) -> Path:
        return self.data_dir / "journal.sqlite"

    @property
    def peers(self) -> Path:
        return self.data_dir / "peers.json"

    @property
    def log(self) -> Path:
        return self.data_dir / "logs" / "kith.log"

    @property
    def run_dir(self) -> Path:
        """0700, of the socket; under the temporary folder where the data directory's path is too long for one."""
        inside = self.data_dir / "run"
        if len(os.fsencode(inside / "kith.sock")) <= SOCKET_PATH_BYTES_MAX:
            return inside
        name = hashlib.sha256(os.fsencode(self.data_dir.absolute())).hexdigest()[:16]
        return Path("/tmp") / f"kith-{os.getuid()}-{name}"

    @property
    def socket(self) -> Path:
        return self.run_dir / "kith.sock"

    @property
    def door(self) -> str:
        """The socket as gRPC takes it: as a URI, in which `%`, `?` and `#` mean something else."""
        return f"unix:{quote_from_bytes(os.fsencode(self.socket.absolute()))}"

    @property
    def pid(self) -> Path:
        """In the data directory however long its path is: whoever gets there by another path finds the same lock."""
        return self.data_dir / "run" / "kith.pid"
