"""Security: what proving who calls costs, how soon a revoked node is cut off everywhere, and whether anybody gets in.

`handshakes_per_s`: TLS handshakes with a daemon, eight at a time, each until it has taken the caller's certificate.
`call_*_ms_p50`: one unary call after the other on open channels to a process that serves one handler three times: in
plain text, with mutual TLS, and with mutual TLS behind the checks of callers.py; the three take turns, and
`call_ratio` is the last by the first. `revoke_cutoff_s`: from the revocation on the issuer until every generation that
the revoked node's key holds open on each of the others has ended and none takes a call of it; the longest of two runs.
`unauthorised_accepted`: calls and facts of tests/security that got through, of `unauthorised_tried`. The parts `flood_`
and `fuzz_` are described in _flood.py and _fuzz.py; a million fuzzed inputs take about ten minutes
(`KITH_BENCH_FUZZ_INPUTS=20000` makes it seconds).
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from mesh.authorisation import RPCS
from mesh.certificates import Role
from mesh.identity import NodeId
from mesh.rate import Rate
from mesh.wire import engine_pb2, mesh_pb2, mesh_pb2_grpc
from node import handshake
from node.callers import Callers
from node.credentials import Credentials
from node.refused import Refused
from scripts.benches import _flood, _fuzz
from scripts.daemons import Daemon, end_all, formed
from scripts.throwaway import ThrowawayMesh
from tests.mesh.building import Author
from tests.security.attackers import METHODS, Answer, Attacker, Place
from tests.security.conftest import Besieged
from tests.security.test_calls import KINDS
from tests.security.test_facts import CASES, Scene, settled

HANDSHAKES, HANDSHAKES_AT_ONCE = 400, 8
ROUNDS, CALLS_A_ROUND = 12, 50
#: How many nodes are left when the last one was revoked.
NODES_LEFT = 5
REVOCATIONS = 2
#: Tokens a second of the echo engines: a generation lasts until it is cut.
PACE = 20.0


def figures() -> dict[str, float]:
    found = asyncio.run(_calls())
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as folder:
        found |= asyncio.run(_attacks(Path(folder)))
    found |= _flood.figures() | _fuzz.figures()
    found["revoke_cutoff_s"] = round(max(asyncio.run(_revocations())), 3)
    return found


# The cost of a call


class Counting(mesh_pb2_grpc.MeshServicer):  # one handler that does as good as nothing
    __abstractmethods__: frozenset[str] = frozenset()

    async def CountTokens(self, request: engine_pb2.CountTokensRequest, context: Any) -> engine_pb2.CountTokensReply:
        return engine_pb2.CountTokensReply(counts=[len(text) for text in request.texts])


async def serve(folder: str) -> None:
    """The other process: prints its three ports, and ends with its standard input."""
    from node import enrolment
    from node.paths import NodePaths

    enrolled = enrolment.load(NodePaths(Path(folder)))
    assert enrolled is not None
    credentials = Credentials(enrolled)
    callers = Callers(lambda: enrolled.roots, lambda _: False, Refused(lambda *_: None), calls=Rate(1e9, 1e9))
    servers, ports = [], []
    for secure, interceptors in ((False, []), (True, []), (True, [callers])):
        server = grpc.aio.server(interceptors=interceptors)
        mesh_pb2_grpc.add_MeshServicer_to_server(Counting(), server)  # type: ignore[abstract]
        at = "127.0.0.1:0"
        ports.append(server.add_secure_port(at, credentials.server()) if secure else server.add_insecure_port(at))
        await server.start()
        servers.append(server)
    print(*ports, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for server in servers:
        await server.stop(None)


async def _calls() -> dict[str, float]:
    mesh = ThrowawayMesh()
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as folder:
        there, here = (mesh.enrol(Path(folder) / name) for name in ("there", "here"))
        code = "import asyncio, sys; from scripts.benches.security import serve; asyncio.run(serve(sys.argv[1]))"
        command = [sys.executable, "-c", code, str(there.paths.data_dir)]
        pipe = asyncio.subprocess.PIPE
        other = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert other.stdin is not None
        assert other.stdout is not None
        try:
            plain, tls, checked = map(int, (await other.stdout.readline()).split())
            credentials = Credentials(here)
            channels = {
                "plain": grpc.aio.insecure_channel(f"127.0.0.1:{plain}"),
                "mtls": credentials.channel("127.0.0.1", tls, there.identity),
                "checked": credentials.channel("127.0.0.1", checked, there.identity),
            }
            try:
                took = await _in_turns(channels)
            finally:
                for channel in channels.values():
                    await channel.close()
        finally:
            other.stdin.close()
            await other.wait()
    p50 = {name: statistics.median(times) for name, times in took.items()}
    ratios = [checked / plain for plain, checked in zip(took["plain"], took["checked"], strict=True)]
    return {
        **{f"call_{name}_ms_p50": round(1000 * value, 3) for name, value in p50.items()},
        "call_mtls_ratio": round(p50["mtls"] / p50["plain"], 3),
        "call_ratio": round(statistics.median(ratios), 3),
        "calls": ROUNDS * CALLS_A_ROUND,
    }


async def _in_turns(channels: dict[str, grpc.aio.Channel]) -> dict[str, list[float]]:
    """Of each channel the mean seconds of a call, one value a round; the first round is not counted."""
    took: dict[str, list[float]] = {name: [] for name in channels}
    request = engine_pb2.CountTokensRequest(texts=["how long is a piece of string?"])
    for number in range(ROUNDS + 1):
        for name, channel in channels.items():
            stub = mesh_pb2_grpc.MeshStub(channel)
            began = time.perf_counter()
            for _ in range(CALLS_A_ROUND):
                await stub.CountTokens(request, timeout=10)
            if number:
                took[name].append((time.perf_counter() - began) / CALLS_A_ROUND)
    return took


# Handshakes, and who gets in


async def _attacks(folder: Path) -> dict[str, float]:
    besieged = Besieged(folder)
    try:
        issuer = besieged.start("issuer", Role.ISSUER)
        place = await Place.of(issuer, besieged.mesh.authority.ca_der)
        rate = await _handshakes(place, Credentials(besieged.mesh.enrol(folder / "knocker")))
        tried = accepted = 0
        for got_in in [*await _matrix(besieged, place), *await _facts(besieged, place)]:
            tried += 1
            accepted += got_in
        return {
            "handshakes_per_s": round(rate, 1),
            "unauthorised_accepted": accepted,
            "unauthorised_tried": tried,
        }
    finally:
        wrong = end_all(besieged.daemons)
        assert not wrong, wrong


async def _handshakes(place: Place, credentials: Credentials) -> float:
    context = credentials.context()

    async def one_after_the_other() -> None:
        for _ in range(HANDSHAKES // HANDSHAKES_AT_ONCE):
            seen = await handshake.look(context, place.host, place.port, 10.0)
            assert seen.accepted

    began = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(HANDSHAKES_AT_ONCE)))
    return HANDSHAKES / (time.perf_counter() - began)


async def _matrix(besieged: Besieged, place: Place) -> list[bool]:
    """Every RPC × callers that may not call it: whether each got through."""
    attackers = [(maker(besieged), rpc) for maker, _ in KINDS.values() for rpc in METHODS]
    for role in Role:
        enrolled = besieged.mesh.enrol(besieged.folder / f"as-{role}", role)
        attackers += [(Attacker(enrolled), rpc) for rpc in METHODS if role not in RPCS[rpc]]
    revoked = Attacker(besieged.mesh.enrol(besieged.folder / "revoked", Role.ISSUER))
    assert revoked.shown is not None
    async with revoked.link(place) as link:
        async with place.daemon.client() as client:
            await client.revoke(revoked.shown.key.node_id)
        await link.end()
    attackers += [(revoked, rpc) for rpc in METHODS]
    return [_got_in(await attacker.call(place, rpc)) for attacker, rpc in attackers]


def _got_in(answer: Answer) -> bool:
    refused = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE)
    return answer.answers > 0 or answer.code not in refused


async def _facts(besieged: Besieged, place: Place) -> list[bool]:
    """Facts that do not count, pushed by a member: whether any was kept."""
    shown = besieged.mesh.enrol(besieged.folder / "pusher", Role.NODE)
    scene = Scene(besieged, Attacker(shown), Author(shown.key, 1))
    got_in = []
    for case in CASES:
        made = case(scene)
        async with scene.attacker.link(place) as link:
            before = await settled(place)
            await link.push(made.facts, made.certificates)
            true = scene.own.note("a true word")
            await link.push([true.signed])
            await link.held(true)
            got_in.append(await place.facts() != before + 1)
    return got_in


# From the revocation to the cut


async def _revocations() -> list[float]:
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as folder:
        besieged = Besieged(Path(folder))
        try:
            issuer = besieged.start("issuer", Role.ISSUER, pace=PACE)
            first = await Place.of(issuer, besieged.mesh.authority.ca_der)
            seed = ["--seed", f"{first.host}:{first.port}"]
            for number in range(NODES_LEFT + REVOCATIONS - 1):
                besieged.start(f"node{number}", Role.NODE, *seed, pace=PACE)
            left = list(besieged.daemons)
            await formed(left, 90)
            took = []
            for _ in range(REVOCATIONS):
                out = left.pop()
                took.append(await _revoked(besieged, issuer, out, left))
                await formed(left, 30)
            return took
        finally:
            wrong = end_all(besieged.daemons)
            assert not wrong, wrong


async def _revoked(besieged: Besieged, issuer: Daemon, out: Daemon, left: Sequence[Daemon]) -> float:
    """Seconds from the revocation of `out` until nobody of `left` does anything for its key."""
    thief = Attacker(besieged.mesh.enrol(out.data_dir))
    assert thief.shown is not None
    node_id: NodeId = thief.shown.key.node_id
    places = [await Place.of(one, besieged.mesh.authority.ca_der) for one in left]
    async with _streams(thief, places) as ends:
        began = time.monotonic()
        async with issuer.client() as client:
            await client.revoke(node_id, "a bench")
        last = max(await asyncio.gather(*ends))
    answers = [await thief.call(place, "CountTokens") for place in places]
    assert all(answer.code is grpc.StatusCode.PERMISSION_DENIED for answer in answers)
    return last - began


@asynccontextmanager
async def _streams(thief: Attacker, places: Sequence[Place]) -> AsyncIterator[list["asyncio.Task[float]"]]:
    """A generation open on each of these; tasks that give the time at which each ends."""
    began = [asyncio.Event() for _ in places]

    async def hold(place: Place, event: asyncio.Event) -> float:
        request = engine_pb2.GenerateRequest(prompt="word " * 30, max_tokens=8000)
        async with thief.channel(place) as channel:
            call = mesh_pb2_grpc.MeshStub(channel).Generate(mesh_pb2.GenerateCall(request=request), timeout=120)
            try:
                async for _ in call:
                    event.set()
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                    return time.monotonic()
        raise AssertionError("a generation ended, and not because its caller was cut off")

    tasks = [asyncio.create_task(hold(place, event)) for place, event in zip(places, began, strict=True)]
    try:
        async with asyncio.timeout(30):
            await asyncio.gather(*(event.wait() for event in began))
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
