"""The node's log: what goes wrong inside is told there, and never in words that may be somebody's."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from mesh.wire import local_pb2, local_pb2_grpc
from node import logs


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "logs" / "kith.log"
    logs.set_up(path, "info", terminal=False)
    yield path
    logs.tear_down()


class Faulty(local_pb2_grpc.LocalServicer):
    __abstractmethods__: frozenset[str] = frozenset()

    async def Status(self, request: Any, context: Any) -> local_pb2.StatusReply:
        raise ValueError("a secret")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def fail() -> None:
    raise KeyError("a secret")


async def test_a_fault_in_a_callback_is_told_once_by_its_place(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        asyncio.get_running_loop().call_soon(fail)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    [line] = lines(log)
    assert " ERROR   asyncio: KeyError at test_logs.py:" in line
    assert "secret" not in line
    assert capsys.readouterr().err == ""


async def test_a_fault_in_a_handler_is_told_by_its_place(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = grpc.aio.server()
    local_pb2_grpc.add_LocalServicer_to_server(Faulty(), server)  # type: ignore[abstract]
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await local_pb2_grpc.LocalStub(channel).Status(local_pb2.StatusRequest(), timeout=30)
    finally:
        await server.stop(None)
    [line] = lines(log)
    assert " ERROR   grpc: ValueError at test_logs.py:" in line
    assert "secret" not in line
    assert capsys.readouterr().err == ""
