"""A Hub for the tests of this folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import close_session

from tests.node.models.gguf_files import gguf_bytes
from tests.node.models.hub_server import Hub, HubUp, serving


@pytest.fixture
def hub_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubUp:
    """A Hub that has `SOURCE`, while the context is open; models go to `tmp_path`."""
    monkeypatch.setenv("KITH_MODELS", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    @contextlib.contextmanager
    def up() -> Iterator[Hub]:
        with serving({"T.gguf": gguf_bytes()}) as hub:
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
            yield hub
            close_session()

    return up
