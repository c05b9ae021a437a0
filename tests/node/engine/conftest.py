"""The default model in this process, for the tests that call the library themselves."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from node.engine import llama


@pytest.fixture(scope="module")
def model(model_path: Path) -> "Iterator[llama.Model]":
    from node.engine import llama

    llama.start(warn=lambda _: None)
    model = llama.Model(model_path, 0)
    yield model
    model.close()
