"""Codes and tokens as people type them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import KithError
from node.joining.codes import ID_ALPHABET, Code, Token, code_of, invite_id_of, parse
from node.joining.words import WORDS

codes = st.builds(code_of, st.integers(1, 99), st.binary(min_size=2, max_size=2))
tokens = st.builds(
    Token,
    st.binary(min_size=32, max_size=32),
    st.text(ID_ALPHABET, min_size=6, max_size=6),
    st.binary(min_size=16, max_size=16),
)


@given(st.one_of(codes, tokens))
def test_what_is_printed_is_read(secret: Code | Token) -> None:
    assert parse(str(secret)) == secret
    assert parse(f"  {secret}\n") == secret


@pytest.mark.parametrize("typed", ["7 Cactus VIOLIN", "7-cactus–violin", "07 - cactus - violin", "7.cactus.violin"])
def test_a_code_is_read_as_people_write_it(typed: str) -> None:
    assert parse(typed) == Code(7, ("cactus", "violin"))


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "7",
        "cactus-violin",
        "7-cactus",
        "0-cactus-violin",
        "100-cactus-violin",
        "7-cactus-violin-olive",
        "²-cactus-violin",
        "7-cactus-xyzzy",
        "kith1.abc",
        "kith1." + "A" * 43 + ".abcdef." + "A" * 21,
        "kith1." + "A" * 43 + ".abcde1." + "A" * 22,
        "7-cactus-\x1b[2J",
        "7-" * 1000,
    ],
)
def test_what_is_none_is_refused_before_anybody_is_asked(typed: str) -> None:
    with pytest.raises(KithError) as refused:
        parse(typed)
    assert refused.value.code == "bad-invite"
    assert "\x1b" not in refused.value.message


def test_a_slip_is_noticed_and_the_word_meant_is_named() -> None:
    with pytest.raises(KithError, match="did you mean cactus"):
        parse("7-cactas-violin")


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(typed: str) -> None:
    try:
        secret = parse(typed)
    except KithError:
        return
    assert parse(str(secret)) == secret


@given(st.one_of(codes, tokens))
def test_the_secret_is_not_in_the_representation(secret: Code | Token) -> None:
    for part in secret.words if isinstance(secret, Code) else (str(secret).rpartition(".")[2],):
        assert part not in repr(secret)


def test_every_byte_draws_a_word_of_its_own() -> None:
    assert {code_of(1, bytes([byte, 0])).words[0] for byte in range(256)} == set(WORDS)


@given(st.binary(min_size=6, max_size=6))
def test_ids_have_no_letters_that_look_alike(entropy: bytes) -> None:
    made = invite_id_of(entropy)
    assert len(made) == 6
    assert not set(made) & set("01ilo")
