"""The binding itself, on the real model."""

from pathlib import Path

import pytest

from node import gguf
from node.engine import llama
from tests.node.engine import tiny_models
from tests.node.engine.gguf_files import write_parts

pytestmark = pytest.mark.model


def test_all_pieces_are_those_of_the_tokens(model: llama.Model) -> None:
    pieces = model.pieces()
    assert len(pieces) == model.vocabulary_size
    assert pieces == [model.piece(token) for token in range(model.vocabulary_size)]
    text = "Grüße, 世界! 😀\n\n\tDone."
    assert b"".join(pieces[token] for token in model.tokenize(text, special=False)).decode() == text


def test_a_model_in_several_files_is_loaded_as_its_header_says(tmp_path: Path) -> None:
    first, *_ = write_parts(tiny_models.made("llama"), tmp_path, 3)
    llama.start(warn=lambda _: None)
    model = llama.Model(first, 0)
    found = (model.parameters, model.tensor_bytes)
    model.close()
    header = gguf.read_header(first)
    assert found == (header.parameters, header.tensor_bytes)
    assert header.tensors == len(tiny_models.made("llama").tensors)
