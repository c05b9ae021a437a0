"""The binding itself, on the real model."""

import pytest

from node.engine import llama

pytestmark = pytest.mark.model


def test_all_pieces_are_those_of_the_tokens(model: llama.Model) -> None:
    pieces = model.pieces()
    assert len(pieces) == model.vocabulary_size
    assert pieces == [model.piece(token) for token in range(model.vocabulary_size)]
    text = "Grüße, 世界! 😀\n\n\tDone."
    assert b"".join(pieces[token] for token in model.tokenize(text, special=False)).decode() == text
