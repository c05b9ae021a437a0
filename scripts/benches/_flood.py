"""The part `flood` of the bench security: what others notice while one member sends ten thousand requests at once.

One node with an echo engine of four places, whose first token takes 200 ms. Three members ask it, each one generation
and one unary call after the other, first alone, then while a fourth member floods it from a process of its own, over
four connections, with as many requests under way as gRPC lets through. `flood_p95_ratio`: their 95th percentile of the
time to first token in the flood, by the one before it; `flood_unary_p95_ms`: of their unary calls in the flood;
`flood_requests`: how many the flood sent; `flood_refused`: how many of them were put off with a time to come again, and
`flood_pushed_back`: how many gRPC refused before any code of ours, because their connection was full;
`flood_failed`: requests of the others that were not answered.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from mesh.certificates import Identity
from mesh.wire import engine_pb2, mesh_pb2, mesh_pb2_grpc
from node import enrolment
from node.credentials import Credentials
from node.grpc_options import GRPC_OPTIONS
from node.handshake import identify
from node.paths import NodePaths
from scripts.benches import percentile, size
from scripts.daemons import Daemon, end_all
from scripts.throwaway import ThrowawayMesh

REQUESTS = 10_000
CONNECTIONS, AT_ONCE = 4, 512
OTHERS = 3
#: 400 words of prompt at 2,000 a second, and an answer of two words.
PACE, WORDS = 200.0, 398
PROMPT = "Yes. No. " + "word " * WORDS
PAUSE_S = 0.1
QUIET_S = 12.0
#: Least time in which others are measured, however soon the flood is over.
FLOOD_S_MIN = 12.0


@dataclass
class Seen:
    first_token_s: list[float] = field(default_factory=list)
    unary_s: list[float] = field(default_factory=list)
    failed: int = 0


def figures() -> dict[str, float]:
    return asyncio.run(_measured())


async def _measured() -> dict[str, float]:
    mesh = ThrowawayMesh()
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as name:
        folder = Path(name)
        options = ["--listen", "127.0.0.1:0", "--no-mdns", "--engine", "echo", "--slots", "4"]
        pace = {"KITH_ECHO_TOKENS_PER_S": f"{PACE}"}
        node = Daemon(folder / "node", options, name="node", mesh=mesh, environment=pace)
        node.start()
        try:
            status = await node.ready()
            others = [Credentials(mesh.enrol(folder / f"other{number}")) for number in range(OTHERS)]
            port = status.addresses[0].port
            there = (port, await identify(others[0], "127.0.0.1", port, 10.0))
            quiet = await _others(others, there, asyncio.create_task(asyncio.sleep(QUIET_S)))
            mesh.enrol(folder / "flood")
            code = "import sys; from scripts.benches._flood import flood; flood(*sys.argv[1:])"
            command = [sys.executable, "-c", code, str(folder / "flood"), str(port)]
            flooder = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            assert flooder.stdout is not None
            await flooder.stdout.readline()  # it begins
            began = time.monotonic()
            over = asyncio.create_task(flooder.communicate())
            flooded = await _others(others, there, over)
            took = time.monotonic() - began
            sent, refused, pushed_back = map(int, over.result()[0].split())
            await node.status()
        finally:
            wrong = end_all([node])
            assert not wrong, wrong
    quiet_p95, flooded_p95 = (percentile(seen.first_token_s, 95) for seen in (quiet, flooded))
    return {
        "flood_p95_ratio": round(flooded_p95 / quiet_p95, 3),
        "flood_unary_p95_ms": round(1000 * percentile(flooded.unary_s, 95), 2),
        "flood_requests": sent,
        "flood_refused": refused,
        "flood_pushed_back": pushed_back,
        "flood_failed": flooded.failed + quiet.failed,
        "flood_s": round(took, 1),
        "quiet_first_token_p95_ms": round(1000 * quiet_p95, 1),
        "flood_first_token_p95_ms": round(1000 * flooded_p95, 1),
        "quiet_unary_p95_ms": round(1000 * percentile(quiet.unary_s, 95), 2),
        "flood_others_generations": len(flooded.first_token_s),
    }


async def _others(others: Sequence[Credentials], there: tuple[int, Identity], until: "asyncio.Task[object]") -> Seen:
    """What the other members see until the task is done, and for a while at least."""
    seen = Seen()
    ends = time.monotonic() + min(QUIET_S, FLOOD_S_MIN)

    def goes_on() -> bool:
        return not until.done() or time.monotonic() < ends

    async def generations(stub: "mesh_pb2_grpc.MeshAsyncStub") -> None:
        call = mesh_pb2.GenerateCall(request=engine_pb2.GenerateRequest(prompt=PROMPT, max_tokens=2))
        while goes_on():
            began = time.perf_counter()
            first = True
            try:
                async for event in stub.Generate(
                    call, timeout=20
                ):  # to its end: a call that is left open takes a stream
                    if first and event.HasField("delta"):
                        seen.first_token_s.append(time.perf_counter() - began)
                        first = False
            except grpc.aio.AioRpcError:
                seen.failed += 1
            await asyncio.sleep(PAUSE_S)

    async def unary(stub: "mesh_pb2_grpc.MeshAsyncStub") -> None:
        call = engine_pb2.CountTokensRequest(texts=["how long is a piece of string?"])
        while goes_on():
            began = time.perf_counter()
            try:
                await stub.CountTokens(call, timeout=20)
                seen.unary_s.append(time.perf_counter() - began)
            except grpc.aio.AioRpcError:
                seen.failed += 1
            await asyncio.sleep(PAUSE_S)

    channels = [one.channel("127.0.0.1", *there, GRPC_OPTIONS) for one in others]
    try:
        stubs = [mesh_pb2_grpc.MeshStub(channel) for channel in channels]
        await asyncio.gather(until, *(work(stub) for stub in stubs for work in (generations, unary)))
    finally:
        for channel in channels:
            await channel.close()
    return seen


def flood(data_dir: str, port: str) -> None:
    """The other process: sends everything as fast as it can; prints a line when it begins, then how many were sent, how
    many refused, and how many refused by gRPC."""
    asyncio.run(_flood(Path(data_dir), int(port)))


async def _flood(data_dir: Path, port: int) -> None:
    enrolled = enrolment.load(NodePaths(data_dir))
    assert enrolled is not None
    credentials = Credentials(enrolled)
    there = await identify(credentials, "127.0.0.1", port, 10.0)
    channels = [credentials.channel("127.0.0.1", port, there, GRPC_OPTIONS) for _ in range(CONNECTIONS)]
    stubs = [mesh_pb2_grpc.MeshStub(channel) for channel in channels]
    for stub in stubs:
        await stub.CountTokens(engine_pb2.CountTokensRequest(), timeout=20)
    requests = size("requests", REQUESTS)
    left, refused, pushed_back = requests, 0, 0
    print("begins", flush=True)

    async def work(number: int) -> None:
        nonlocal left, refused, pushed_back
        stub = stubs[number % len(stubs)]
        generate = mesh_pb2.GenerateCall(request=engine_pb2.GenerateRequest(prompt=PROMPT, max_tokens=2, priority=99))
        while left > 0:
            left -= 1
            try:
                if left % 2:
                    async for _ in stub.Generate(generate, timeout=120):
                        pass
                else:
                    await stub.CountTokens(engine_pb2.CountTokensRequest(texts=["x"]), timeout=120)
            except grpc.aio.AioRpcError as error:
                refused += error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                pushed_back += error.code() is grpc.StatusCode.UNAVAILABLE

    await asyncio.gather(*(work(number) for number in range(AT_ONCE)))
    for channel in channels:
        await channel.close()
    print(requests, refused, pushed_back, flush=True)
