"""Private keys on disk: the node's own, made once, and on issuers the CA's. 0600, PKCS #8, never sent anywhere.

The one exception to "never sent" is a promotion, in which one issuer hands the CA key to another over mutual TLS.
"""

import stat
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.identity import NodeKey
from node.errors import ExitCode, KithError
from node.files import write_atomically


def new_private_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def load_or_make_key(path: Path) -> NodeKey:
    """The key in `path`; made there where it is missing. Raises `KithError` (`key-unreadable`, `key-unwritten`)."""
    try:
        if not path.exists():
            write_atomically(path, private_pem(new_private_key()))
    except OSError as error:
        message = f"the node's key {path} can not be written: {error.strerror or error}"
        remedy = "Make room and the folder writable, then try again."
        raise KithError("key-unwritten", message, remedy, ExitCode.CANNOT_START) from error
    return load_key(path)


def load_key(path: Path) -> NodeKey:
    """The node's key in `path`. Raises `KithError` (`key-unreadable`)."""
    try:
        return NodeKey(read_private_key(path))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in `path`, which only its owner reads from now on: a copied or restored file may be open to others.

    Raises `OSError`, or `ValueError` for a file that holds no such key.
    """
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o600)
    try:
        loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:  # in words of cryptography's own
        raise ValueError("it holds no key that can be read") from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise ValueError("it holds no elliptic-curve key")
    return loaded


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key in clear: for a 0600 file."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _unreadable(path: Path, error: Exception) -> KithError:
    return KithError(
        "key-unreadable",
        f"the node's key {path} can not be used: {getattr(error, 'strerror', None) or error}",
        "Restore it from a backup, or start a new node with another --data-dir.",
        ExitCode.CANNOT_START,
    )
