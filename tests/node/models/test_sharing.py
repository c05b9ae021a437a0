"""What a node gives of its model files; whole transfers are in test_peers.py."""

from pathlib import Path

import pytest

from mesh.wire import mesh_pb2
from node.errors import KithError
from node.models.local import pull_file
from node.models.sharing import ModelSharing
from node.models.store import ModelStore
from tests.node.models.gguf_files import write_gguf


@pytest.fixture
def sharing(tmp_path: Path) -> ModelSharing:
    store = ModelStore(tmp_path / "models")
    write_gguf(tmp_path / "Tiny.gguf")
    pull_file(tmp_path / "Tiny.gguf", store)
    write_gguf(store.folder / "Byhand.gguf", "By hand")
    (tmp_path / "secret.gguf").write_text("nothing of the store")
    return ModelSharing(list, lambda: store)


async def test_from_an_offset_on(sharing: ModelSharing, tmp_path: Path) -> None:
    request = mesh_pb2.FetchModelRequest(name="Tiny", offset_bytes=100)
    chunks = [chunk async for chunk in sharing.chunks("x", request)]
    content = write_gguf(tmp_path / "again.gguf")
    assert chunks[0].size_bytes == chunks[0].model.size_bytes == len(content)
    assert b"".join(chunk.data for chunk in chunks) == content[100:]
    assert not chunks[0].model.source  # where it lies on this machine concerns nobody
    beyond = mesh_pb2.FetchModelRequest(name="Tiny", offset_bytes=1 << 40)
    assert [chunk.data async for chunk in sharing.chunks("x", beyond)] == [b""]


@pytest.mark.parametrize("name", ["secret.gguf", "../secret.gguf", "../secret", "/etc/passwd", "Tiny.gguf.json", ""])
async def test_nothing_but_the_stores_files(sharing: ModelSharing, name: str) -> None:
    with pytest.raises(KithError) as caught:
        await anext(sharing.chunks("x", mesh_pb2.FetchModelRequest(name=name)))
    assert caught.value.code == "model-unknown"


async def test_file_without_a_hash_is_not_given(sharing: ModelSharing, tmp_path: Path) -> None:
    with pytest.raises(KithError, match="without its hash") as caught:
        await anext(sharing.chunks("x", mesh_pb2.FetchModelRequest(name="Byhand")))
    assert str(tmp_path) not in f"{caught.value.message} {caught.value.remedy}", "where it lies concerns nobody"


async def test_refusals_hold_no_place(sharing: ModelSharing) -> None:
    for _ in range(10):
        with pytest.raises(KithError, match="does not hold"):
            await anext(sharing.chunks("x", mesh_pb2.FetchModelRequest(name="None")))
    with pytest.raises(KithError, match="absurd"):
        await anext(sharing.chunks("x", mesh_pb2.FetchModelRequest(name="Tiny", offset_bytes=1 << 63)))
    last = [chunk async for chunk in sharing.chunks("x", mesh_pb2.FetchModelRequest(name="Tiny"))]
    assert last[0].size_bytes
