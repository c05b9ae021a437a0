"""The binding itself, on the real model."""

import ctypes
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


def test_every_type_of_tensor_that_the_library_knows_is_counted_as_large_as_it_is() -> None:
    llama.start(warn=lambda _: None)
    named = {name: kind for name, kind in vars(llama.lib).items() if name.startswith("GGML_TYPE_")}
    kinds = set(named.values()) - {named.get("GGML_TYPE_COUNT")}
    assert len(kinds) > 30
    assert kinds <= set(gguf._TENSOR_TYPES)  # the binding names most of them
    base = ctypes.CDLL(str(next((Path(llama.lib.__file__).parent / "lib").glob("libggml-base.*"))))
    base.ggml_type_size.restype, base.ggml_blck_size.restype = ctypes.c_size_t, ctypes.c_int64
    base.ggml_type_name.restype = ctypes.c_char_p
    for kind, (name, elements, size) in gguf._TENSOR_TYPES.items():
        assert base.ggml_type_name(kind).decode().upper() == name
        assert (base.ggml_blck_size(kind), base.ggml_type_size(kind)) == (elements, size)
