"""The binding itself, on the real model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.engine import llama

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model(model_path: Path) -> Iterator[llama.Model]:
    llama.start(warn=lambda _: None)
    model = llama.Model(model_path, 0)
    yield model
    model.close()


def test_all_pieces_are_those_of_the_tokens(model: llama.Model) -> None:
    pieces = model.pieces()
    assert len(pieces) == model.vocabulary_size
    assert pieces == [model.piece(token) for token in range(model.vocabulary_size)]
    text = "Grüße, 世界! 😀\n\n\tDone."
    assert b"".join(pieces[token] for token in model.tokenize(text, special=False)).decode() == text
