"""Tests of node/keys.py: one key for good, and a file that is no key says so."""

import errno
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from node.errors import KithError
from node.keys import load_key, load_or_make_key, new_private_key, private_pem


def test_a_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    key = load_or_make_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_make_key(path).node_id == load_key(path).node_id == key.node_id


def test_a_key_for_which_there_is_no_room_is_not_called_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is there to be restored or moved away."""

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(KithError, match="No space left on device") as caught:
        load_or_make_key(tmp_path / "node.key")
    assert caught.value.code == "key-unwritten"
    assert "Make room" in caught.value.remedy


def test_a_key_that_others_can_read_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    key = load_or_make_key(path)
    path.chmod(0o644)
    assert load_key(path).node_id == key.node_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_missing_key_is_not_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(KithError) as raised:
        load_key(tmp_path / "node.key")
    assert raised.value.code == "key-unreadable"
    assert not list(tmp_path.iterdir())


PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
OTHERS = {
    "nothing": b"",
    "noise": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    "another curve": private_pem(ec.generate_private_key(ec.SECP384R1())),
    "another kind": ed25519.Ed25519PrivateKey.generate().private_bytes(*PKCS8, serialization.NoEncryption()),
    "encrypted": new_private_key().private_bytes(*PKCS8, serialization.BestAvailableEncryption(b"a passphrase")),
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS.keys())
def test_what_is_no_key_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    with pytest.raises(KithError) as raised:
        load_or_make_key(path)
    assert raised.value.code == "key-unreadable"
    assert not any(word in raised.value.message for word in ("http", "PEM", "Framing", "password"))
    assert path.read_bytes() == content
