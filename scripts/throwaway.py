"""A mesh for a while: a CA in memory that enrols data directories, so that tests and demonstrations use real mTLS.

Idea: what `kith init` and `kith join` leave on disk is written at once, by the same code, without the talk between two
machines. Its CA key is in no file, unless a node is enrolled as an issuer.
"""

import time
from pathlib import Path

from cryptography import x509

from mesh.certificates import NODE_DAYS, Authority, Role
from node import enrolment
from node.enrolment import Enrolment
from node.keys import load_or_make_key, new_private_key
from node.paths import NodePaths


class ThrowawayMesh:
    """Enrols nodes. Two of these are two meshes."""

    def __init__(self, label: str = "throwaway") -> None:
        self.label = label
        self.authority = Authority.create(new_private_key(), time.time(), x509.random_serial_number())

    @property
    def mesh_id(self) -> str:
        return self.authority.mesh_id

    def enrol(
        self, data_dir: Path, role: Role = Role.NODE, *, starts_s: float = 0.0, days: float = NODE_DAYS
    ) -> Enrolment:
        """Make `data_dir` a member, or load it where it is one. The certificate starts `starts_s` from now."""
        data_dir.mkdir(parents=True, exist_ok=True)
        paths = NodePaths(data_dir)
        if (already := enrolment.load(paths)) is not None:
            assert already.mesh_id == self.mesh_id, f"{data_dir} is in another mesh"
            return already
        key = load_or_make_key(paths.key)
        certificate = self.certificate(key.public_key, role, starts_s=starts_s, days=days)
        ca_key = self.authority.private_key if role == Role.ISSUER else None
        return enrolment.enrol(paths, [self.authority.ca_der], certificate, self.label, ca_key)

    def certificate(
        self, public_key: bytes, role: Role = Role.NODE, *, starts_s: float = 0.0, days: float = NODE_DAYS
    ) -> bytes:
        """A certificate (DER) for any key, also one that has ended."""
        return self.authority.issue(public_key, role, time.time() + starts_s, x509.random_serial_number(), days)
