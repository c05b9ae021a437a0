"""The node's private key on disk: made once, 0600, never sent anywhere."""

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.identity import NodeKey
from node.errors import ExitCode, KithError


def load_or_make_key(path: Path) -> NodeKey:
    """The key in `path`; made there when the file is missing. Raises `KithError` (`key-unreadable`)."""
    try:
        if not path.exists():
            _write_new(path)
        loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError("it holds no elliptic-curve key")
        return NodeKey(loaded)
    except (OSError, ValueError, TypeError) as error:
        raise KithError(
            "key-unreadable",
            f"the node's key {path} can not be used: {error}",
            "Restore it from a backup, or move it away: the node then starts as a new one.",
            ExitCode.CANNOT_START,
        ) from error


def _write_new(path: Path) -> None:
    """Write a new key so that the file is never there in half."""
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    draft = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, pem)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.replace(path)
