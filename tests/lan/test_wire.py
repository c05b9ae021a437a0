"""What somebody on the same switch can read of a mesh: a join, gossip, a job and a dialogue, captured and searched."""

import asyncio
import re
import socket
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from zeroconf._dns import DNSService, DNSText
from zeroconf._protocol.incoming import DNSIncoming

from mesh.certificates import Role, tls_name_of
from mesh.facts import STREAM_OF_KIND
from mesh.wire import engine_pb2, facts_pb2, local_pb2, work_pb2
from node import enrolment
from node.paths import NodePaths
from scripts.daemons import Daemon, formed, until
from scripts.lan_hosts import Lan
from tests.lan import tshark
from tests.lan.capturing import MDNS_PORT, Capture, capturing
from tests.lan.conftest import LanFactory
from tests.lan.test_joining import kith

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(240)]

LABEL = "Attic of the heron family"
NAMES = ["heron-founder", "heron-laptop", "heron-studio"]
TITLE, TEXT = "Recipe of the quince jam", "Boil the quinces until the marmoset sings"
QUESTION = "Where does grandmother keep the tourmaline brooch?"
PROMPT = "Describe the velociraptor in the greenhouse"
#: Sent in clear through the same switch: what is not found of it would not be found of the others either.
CONTROL = b"this datagram is in clear"
#: Names and texts that mDNS may show.
MDNS_NAMES = re.compile(r"(kith-[0-9a-f]{8}\.local\.)|(([0-9a-f]{8}\.)?_kith(-join)?\._tcp\.local\.)")
MDNS_TEXTS = {
    "_kith": {"txtvers": r"1", "v": r"\d+", "m": r"[0-9a-f]{8}"},
    "_kith-join": {"txtvers": r"1", "v": r"1", "t": r"[0-9a-z]+", "n": r"\d+"},
}


async def lived(nodes: list[Daemon]) -> list[bytes]:
    """A piece of knowledge, a question and a dialogue; the ids that come of them."""
    founder, laptop, studio = nodes
    async with laptop.client() as client:
        item = await client.add_knowledge(facts_pb2.KnowledgeAdded(title=TITLE, text=TEXT))
        asked = work_pb2.JobRequest(ask=work_pb2.AskRequest(question=QUESTION, panel=3), seed=5)
        job = (await client.submit(asked)).job_id
        async with asyncio.timeout(60):
            ended = [one async for one in client.watch(job)][-1]
        assert ended.state != local_pb2.JOB_STATE_OPEN
        words = [engine_pb2.ChatMessage(role="user", content=PROMPT)]
        request = engine_pb2.GenerateRequest(messages=words, max_tokens=64)
        said = ""
        async for event in client.chat(local_pb2.ChatRequest(request=request, node=founder.name)):
            said += event.generate.delta.text
    assert "velociraptor" in said, "the answer must hold what is searched for"

    async def known() -> bool:
        async with studio.client() as client:
            return any(hit.title == TITLE for hit in await client.search_knowledge("quince"))

    await until(known, 20, "gossip has brought the knowledge to the third")
    return [item, job]


def send_in_clear(source: Daemon, host: str) -> None:
    code = "import socket, sys; socket.socket(2, 2).sendto(sys.argv[2].encode(), (sys.argv[1], 5402))"
    command = [*source.prefix, sys.executable, "-c", code, host, CONTROL.decode()]
    subprocess.run(command, check=True, timeout=20)


def secrets_of(nodes: list[Daemon], code: str, token: str, ids: list[bytes]) -> dict[str, bytes]:
    """What nobody on the wire may read, by what it is."""
    found = {
        "mesh label": LABEL,
        "name of the mesh's family": "heron",
        "knowledge": "quince",
        "text": "marmoset",
        "question": "tourmaline",
        "prompt": "velociraptor",
        "model": "echo (no model)",
        "software": "kithmesh",
        "code": code,
        "words of the code": code.partition("-")[2],
        "token": token,
        "secret of the token": token[-20:],
        **{f"kind {kind}": kind for kind in STREAM_OF_KIND},
    }
    if len(socket.gethostname()) >= 6:
        found["host name"] = socket.gethostname()
    raw = {name: text.encode() for name, text in found.items()}
    for number, value in enumerate(ids):
        raw |= {f"id {number}": value, f"id {number} in hex": value.hex().encode()}
    for node in nodes:
        enrolled = enrolment.load(NodePaths(node.data_dir))
        assert enrolled is not None
        raw["mesh id"] = enrolled.mesh_id.encode()
        raw["mesh id, raw"] = bytes.fromhex(enrolled.mesh_id)
        raw[f"key of {node.name}"] = enrolled.key.public_key
        raw[f"x of the key of {node.name}"] = enrolled.key.public_key[1:]
        raw[f"certificate of {node.name}"] = enrolled.identity.certificate[-40:]
        node_id = enrolled.key.node_id
        raw[f"id of {node.name}"] = node_id.encode()
        raw[f"id of {node.name}, raw"] = bytes.fromhex(node_id)
        raw[f"beginning of the id of {node.name}, raw"] = bytes.fromhex(node_id)[:12]
        raw[f"id of {node.name} as an address"] = tls_name_of(node_id).encode()
    return raw


@dataclass
class Story:
    """What happened while the switch was watched, as far as nobody may know it."""

    nodes: list[Daemon]
    code: str
    token: str
    ids: list[bytes]

    def secrets(self) -> dict[str, bytes]:
        return secrets_of(self.nodes, self.code, self.token, self.ids)


async def happened(lan: Lan, watched: AbstractContextManager[object]) -> Story:
    """A mesh is founded, joined by an invite, and lived in."""
    assert lan.mesh is not None
    lan.mesh.label = LABEL
    nodes = list(lan.daemons.values())
    for node, name in zip(nodes, NAMES, strict=True):
        node.name = name
    founder, laptop, studio = nodes
    lan.mesh.enrol(founder.data_dir, Role.ISSUER)
    laptop.mesh = None  # comes in by the door
    with watched:
        founder.start()
        await founder.ready()
        shown = await asyncio.to_thread(kith, founder, "invite", "--no-wait", "--uses", "2")
        [code] = re.findall(r"kith join (\d\S+)", shown)
        [token] = re.findall(r"kith join ([^\d\s]\S{20,})", shown)
        await asyncio.to_thread(kith, laptop, "join", code)
        laptop.start()
        studio.start()
        lan.save()
        await formed(nodes)
        await asyncio.gather(*(node.ready() for node in nodes))
        ids = await lived(nodes)
        await asyncio.to_thread(send_in_clear, founder, lan.network.ipv4("h2"))
    return Story(nodes, code, token, ids)


async def test_nothing_can_be_read_of_a_join_and_of_gossip(lan_of: LanFactory, tmp_path: Path) -> None:
    lan = lan_of(3, start=False)
    capture = Capture()
    story = await happened(lan, capturing(lan.network, tmp_path / "frames", capture))
    assert capture.dropped == 0
    assert capture.places_of(CONTROL), "the capture sees what is in clear"
    assert sum(map(len, capture.streams().values())) > 20_000
    readable = {what: places[:3] for what, needle in story.secrets().items() if (places := capture.places_of(needle))}
    assert not readable
    assert_mdns_says_no_more_than_it_should(capture)


async def test_tshark_reads_nothing_of_a_join_and_of_gossip(lan_of: LanFactory, tmp_path: Path) -> None:
    """The same, by the tool that somebody on the switch would use, which tries every protocol that it knows."""
    if reason := tshark.why_not():
        pytest.skip(reason)
    lan = lan_of(3, start=False)
    file = tmp_path / "frames.pcapng"
    story = await happened(lan, tshark.recording(lan.network, file, CONTROL))
    text = await asyncio.to_thread(tshark.decoded, file)
    assert tshark.places_of(text, CONTROL), "tshark sees what is in clear"
    readable = {
        what: places[:3] for what, needle in story.secrets().items() if (places := tshark.places_of(text, needle))
    }
    assert not readable
    # Every TCP segment with content is TLS 1.3, or a piece of a record that ends in a later one.
    carried = tshark.fields(file, "tcp.len", "frame.protocols", only="tcp.len > 0")
    assert sum(int(length) for length, _ in carried) > 20_000
    spoken = {protocols.partition(":tcp")[2] for _, protocols in carried}
    assert spoken <= {"", ":tls"}, spoken
    assert ":tls" in spoken
    hellos = tshark.fields(file, "tls.handshake.extensions_server_name", only="tls.handshake.type == 1")
    assert len(hellos) >= 4
    assert all(name == "" for [name] in hellos), "somebody is asked for by name"
    assert tshark.fields(file, "tls.handshake.extensions.supported_version", only="tls.handshake.type == 2")
    assert not tshark.fields(file, "tls.handshake.certificate")


def assert_mdns_says_no_more_than_it_should(capture: Capture) -> None:
    seen = set()
    packets = {payload for payload in capture.datagrams(MDNS_PORT)}
    for payload in packets:
        said = DNSIncoming(payload)
        assert said.valid
        for name in [question.name for question in said.questions] + [answer.name for answer in said.answers()]:
            assert MDNS_NAMES.fullmatch(name), name
        for answer in said.answers():
            if isinstance(answer, DNSService):
                assert re.fullmatch(r"kith-[0-9a-f]{8}\.local\.", answer.server), answer.server
            elif isinstance(answer, DNSText):
                service = answer.name.split(".")[1]
                seen.add(service)
                for key, value in texts_of(answer.text).items():
                    assert re.fullmatch(MDNS_TEXTS[service][key], value), (service, key, value)
    assert seen == set(MDNS_TEXTS)


def texts_of(text: bytes) -> dict[str, str]:
    """Of a TXT record: strings with their length before them (RFC 6763, section 6)."""
    found = {}
    while text:
        length = text[0]
        key, _, value = text[1 : 1 + length].decode().partition("=")
        found[key] = value
        text = text[1 + length :]
    return found
