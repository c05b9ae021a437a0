"""Tests of node/client.py."""

import asyncio
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.wire import engine_pb2, facts_pb2, local_pb2, work_pb2
from node import client
from node.client import NodeClient
from node.errors import ExitCode, KithError
from node.paths import NodePaths
from scripts.daemons import until
from tests.node.cli.local_node import OPEN, PANEL, SUMMARY, LocalNode, serve


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LocalNode]:
    node = LocalNode()
    server = serve(tmp_path, node)
    yield node
    server.stop(0).wait()


async def code_of(data_dir: Path) -> KithError:
    with pytest.raises(KithError) as caught:
        async with NodeClient(data_dir) as one:
            await one.status()
    return caught.value


async def test_no_node_is_unreachable_and_says_how_to_start_one(tmp_path: Path) -> None:
    error = await code_of(tmp_path)
    assert (error.code, error.exit_code) == ("node-unreachable", ExitCode.UNREACHABLE)
    assert error.remedy == f"kith --data-dir {tmp_path} up"


async def test_socket_that_nobody_serves_is_unreachable(tmp_path: Path) -> None:
    paths = NodePaths(tmp_path)
    paths.run_dir.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(paths.socket))
    assert (await code_of(tmp_path)).code == "node-unreachable"


async def test_file_in_place_of_the_socket_is_unreachable(tmp_path: Path) -> None:
    paths = NodePaths(tmp_path)
    paths.run_dir.mkdir(mode=0o700)
    paths.socket.write_text("")
    assert (await code_of(tmp_path)).code == "node-unreachable"


async def test_folder_open_to_others_is_refused(tmp_path: Path, node: LocalNode) -> None:
    os.chmod(NodePaths(tmp_path).run_dir, 0o755)  # noqa: S103
    error = await code_of(tmp_path)
    assert "open to other users" in error.message
    assert "chmod 700" in error.remedy


async def test_problem_in_the_metadata_becomes_the_error(tmp_path: Path, node: LocalNode) -> None:
    async with NodeClient(tmp_path) as one:
        with pytest.raises(KithError) as caught:
            await one.result(b"\x99" * 32)
        assert (caught.value.code, caught.value.exit_code) == ("job-unknown", ExitCode.NOT_FOUND)
        with pytest.raises(KithError) as caught:
            await one.result(OPEN)
        assert (caught.value.code, caught.value.remedy) == ("job-not-finished", "kith watch follows it")


@pytest.mark.slow
async def test_a_node_that_was_away_is_seen_soon_after_it_is_back(tmp_path: Path) -> None:
    server = serve(tmp_path, LocalNode())
    async with NodeClient(tmp_path) as one:
        await one.status()
        server.stop(0).wait()
        away_until = time.monotonic() + 17.0  # gRPC's own pause would be 10 s by then
        while time.monotonic() < away_until:
            with pytest.raises(KithError, match="no node runs"):
                await one.status()
            await asyncio.sleep(0.2)
        shutil.rmtree(NodePaths(tmp_path).run_dir)
        server = serve(tmp_path, LocalNode())

        async def seen() -> bool:
            try:
                return bool(await one.status())
            except KithError:
                return False

        await until(seen, 5.0, "an answer")
        server.stop(0).wait()


async def test_a_data_directory_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "50% off? #1 %41 é😀"
    server = serve(folder, LocalNode())
    async with NodeClient(folder) as one:
        assert await one.status()
    server.stop(0).wait()
    assert os.listdir(tmp_path) == [folder.name]


async def test_deadline_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A daemon that is frozen: its kernel takes the connection, and nobody answers."""
    paths = NodePaths(tmp_path)
    paths.run_dir.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(paths.socket))
        frozen.listen()
        async with NodeClient(tmp_path) as one:
            with pytest.raises(KithError) as caught:
                await one.status(timeout_s=0.2)
    assert (caught.value.code, caught.value.exit_code) == ("node-timeout", ExitCode.UNREACHABLE)


@pytest.mark.parametrize("size", [0, 1, client.PART_BYTES, 2 * client.PART_BYTES + 1])
async def test_document_arrives_whole_and_in_parts(tmp_path: Path, node: LocalNode, size: int) -> None:
    document = (bytes(range(256)) * (size // 256 + 1))[:size]
    request = work_pb2.JobRequest(summarize=work_pb2.SummarizeRequest(title="t"))
    async with NodeClient(tmp_path) as one:
        accepted = await one.submit(request, document, client_key=b"k" * 16, min_replicas=1)
    header, received, parts = node.submitted[0]
    assert received == document
    assert parts == -(-size // client.PART_BYTES)
    assert (header.client_key, header.min_replicas, header.request) == (b"k" * 16, 1, request)
    assert (accepted.job_id, accepted.replicas) == (SUMMARY, 2)


async def test_each_submission_has_a_key_of_its_own(tmp_path: Path, node: LocalNode) -> None:
    async with NodeClient(tmp_path) as one:
        await one.submit(work_pb2.JobRequest())
        await one.submit(work_pb2.JobRequest())
    keys = {header.client_key for header, _, _ in node.submitted}
    assert len(keys) == 2
    assert {len(key) for key in keys} == {16}


async def test_watch_ends_with_the_job(tmp_path: Path, node: LocalNode) -> None:
    async with NodeClient(tmp_path) as one:
        seen = [snapshot async for snapshot in one.watch(PANEL)]
    assert seen[0].state == local_pb2.JOB_STATE_OPEN
    assert seen[-1].state == local_pb2.JOB_STATE_COMPLETED


async def test_stream_can_be_left(tmp_path: Path, node: LocalNode) -> None:
    async with NodeClient(tmp_path) as one:
        watched = one.watch(OPEN)
        await anext(watched)
        await watched.aclose()
        assert (await one.status()).name == "anna"


async def test_chat_streams_route_text_and_end(tmp_path: Path, node: LocalNode) -> None:
    request = engine_pb2.GenerateRequest(messages=[engine_pb2.ChatMessage(role="user", content="hello there")])
    async with NodeClient(tmp_path) as one:
        events = [event async for event in one.chat(local_pb2.ChatRequest(request=request))]
    assert events[0].routed.node_name == "anna"
    assert "".join(event.generate.delta.text for event in events) == "You said: hello there"
    assert events[-1].generate.finished.reason == "stop"


async def test_knowledge_is_added_and_found(tmp_path: Path, node: LocalNode) -> None:
    async with NodeClient(tmp_path) as one:
        item_id = await one.add_knowledge(facts_pb2.KnowledgeAdded(text="The router is in room 4."))
        hits = await one.search_knowledge("router")
        assert await one.search_knowledge("elephant") == []
    assert [hit.item_id for hit in hits] == [item_id]


async def test_context_is_that_of_the_named_node(tmp_path: Path, node: LocalNode) -> None:
    async with NodeClient(tmp_path) as one:
        assert await one.context_tokens() == 4096
        assert await one.context_tokens("ben") == 4096
        assert await one.context_tokens("nobody") == 0
