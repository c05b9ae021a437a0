"""What a data directory knows of its mesh: the CA certificates, the node's own one, on issuers the CA key.

    mesh/ca.pem     the CA's certificate; two while one CA takes over from another; the first names the mesh
    mesh/node.pem   the node's own certificate; renewed under the same key
    mesh/ca.key     issuers only: whoever holds it decides who belongs
    mesh/mesh.json  what people call the mesh, the mark of the machine, and when the CA was backed up

Idea: the folder comes and goes as a whole, by one rename, so a node is in a mesh or is not. A node without it runs
alone. What is left behind is moved aside, never deleted.

Does not: lock the data directory; whoever makes, joins or leaves a mesh holds `listening.Lock`. Does not judge whether
the certificate has expired: such a node may still ask for a new one.
"""

import datetime
import json
import os
import shutil
import ssl
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.certificates import Authority, CertificateError, Identity, Role, Roots
from mesh.identity import NodeKey
from node.away import export_open_jobs
from node.errors import ExitCode, KithError
from node.files import sync_folder, write_atomically, write_synced
from node.keys import load_key, load_or_make_key, new_private_key, private_pem, read_private_key
from node.machine import machine_id, machine_mark
from node.paths import NodePaths

#: Largest file of the folder that is read; ours are about 1 KiB.
FILE_BYTES_MAX = 64 * 1024
#: What people may call a mesh, characters.
LABEL_MAX = 64


@dataclass(frozen=True)
class About:
    """What mesh.json holds."""

    label: str
    machine: str  # see machine.py; empty: not known
    backed_up_s: float = 0.0  # seconds since the epoch of the last `kith ca backup` on this node; 0: none


class Enrolment:
    """A node in a mesh: what it proves itself with and what it believes others by.

    Attributes change as a whole (a new `identity` replaces the old one), so threads may read them at any time.
    """

    def __init__(
        self,
        paths: NodePaths,
        key: NodeKey,
        roots: Roots,
        certificate_der: bytes,
        authority: Authority | None,
        label: str,
    ) -> None:
        """Raises `CertificateError` where the parts do not belong together."""
        self.paths = paths
        self.key = key
        self.roots = roots
        self.identity = self._own(certificate_der)
        self.authority = authority
        self.label = label
        if authority is not None and authority.ca_der not in roots.ders:
            raise CertificateError("the CA key is not that of this mesh")

    @property
    def private_key(self) -> ec.EllipticCurvePrivateKey:
        return self.key.private_key

    @property
    def mesh_id(self) -> str:
        return self.roots.mesh_id

    def backed_up_s(self) -> float:
        """When the CA was last backed up from here, seconds since the epoch; 0: never, as far as is known."""
        try:
            return _about(self.paths).backed_up_s
        except (OSError, ValueError):
            return 0.0

    def issue(self, public_key: bytes, role: Role) -> bytes:
        """A certificate (DER) from now on, by the CA key that is held here. Raises `CertificateError` for a bad key."""
        assert self.authority is not None, "this node is no issuer"
        return self.authority.issue(public_key, role, time.time(), x509.random_serial_number())

    def renewed(self, certificate_der: bytes) -> None:
        """Go on with this certificate for the same key. Raises `CertificateError`, `OSError`; then nothing changed."""
        identity = self._own(certificate_der)
        write_atomically(self.paths.certificate, pem_of([certificate_der]))
        self.identity = identity

    def take_authority(self, ca_private_key: ec.EllipticCurvePrivateKey) -> None:
        """Become an issuer. Raises `CertificateError` for another mesh's key, `OSError`; then nothing changed."""
        authority = _authority_of(ca_private_key, self.roots)
        write_atomically(self.paths.ca_key, private_pem(ca_private_key))
        self.authority = authority
        self.renewed(self.issue(self.key.public_key, Role.ISSUER))

    def _own(self, certificate_der: bytes) -> Identity:
        identity = self.roots.read(certificate_der)
        if identity.public_key != self.key.public_key:
            raise CertificateError("the certificate is another node's")
        return identity


def load(paths: NodePaths) -> Enrolment | None:
    """The enrolment of a data directory; None where the node is in no mesh.

    Raises `KithError`: `enrolment-damaged`, `copied-data-directory`, `key-unreadable`.
    """
    if not paths.mesh.exists():
        return None
    key = load_key(paths.key) if paths.key.exists() else None
    try:
        if key is None:
            raise FileNotFoundError(f"its key {paths.key.name} is missing")
        paths.mesh.chmod(0o700)
        roots = Roots(_ders(paths.ca))
        [certificate_der] = _ders(paths.certificate)
        authority = _authority_of(read_private_key(paths.ca_key), roots) if paths.ca_key.exists() else None
        about = _about(paths)
        enrolment = Enrolment(paths, key, roots, certificate_der, authority, about.label)
    except (OSError, ValueError) as error:
        raise KithError(
            "enrolment-damaged",
            f"what this node knows of its mesh, {paths.mesh}, can not be used: {error}",
            "Restore it from a backup, or leave with `kith leave` and join again.",
            ExitCode.CANNOT_START,
        ) from error
    here = machine_mark(key.node_id, machine_id())
    if about.machine and here and about.machine != here:
        raise KithError(
            "copied-data-directory",
            f"{paths.data_dir} comes from another machine, and one node can not run on two",
            "If it was moved: `kith up --moved`. If it is a copy: `kith leave`, then join with an invite of its own.",
            ExitCode.CANNOT_START,
        )
    return enrolment


def found(paths: NodePaths, label: str) -> Enrolment:
    """Make a new mesh with this node as its founder and issuer. Raises `KithError`."""
    key = load_or_make_key(paths.key)
    authority = Authority.create(new_private_key(), time.time(), x509.random_serial_number())
    certificate = authority.issue(key.public_key, Role.ISSUER, time.time(), x509.random_serial_number())
    return enrol(paths, [authority.ca_der], certificate, label, authority.private_key)


def enrol(
    paths: NodePaths,
    ca_ders: Sequence[bytes],
    certificate_der: bytes,
    label: str,
    ca_private_key: ec.EllipticCurvePrivateKey | None = None,
) -> Enrolment:
    """Enter a mesh with a certificate for the node's key; with the CA key as an issuer. Raises `KithError`.

    The label is another's word: it is cut to what can be shown. What the node did alone stays with it, and the mesh
    will know it; in a role whose facts do not count for that, the journal is moved aside.
    """
    require_no_mesh(paths)
    key = load_or_make_key(paths.key)
    try:
        roots = Roots(ca_ders)
        authority = None if ca_private_key is None else _authority_of(ca_private_key, roots)
        enrolment = Enrolment(paths, key, roots, certificate_der, authority, shown_label(label))
    except CertificateError as error:
        raise KithError(
            "certificate-refused",
            f"the certificates do not fit this node: {error}",
            "Ask for a new invite, and join again.",
            ExitCode.BAD_INPUT,
        ) from error
    about = About(enrolment.label, machine_mark(key.node_id, machine_id()))
    files = {
        paths.ca: pem_of(ca_ders),
        paths.certificate: pem_of([certificate_der]),
        paths.about_mesh: _json(about),
    }
    if ca_private_key is not None:
        files[paths.ca_key] = private_pem(ca_private_key)
    draft = paths.mesh.with_name("mesh.new")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed here
        draft.mkdir(mode=0o700)
        for path, content in files.items():
            write_synced(draft / path.name, content)
        sync_folder(draft)
        if enrolment.identity.role not in (Role.ISSUER, Role.NODE) and paths.journal.exists():
            _move_journal(paths, _aside(paths, "alone"))
        draft.rename(paths.mesh)
        sync_folder(paths.data_dir)
    except OSError as error:
        raise unwritable(paths, error) from error
    return enrolment


def leave(paths: NodePaths) -> Path:
    """Leave the mesh: its folder, the node's key and the journal go to a folder of their own, which is returned.

    A list of the open jobs goes with them. Works on a damaged enrolment as well. Raises `KithError`.
    """
    if not paths.mesh.exists():
        raise not_in_a_mesh(paths)
    try:
        aside = _aside(paths, "left")
        # The mesh last: until then the next `kith leave` goes on where this one stopped.
        _move_journal(paths, aside)
        for path in (paths.peers, paths.key, paths.mesh):
            _move(path, aside)
        sync_folder(aside)
        sync_folder(paths.data_dir)
    except OSError as error:
        raise unwritable(paths, error) from error
    return aside


def accept_move(paths: NodePaths) -> None:
    """The data directory is at home on this machine from now on. Raises `KithError`."""
    if not paths.mesh.exists():
        return
    key = load_key(paths.key)
    try:
        about = replace(_about(paths), machine=machine_mark(key.node_id, machine_id()))
        write_atomically(paths.about_mesh, _json(about))
    except (OSError, ValueError) as error:
        raise unwritable(paths, error) from error


def note_backup(paths: NodePaths) -> None:
    """Remember that the CA was backed up just now. Raises `KithError`."""
    try:
        write_atomically(paths.about_mesh, _json(replace(_about(paths), backed_up_s=time.time())))
    except (OSError, ValueError) as error:
        raise unwritable(paths, error) from error


def require_no_mesh(paths: NodePaths) -> None:
    """Raises `KithError` (`already-member`)."""
    if paths.mesh.exists():
        raise KithError(
            "already-member",
            f"the node in {paths.data_dir} is in a mesh already",
            "See `kith status`; leave it with `kith leave`, or use another --data-dir.",
            ExitCode.USAGE,
        )


def not_in_a_mesh(paths: NodePaths) -> KithError:
    return KithError(
        "not-in-a-mesh",
        f"the node in {paths.data_dir} is in no mesh",
        "Make one with `kith init`, or join one with `kith join`.",
        ExitCode.USAGE,
    )


def shown_label(label: str) -> str:
    """The label, without what does not print, in one line, at most `LABEL_MAX` characters."""
    printable = "".join(letter if letter.isprintable() else " " for letter in label)
    return " ".join(printable.split())[:LABEL_MAX].strip() or "mesh"


def _authority_of(private_key: ec.EllipticCurvePrivateKey, roots: Roots) -> Authority:
    for ca_der in roots.ders:
        try:
            return Authority.load(private_key, ca_der)
        except CertificateError:
            continue
    raise CertificateError("the CA key is not that of this mesh")


def _about(paths: NodePaths) -> About:
    """Raises `OSError`, `ValueError`."""
    said = json.loads(_read(paths.about_mesh))
    try:
        return About(shown_label(said["label"]), str(said["machine"]), float(said.get("backed_up_s", 0.0)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{paths.about_mesh.name} does not hold what it should") from error


def _json(about: About) -> bytes:
    return json.dumps(asdict(about)).encode()


def _read(path: Path) -> bytes:
    if path.stat().st_size > FILE_BYTES_MAX:
        raise ValueError(f"{path.name} is too large")
    return path.read_bytes()


def pem_of(ders: Sequence[bytes]) -> bytes:
    return "".join(ssl.DER_cert_to_PEM_cert(der) for der in ders).encode()


def ders_in(text: str) -> list[bytes]:
    """The certificates of a PEM text, in order. Raises `ValueError`."""
    end = ssl.PEM_FOOTER
    blocks = [block.strip() + f"\n{end}\n" for block in text.split(end)[:-1]]
    return [ssl.PEM_cert_to_DER_cert(block) for block in blocks]


def _ders(path: Path) -> list[bytes]:
    return ders_in(_read(path).decode("ascii"))


def _aside(paths: NodePaths, word: str) -> Path:
    """A new folder for what is moved aside."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    folder = paths.data_dir / f"{word}-{stamp}-{os.getpid()}"
    folder.mkdir(mode=0o700)
    return folder


def _move_journal(paths: NodePaths, folder: Path) -> None:
    # Reading a sound journal also folds its log into it, so that one file moves.
    export_open_jobs(paths.journal, folder / "open-jobs.jsonl")
    for suffix in ("-wal", "-shm", ""):
        _move(paths.journal.with_name(paths.journal.name + suffix), folder)


def _move(path: Path, folder: Path) -> None:
    if path.exists():
        path.rename(folder / path.name)


def unwritable(paths: NodePaths, error: Exception) -> KithError:
    return KithError(
        "data-dir-unusable",
        f"the data directory {paths.data_dir} can not be written: {error}",
        "Make room or mend its permissions, then try again.",
        ExitCode.CANNOT_START,
    )
