"""A copy of the CA for a drawer: its key under a passphrase, and its certificate, in one text file.

Who loses the last issuer can let nobody in, cut nobody off and renew nothing: the mesh ends with its certificates,
after 30 days at most. The backup makes a new issuer of any machine.

Idea: three parts of text. The label and a salt; the certificate in PEM, which says which mesh it is before a passphrase
is asked for; the key as encrypted PKCS #8 in PEM. Its password is the passphrase after scrypt, which makes each guess
cost half a second and 128 MiB: what PKCS #8 itself does here, 2,048 rounds of PBKDF2, costs a millisecond. A changed
key does not fit the certificate.

Does not: guard against a weak passphrase for ever; whoever has the file can try at leisure. Hence `PASSPHRASE_MIN`.

Source: RFC 7914 (scrypt), parameters of the OWASP password storage cheat sheet; RFC 5958 (PKCS #8).
"""

import os
import time
import unicodedata

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from mesh.certificates import Authority, CertificateError, Role, Roots
from node import enrolment
from node.enrolment import Enrolment, ders_in, pem_of
from node.errors import ExitCode, KithError
from node.keys import load_or_make_key
from node.paths import NodePaths

#: Shorter ones are guessed. Characters.
PASSPHRASE_MIN = 12
#: Longer than any file that `ca_backup` writes.
BACKUP_BYTES_MAX = 64 * 1024

#: Cost of a guess: memory is 1 KiB times this. Part of the format.
SCRYPT_N = 1 << 17

_HEADER = "kithmesh CA backup 1"
_LABEL, _SALT = "label: ", "salt: "
_SALT_BYTES = 16


def ca_backup(paths: NodePaths, passphrase: str) -> bytes:
    """The file. Raises `KithError`: `weak-passphrase`, what `require_issuer` raises."""
    if len(passphrase) < PASSPHRASE_MIN:
        raise KithError(
            "weak-passphrase",
            f"the passphrase has fewer than {PASSPHRASE_MIN} characters",
            "Take a few random words: whoever finds the file can guess for years.",
            ExitCode.USAGE,
        )
    enrolled = require_issuer(paths)
    assert enrolled.authority is not None
    salt = os.urandom(_SALT_BYTES)
    key = enrolled.authority.private_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(_stretched(passphrase, salt)),
    )
    head = f"{_HEADER}\n{_LABEL}{enrolled.label}\n{_SALT}{salt.hex()}\n"
    return head.encode() + pem_of([enrolled.authority.ca_der]) + key


def require_issuer(paths: NodePaths) -> Enrolment:
    """Raises `KithError`: `not-an-issuer`, `not-in-a-mesh`, what `enrolment.load` raises."""
    enrolled = enrolment.load(paths)
    if enrolled is None:
        raise enrolment.not_in_a_mesh(paths)
    if enrolled.authority is None:
        raise KithError(
            "not-an-issuer",
            "this node does not hold the CA key",
            "Run it on the node that made the mesh, or on one that was promoted.",
            ExitCode.USAGE,
        )
    return enrolled


def ca_restore(paths: NodePaths, data: bytes, passphrase: str) -> Enrolment:
    """Make this node an issuer of the mesh in the backup.

    A node in no mesh enters this one; a member of this one is promoted. A member of another is refused. Raises
    `KithError`: `bad-backup`, `wrong-passphrase`, `other-mesh`, what `enrolment` raises.
    """
    label, salt, ca_der = _opened(data)
    authority = _authority(data, _stretched(passphrase, salt), ca_der)
    enrolled = enrolment.load(paths)
    if enrolled is None:
        key = load_or_make_key(paths.key)
        certificate = authority.issue(key.public_key, Role.ISSUER, time.time(), x509.random_serial_number())
        return enrolment.enrol(paths, [ca_der], certificate, label, authority.private_key)
    if ca_der not in enrolled.roots.ders:
        raise KithError(
            "other-mesh",
            f"the backup is of mesh {authority.mesh_id[:12]}, this node is in mesh {enrolled.mesh_id[:12]}",
            "Restore it with another --data-dir, or leave first: `kith leave`.",
            ExitCode.USAGE,
        )
    try:
        enrolled.take_authority(authority.private_key)
    except OSError as error:
        raise enrolment.unwritable(paths, error) from error
    return enrolled


def mesh_in(data: bytes) -> tuple[str, str]:
    """Id and label of the mesh in a backup, without its passphrase. Raises `KithError` (`bad-backup`)."""
    label, _, ca_der = _opened(data)
    return Roots([ca_der]).mesh_id, label


def _stretched(passphrase: str, salt: bytes) -> bytes:
    """The password of the key. However the passphrase was typed, the same letters give the same bytes."""
    typed = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogatepass")
    return Scrypt(salt=salt, length=32, n=SCRYPT_N, r=8, p=1).derive(typed).hex().encode()


def _opened(data: bytes) -> tuple[str, bytes, bytes]:
    """Label, salt and CA certificate."""
    if len(data) > BACKUP_BYTES_MAX:
        raise _bad("it is too large")
    try:
        header, label, salt, rest = data.decode().replace("\r\n", "\n").split("\n", 3)
        if (header, label[: len(_LABEL)], salt[: len(_SALT)]) != (_HEADER, _LABEL, _SALT):
            raise ValueError("another header")
        [ca_der] = ders_in(rest)
        Roots([ca_der])
        return enrolment.shown_label(label.removeprefix(_LABEL)), bytes.fromhex(salt.removeprefix(_SALT)), ca_der
    except ValueError as error:
        raise _bad("it does not begin like one, or it is damaged") from error


def _authority(data: bytes, password: bytes, ca_der: bytes) -> Authority:
    try:
        start = data.index(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    except ValueError as error:
        raise _bad("it holds no encrypted key") from error
    try:
        key = serialization.load_pem_private_key(data[start:], password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # A damaged key reads like one under another passphrase: the padding does not fit.
        raise KithError(
            "wrong-passphrase",
            "the passphrase does not open this backup, or the file is damaged",
            "Try again; nothing was changed.",
            ExitCode.BAD_INPUT,
        ) from error
    try:
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CertificateError("its key is of another kind")
        return Authority.load(key, ca_der)
    except CertificateError as error:
        raise _bad(str(error)) from error


def _bad(why: str) -> KithError:
    return KithError(
        "bad-backup",
        f"this is no usable backup of a CA: {why}",
        "Give the file that `kith ca backup` wrote.",
        ExitCode.BAD_INPUT,
    )
