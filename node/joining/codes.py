"""What an invite looks like on paper: a short code for people, and a token for scripts.

Idea: a code is a nameplate, which says whom to ask, and two words, which are the secret: `7-cactus-violin`. Two words
of 256 are 16 bits. That is enough because the exchange (exchange.py) gives a guesser one try and nothing to work on
afterwards. What is typed is checked against the list of words before anything is sent, so a slip costs no invite.

A token is `kith1.HASH.ID.SECRET`: the SHA-256 of the mesh's CA key (43 characters, base64url), the invite's id (6) and
128 random bits (22). Who holds one knows which mesh it leads to before the first byte, and needs nobody to look.

Source: magic-wormhole, for nameplate and words; k3s and kubeadm, for a token that pins the CA.
"""

import base64
import difflib
import hashlib
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from node.errors import ExitCode, KithError
from node.joining.words import WORDS

NAMEPLATE_MAX = 99
#: Characters looked at: against a file pasted in place of a code.
TEXT_CHARS_MAX = 200
SECRET_BYTES = 16
ID_CHARS = 6
#: Letters and digits that are not mistaken for each other.
ID_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"

_INDEX = {word: index for index, word in enumerate(WORDS)}
_TOKEN = re.compile(rf"kith1\.([A-Za-z0-9_-]{{43}})\.([{ID_ALPHABET}]{{{ID_CHARS}}})\.([A-Za-z0-9_-]{{22}})")


@dataclass(frozen=True)
class Code:
    nameplate: int  # 1 … NAMEPLATE_MAX
    words: tuple[str, str]

    @property
    def invite(self) -> str:
        """What is said openly."""
        return str(self.nameplate)

    @property
    def password(self) -> bytes:
        return "-".join(self.words).encode()

    def __str__(self) -> str:
        return f"{self.nameplate}-{self.words[0]}-{self.words[1]}"

    def __repr__(self) -> str:  # a secret must not reach a log by way of a dataclass
        return f"Code({self.nameplate}-…)"


@dataclass(frozen=True)
class Token:
    ca_hash: bytes  # SHA-256 of the CA's public key, 32 bytes
    invite: str
    secret: bytes  # SECRET_BYTES

    @property
    def password(self) -> bytes:
        return self.secret

    def __str__(self) -> str:
        return f"kith1.{_base64(self.ca_hash)}.{self.invite}.{_base64(self.secret)}"

    def __repr__(self) -> str:
        return f"Token({self.invite}, …)"


def code_of(nameplate: int, entropy: bytes) -> Code:
    """The code with this nameplate and two words drawn by the first two bytes of `entropy`."""
    return Code(nameplate, (WORDS[entropy[0]], WORDS[entropy[1]]))


def invite_id_of(entropy: bytes) -> str:
    """An id of ID_CHARS from as many bytes."""
    return "".join(ID_ALPHABET[byte % len(ID_ALPHABET)] for byte in entropy[:ID_CHARS])


def ca_hash_of(ca_der: bytes) -> bytes:
    """SHA-256 of the public key of a CA certificate (of its SubjectPublicKeyInfo). `ca_der` was checked before."""
    key = x509.load_der_x509_certificate(ca_der).public_key()
    return hashlib.sha256(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).digest()


def parse(text: str) -> Code | Token:
    """What a person typed or pasted. Raises `KithError` (`bad-invite`), before anybody was asked."""
    text = text.strip()
    if len(text) > TEXT_CHARS_MAX:
        raise _bad("this is too long for a code or a token")
    if text.lower().startswith("kith1"):
        return _token(text)
    parts = [part for part in re.split(r"[\s\-–—_.]+", text.casefold()) if part]
    if len(parts) != 3 or not parts[0].isascii() or not parts[0].isdigit():
        raise _bad("a code is a number and two words, like 7-cactus-violin")
    nameplate = int(parts[0])
    if not 1 <= nameplate <= NAMEPLATE_MAX:
        raise _bad(f"a code begins with a number from 1 to {NAMEPLATE_MAX}")
    for word in parts[1:]:
        if word not in _INDEX:
            near = difflib.get_close_matches(word, WORDS, n=2, cutoff=0.6)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            # `!r`: it is shown to whoever typed it, and may hold anything.
            raise _bad(f"{word[:20]!r} is no word of a code{meant}")
    return Code(nameplate, (parts[1], parts[2]))


def _token(text: str) -> Token:
    if (found := _TOKEN.fullmatch(text)) is None:
        raise _bad("this token is damaged: it has 79 characters, beginning with kith1.")
    return Token(_bytes(found[1]), found[2], _bytes(found[3]))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _bad(said: str) -> KithError:
    return KithError(
        "bad-invite", said, "Copy it anew from the machine that ran `kith invite`; nothing was sent.", ExitCode.USAGE
    )
