"""The node: everything put together, started in order and stopped in order.

    lock the data directory → mesh and key → journal → replica → local door → mesh port → mDNS → engine → profile
    stop: drain work → engine → goodbye to peers → doors → journal

A node in no mesh runs alone: it opens no mesh port, dials nobody and is told of to nobody.

The doors open before the engine is ready, so that a node with a large model is seen and answers `status` at once.

Does not: hold logic; each part has a file of its own.
"""

import asyncio
import contextlib
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import Sequence
from functools import partial

import grpc.aio

from mesh import effects, events
from mesh.authorisation import may_lead
from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.replica import Replica
from mesh.timing import PRESETS
from mesh.wire import (
    common_pb2,
    facts_pb2,
    local_pb2_grpc,
    membership_pb2,
    mesh_pb2,
    mesh_pb2_grpc,
)
from node import __version__, agent_load, clock, enrolment, logs
from node.addresses import target
from node.authors import Authors
from node.away import set_aside
from node.background import Background
from node.blob_sharing import BlobSharing
from node.blobs import Blobs
from node.config import NodeConfig
from node.counting import Counter, counter_of
from node.credentials import Credentials
from node.discovery import Discovery
from node.engine.process import EngineProcess
from node.engine_door import EngineDoor
from node.engines import FIRST, Engines, agent_profile, engine_config, memory_budget_bytes
from node.errors import KithError
from node.grpc_options import PORT_OPTIONS
from node.hellos import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN
from node.hosting import Hosting
from node.interfaces import Place, choose
from node.keys import load_or_make_key
from node.kv_moves import KvMoves
from node.leader import Leader
from node.limits import CALLS_MAX
from node.listening import Bound, Lock, address_of, bind, prepare_folders, require_loopback, where_to_listen
from node.local_service import LocalService
from node.mesh_service import MeshService
from node.models.peers import PeerModels
from node.models.sharing import ModelSharing
from node.paths import NodePaths
from node.peers import load_peers, save_peers
from node.plans import Plans
from node.roaming import Roaming
from node.router import Router
from node.shell import Shell
from node.snapshots import Snapshots
from node.solver_process import SolverProcess
from node.store import Store, disk_budget_bytes
from node.submissions import Submissions
from node.trust import Trust, trust_of
from node.worker import Worker

#: How often the load that probes carry is brought up to date, at a tick.
LOAD_EVERY_S = 0.25
#: How often the size of what is stored is measured.
DISK_EVERY_S = 10.0
#: How often a stopping node looks whether its tasks have ended.
DRAIN_LOOK_S = 0.02


class Daemon:
    """Implements `shell.Listener`."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.paths = NodePaths(config.data_dir)
        self.name = config.name or socket.gethostname()
        self.started_at = time.monotonic()
        self._bound: Bound | None = None
        self._roaming: Roaming | None = None
        self.trust: Trust | None = None  # None: in no mesh
        self.http_address = ""
        self.disk_used_bytes = 0
        self._stop = asyncio.Event()
        self._drain_s = 10.0
        self._fatal = ""
        self._changed = asyncio.Event()
        self._background = Background()
        self._profile = facts_pb2.NodeProfile()
        self._load_told_at = float("-inf")  # time.monotonic()

    # Life

    async def run(self) -> None:
        """Run until asked to stop. Raises `KithError` where the node can not start or its disk failed."""
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self.request_stop, 2.0)
            await self._stop.wait()
            logs.log("info", "stopping")
        logs.log("info", "stopped")
        if self._fatal:
            raise KithError("disk-failed", self._fatal, "Mend the disk or the folder, then start the node again.")

    def request_stop(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._stop.set()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        config = self.config
        choose(config.interfaces, where_to_listen(config.listen)[0])  # raises where one that was named is unknown
        prepare_folders(self.paths)
        stack.enter_context(Lock(self.paths))
        logs.set_up(self.paths.log, config.log_level, terminal=False)
        stack.callback(logs.tear_down)
        self.enrolment = enrolment.load(self.paths)
        self.credentials = Credentials(self.enrolment) if self.enrolment is not None else None
        key = self.enrolment.key if self.enrolment is not None else load_or_make_key(self.paths.key)
        incarnation = secrets.randbits(64)
        self.replica = Replica(
            key,
            incarnation,
            int(time.time()),
            random.Random(secrets.randbits(64)),
            slots=config.slots * (1 + len(config.more_models)),
            timing=PRESETS[config.network],
            may_lead=self.enrolment is None or may_lead(self.enrolment.identity.role),
        )
        if said := set_aside(self.paths.journal, time.time()):
            logs.log("warning", said)
        self.store = Store(self.paths.journal, self._disk_failed, disk_budget_bytes(config))
        stack.push_async_callback(self.store.close)
        with self.store.restoring():
            facts, term, voted_for = self.store.open(key.node_id)
            self.replica.restore(
                facts, term, voted_for, retired=self.store.retired, forks=self.store.forks, blobs=self.store.blob_refs()
            )
        logs.log("info", f"node {key.node_id} ({self.name}), kithmesh {__version__}, {self.store.facts_read} facts")

        self.engine = EngineProcess(engine_config(config), None, logs.say, self._engine_changed)
        self.engines = Engines(self.engine, memory_budget_bytes(config), self._further_changed)
        self.hosting = Hosting(config, self.engine, self.engines, self._background, self._further_changed)
        authors = Authors(self.enrolment.roots if self.enrolment is not None else None, self.store.certificates)
        self.shell = Shell(self.replica, self.store, self.hello, self, authors, self.credentials)
        if self.enrolment is not None:
            await self.shell.learn([self.enrolment.identity.certificate])
        links = self.shell.links
        self.blobs = Blobs(self.store, self.shell.post, links.stub, self.shell.live_peers)
        self.peer_models = PeerModels(links.stub)
        stack.callback(self.hosting.serving.close)
        self.plans = Plans(self.blobs)
        self.snapshots = Snapshots(self.replica, self.plans)
        if self.enrolment is not None:
            self.snapshots.restored(self.shell.authors.knows)
        self.solver = SolverProcess(logs.logger)
        self.worker = Worker(self.engine, self.blobs, self.shell.post, self.engines.of, lambda: self.engines.steps)
        self.leader = Leader(
            self.shell.post, self._counter, self.blobs, self.plans, self.solver, self.snapshots.name_of
        )
        self.engine_door = EngineDoor(self.engine, self.engines.of)
        self.kv = KvMoves(
            self.replica.me, self.engine_door, links.stub, lambda: self._profile, self.replica.profiles.of
        )
        self.router = Router(self.replica, self.engine_door, links, self.kv)
        self.submissions = Submissions(self.shell.post, self.replica, self.blobs)

        await self.hosting.find_named()
        doors = []
        if self.credentials is not None and self.shell.callers is not None:
            server = grpc.aio.server(
                options=PORT_OPTIONS, interceptors=[self.shell.callers], maximum_concurrent_rpcs=CALLS_MAX
            )
            mesh_pb2_grpc.add_MeshServicer_to_server(
                MeshService(
                    links,
                    self.engine_door,
                    BlobSharing(self.store),
                    lambda: trust_of(self),
                    kv=self.kv,
                    models=ModelSharing(lambda: self.hosting.serving.entries),
                ),
                server,
            )
            self._bound = bind(server, self.credentials.server(), config.listen, config.interfaces, self.paths)
            doors.append(server)
            self.trust = Trust(self, self.credentials.enrolment)
        else:
            require_loopback(config.listen)
        local = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
        local_pb2_grpc.add_LocalServicer_to_server(LocalService(self), local)
        local.add_insecure_port(self.paths.door)
        doors.append(local)
        for door in doors:
            await door.start()
            stack.push_async_callback(door.stop, 0.5)
        self.shell.start()
        stack.push_async_callback(self._stop_parts)
        if self.enrolment is not None:
            for host, port in load_peers(self.paths.peers):
                self.shell.post(events.AddressFound(host, port, "cache"))
            for host, port in map(address_of, config.seeds):
                self.shell.post(events.AddressFound(host, port, "seed"))
            self._discover(self.enrolment.mesh_id)
        if self.trust is not None:
            self._background.spawn(self.trust.renewal.run(), "renewal")
        self._background.spawn(self.hosting.bring_up(), "engine")
        self._background.spawn(self._measure_disk(), "disk")
        self._background.spawn(self.worker.watch_steps(), "steps")
        if config.http:
            from node.http.door import serve

            self.http_address = await stack.enter_async_context(serve(self, config.http))
        if self.enrolment is not None:
            mesh = f"mesh {self.enrolment.mesh_id} ({self.enrolment.label}), as {self.enrolment.identity.role}"
            logs.log("info", f"serving on {', '.join(target(*at) for at in self.addresses)}, {mesh}")
        else:
            unheard = "; --seed is not looked at" if config.seeds else ""
            logs.log("warning", f"in no mesh, so alone{unheard}: `kith init` makes one, `kith join` enters one")

    async def _stop_parts(self) -> None:
        """Everything above the doors, which are still open: peers hear the end of what runs, then the goodbye."""
        self.submissions.draining = True
        self.shell.post(events.Draining())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                while self.replica.work.intake.running:  # noqa: ASYNC110 - a machine tells nobody
                    await asyncio.sleep(DRAIN_LOOK_S)
        await self.worker.stop_all()
        await self.leader.close()
        await self._background.cancel()
        if self._roaming is not None:
            await self._roaming.stop()
        if self.trust is not None:
            await self.trust.door.close()
        await asyncio.gather(self.solver.stop(), self.engines.stop())
        self.submissions.close()
        await self.shell.stop()
        await self.blobs.close()

    def _disk_failed(self, text: str) -> None:
        logs.log("error", text)
        self._fatal = text
        self.request_stop(0.0)

    def _discover(self, mesh_id: str) -> None:
        if not self.config.mdns:
            return
        assert self._bound is not None, "only who listens is found"
        port = self._bound.port

        def found(host: str, port: int) -> None:
            self.shell.post(events.AddressFound(host, port, "mdns"))

        made = partial(Discovery, self.replica.me, port, on_found=found, log=logs.logger, mesh_id=mesh_id)
        self._roaming = Roaming(self.place, made, logs.logger)
        self._roaming.start()

    async def _measure_disk(self) -> None:
        budget = self.store.budget_bytes
        while True:
            with contextlib.suppress(KithError):  # a disk that fails or hangs is told of where something is written
                self.disk_used_bytes = await self.store.size_bytes()
                self.shell.post(events.DiskMeasured(self.disk_used_bytes, budget))
                self.replica.membership.load.disk_free_bytes = max(0, budget - self.disk_used_bytes)
                await self.store.note_seen(clock.wall_clock_ms())
            await asyncio.sleep(DISK_EVERY_S)

    def _engine_changed(self) -> None:
        logs.log("info", f"engine: {self.engine.state} {self.engine.problem}".rstrip())
        self.shell.post(events.EngineChanged(self.engine.state == "ready", self.engine.stalled))
        if self.engine.state in ("ready", "failed", "restarting"):
            self._background.spawn(self._publish_profile(), "profile")

    def _further_changed(self) -> None:
        if self.engine.state == "ready":
            self._background.spawn(self._publish_profile(), "profile")

    async def _publish_profile(self) -> None:
        """Tell the mesh what this node can do now; only when it differs from what was told."""
        profile = facts_pb2.NodeProfile(
            name=self.name,
            software_version=__version__,
            stores=True,
            cores=os.cpu_count() or 1,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        )
        if self.engine.state == "ready" and self.engine.loaded is not None:
            sha256 = self.hosting.serving.sha256_of(self.hosting.model_path)
            profile.agents.append(agent_profile(FIRST, self.config.engine, self.engine, sha256))
            for one in self.engines.further.values():
                if one.state == "ready":
                    sha256 = self.hosting.serving.sha256_of(one.path)
                    profile.agents.append(agent_profile(one.agent, self.config.engine, one, sha256))
        if profile != self._profile:
            self._profile = profile
            await self._tell_profile()

    async def _tell_profile(self) -> None:
        await self.shell.author("node_profile", self._profile)

    # What parts ask of the node

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where others find this node now."""
        return self._bound.addresses() if self._bound is not None else []

    def place(self) -> Place:
        """The networks this node is on now."""
        return self._bound.place() if self._bound is not None else ([], [])

    @property
    def mdns(self) -> bool:
        return self._roaming is not None and self._roaming.works

    @property
    def profile(self) -> facts_pb2.NodeProfile:
        """What was last told of this node; empty at first."""
        return self._profile

    def hello(self) -> membership_pb2.Hello:
        hello = membership_pb2.Hello(
            node_id=self.replica.me,
            incarnation=self.replica.incarnation,
            public_key=self.replica.key.public_key,
            protocol_version=PROTOCOL_VERSION,
            protocol_version_min=PROTOCOL_VERSION_MIN,
            life=self.replica.membership.life,
            name=self.name,
            software_version=__version__,
        )
        if self.enrolment is not None:
            hello.mesh_id = self.enrolment.mesh_id
            hello.certificate = self.enrolment.identity.certificate
        for host, port in self.addresses:
            hello.addresses.add(host=host, port=port)
        return hello

    def _counter(self) -> Counter:
        return counter_of(self.engines, self.replica, self.shell.links)

    def change(self) -> asyncio.Event:
        """An event that is set at the next change of any job."""
        return self._changed

    # shell.Listener

    def ticking(self) -> None:
        """Bring up to date what peers hear of this node beside what the machines know themselves."""
        if (now := time.monotonic()) - self._load_told_at < LOAD_EVERY_S:
            return
        self._load_told_at = now
        intake = self.replica.work.intake
        load = membership_pb2.NodeLoad()  # anew: a message that lives on keeps the room of all it ever held
        load.CopyFrom(self.replica.membership.load)
        load.ClearField("agents")
        load.slots_total = self.config.slots * (1 + len(self.config.more_models))
        load.slots_busy = max(len(intake.running), self.engines.slots_busy)
        load.agents.extend(agent_load.told(self.engines, self.engine_door, intake))
        self.replica.membership.tell(load)

    def delivered(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        if message.WhichOneof("message") == "job_progress":
            self.snapshots.progress_received(message.job_progress)
            self._job_changed()

    def carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.FetchBlob():
                self.blobs.fetch(effect)
            case effects.DropBlobs(sha256):
                self.blobs.drop(sha256)
            case effects.AnswerSubmit():
                self.submissions.answered(effect)
            case effects.StartTask():
                self.worker.start(effect)
            case effects.StopTask():
                self.worker.stop(effect)
            case effects.MakePlan():
                self.leader.make_plan(effect)
            case effects.ReadPlan():
                self.leader.read_plan(effect)
            case effects.Allocate():
                self.leader.allocate(effect)
            case effects.Assemble():
                self.leader.assemble(effect)
            case _:
                raise AssertionError(f"nobody carries out {type(effect).__name__}")

    def member_changed(self, node_id: NodeId, state: int) -> None:
        if state == membership_pb2.MEMBER_STATE_ALIVE:
            save_peers(self.paths.peers, self.replica)

    def leader_changed(self, token: common_pb2.FencingToken | None) -> None:
        if token is not None and token.leader_id == self.replica.me:
            # Warm before the first round; it stops by itself when it was idle for long enough.
            self._background.spawn(self.solver.start(), "solver")
        self._job_changed()

    def facts_applied(self, facts: Sequence[Fact]) -> None:
        told = bool(self._profile.name) and not self.replica.denied
        if not facts and told and self.replica.profiles.of(self.replica.me) != self._profile:
            # All was read anew, and what was told of this node is void: a stream of it was proven forked.
            self._background.spawn(self._tell_profile(), "profile")
        self._job_changed()

    def _job_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def run(config: NodeConfig) -> None:
    """Run one node until SIGTERM, SIGINT or `kith down`. Raises `KithError` where it can not start."""
    await Daemon(config).run()
