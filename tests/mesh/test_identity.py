"""Node keys: ids follow from keys, signatures repeat, and nothing malformed verifies or raises."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity import FACT_DOMAIN, PUBLIC_KEY_BYTES, SIGNATURE_BYTES, NodeKey, node_id_of, verify
from tests.mesh.building import KEYS

#: The order of P-256's group (SEC 2, section 2.4.2).
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def test_the_key_of_scalar_one_is_the_generator() -> None:
    key = NodeKey.from_scalar(1)
    assert key.public_key.hex() == "036b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"


def test_an_id_is_32_hex_digits_of_the_keys_hash() -> None:
    for key in KEYS:
        assert key.node_id == node_id_of(key.public_key)
        assert len(key.node_id) == 32
        assert int(key.node_id, 16) >= 0
    assert len({key.node_id for key in KEYS}) == len(KEYS)


@given(st.binary(max_size=200))
def test_a_signature_verifies_and_repeats(body: bytes) -> None:
    signature = KEYS[0].sign(body)
    assert len(signature) == SIGNATURE_BYTES
    assert signature == KEYS[0].sign(body)
    assert verify(KEYS[0].public_key, body, signature)
    assert not verify(KEYS[1].public_key, body, signature)
    assert not verify(KEYS[0].public_key, body + b"x", signature)


def test_a_signature_holds_for_facts_only() -> None:
    assert not verify(KEYS[0].public_key, FACT_DOMAIN + b"body", KEYS[0].sign(b"body"))


@given(st.binary(max_size=70), st.binary(max_size=70))
def test_malformed_keys_and_signatures_are_just_false(key: bytes, signature: bytes) -> None:
    assert not verify(key, b"body", signature)
    assert not verify(KEYS[0].public_key, b"body", signature)
    assert not verify(key, b"body", KEYS[0].sign(b"body"))


@pytest.mark.parametrize("r", [0, ORDER, 2**256 - 1])
def test_signature_numbers_out_of_range_are_false(r: int) -> None:
    good = KEYS[0].sign(b"body")
    assert not verify(KEYS[0].public_key, b"body", r.to_bytes(32, "big") + good[32:])
    assert not verify(KEYS[0].public_key, b"body", good[:32] + r.to_bytes(32, "big"))


def test_a_point_that_is_not_on_the_curve_is_false() -> None:
    signature = KEYS[0].sign(b"body")
    off_curve = [b"\x02" + bytes([first]) + b"\0" * 31 for first in range(16)] + [b"\x04" + b"\0" * 32]
    assert not any(verify(key, b"body", signature) for key in off_curve)
    assert all(len(key) == PUBLIC_KEY_BYTES for key in off_curve)


def test_keys_of_other_curves_are_refused() -> None:
    with pytest.raises(ValueError, match="P-256"):
        NodeKey(ec.derive_private_key(7, ec.SECP384R1()))
