"""Facts that do not count, pushed by a member on a real link: none is kept, why is logged, and nothing is answered.

After each one the attacker says something true of its own on the same link. That this is kept shows that what came
before it was read, and that a node that refuses goes on.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mesh.authorisation import FACTS
from mesh.certificates import Role
from mesh.facts import STREAM_OF_KIND, Fact, make, parse
from mesh.identity import NodeKey
from mesh.wire import facts_pb2, mesh_pb2
from node.keys import new_private_key
from node.refused import LINES_OF_ONE
from tests.mesh.building import Author
from tests.security.attackers import Attacker, Place
from tests.security.conftest import Besieged

#: Words of every reason below.
REASONS = (b"signature", b"certificate", b"dropped", b"authors no", b"CA did not sign", b"no fact")


@dataclass
class Case:
    """What is pushed, beside which certificates, and what the log says of it."""

    facts: list[facts_pb2.SignedFact]
    reason: str
    certificates: tuple[bytes, ...] = ()


@dataclass
class Scene:
    besieged: Besieged
    attacker: Attacker
    own: Author

    def member(self, role: Role = Role.NODE) -> tuple[NodeKey, bytes]:
        """Another member, of which the attacker has the certificate; the key only to make what it once said."""
        key = NodeKey(new_private_key())
        return key, self.besieged.mesh.certificate(key.public_key, role)


def signed_by(fact: Fact, key: NodeKey) -> facts_pb2.SignedFact:
    return facts_pb2.SignedFact(body=fact.signed.body, signature=key.sign(fact.signed.body))


def forged_author(scene: Scene) -> Case:
    victim, certificate = scene.member()
    assert scene.attacker.shown is not None
    body = Author(victim, 1).note("I never said that")
    return Case([signed_by(body, scene.attacker.shown.key)], f"{victim.node_id} with a false signature", (certificate,))


def tampered(scene: Scene) -> Case:
    victim, certificate = scene.member()
    true = Author(victim, 1).note("pay 10")
    body = true.signed.body.replace(b"pay 10", b"pay 99")
    assert body != true.signed.body
    changed = facts_pb2.SignedFact(body=body, signature=true.signed.signature)
    return Case([changed], f"{victim.node_id} with a false signature", (certificate,))


def signature_of_another_fact(scene: Scene) -> Case:
    victim, certificate = scene.member()
    one, other = Author(victim, 1).note("one"), Author(victim, 2).note("other")
    mixed = facts_pb2.SignedFact(body=one.signed.body, signature=other.signed.signature)
    return Case([mixed], f"{victim.node_id} with a false signature", (certificate,))


def unknown_author(scene: Scene) -> Case:
    stranger = NodeKey(new_private_key())
    return Case(
        [Author(stranger).note("from nowhere").signed], f"{stranger.node_id} are dropped: it has no certificate"
    )


def author_of_another_mesh(scene: Scene) -> Case:
    stranger = NodeKey(new_private_key())
    certificate = scene.besieged.other_mesh.certificate(stranger.public_key, Role.ISSUER)
    fact = Author(stranger).note("from elsewhere").signed
    return Case([fact], f"{stranger.node_id} are dropped: it has no certificate", (certificate,))


def worker_teaches(scene: Scene) -> Case:
    worker, certificate = scene.member(Role.WORKER)
    fact = Author(worker).note("a worker teaches").signed
    return Case([fact], f"{worker.node_id} are dropped: a worker authors no knowledge_added", (certificate,))


def client_says_something(scene: Scene) -> Case:
    client, certificate = scene.member(Role.CLIENT)
    fact = Author(client).say("node_profile", facts_pb2.NodeProfile(name="client")).signed
    return Case([fact], f"{client.node_id} are dropped: a client authors no node_profile", (certificate,))


def denial_without_the_ca(scene: Scene) -> Case:
    assert scene.attacker.shown is not None
    me = scene.attacker.shown.key
    deny = facts_pb2.Deny(node_id="0" * 32, epoch=9, signature=me.sign(b"kith-deny-v1\0"))
    fact = make(me, secrets.randbits(60), 1, b"", 0, "deny", deny)
    return Case([fact.signed], f"a denial by {me.node_id} that the mesh's CA did not sign")


def denial_of_another_mesh(scene: Scene) -> Case:
    assert scene.attacker.shown is not None
    me = scene.attacker.shown.key
    deny = scene.besieged.other_mesh.authority.sign_denial(facts_pb2.Deny(node_id="1" * 32, epoch=9))
    fact = make(me, secrets.randbits(60), 1, b"", 0, "deny", deny)
    return Case([fact.signed], f"a denial by {me.node_id} that the mesh's CA did not sign")


def noise(_: Scene) -> Case:
    return Case([facts_pb2.SignedFact(body=b"\xff" * 40, signature=bytes(64))], "pushed what is no fact")


CASES: list[Callable[[Scene], Case]] = [
    forged_author,
    tampered,
    signature_of_another_fact,
    unknown_author,
    author_of_another_mesh,
    worker_teaches,
    client_says_something,
    denial_without_the_ca,
    denial_of_another_mesh,
    noise,
]


@pytest.fixture(scope="module")
def scene(besieged: Besieged, place: Place) -> Scene:
    shown = besieged.mesh.enrol(besieged.folder / "attacker", Role.NODE)
    return Scene(besieged, Attacker(shown), Author(shown.key, secrets.randbits(60)))


def words_heard(heard: list[bytes]) -> list[bytes]:
    return [reason for reason in REASONS for message in heard if reason in message]


@pytest.mark.parametrize("case", CASES)
async def test_what_does_not_count_is_not_kept(scene: Scene, place: Place, case: Callable[[Scene], Case]) -> None:
    made = case(scene)
    async with scene.attacker.link(place) as link:
        before = await settled(place)
        await link.push(made.facts, made.certificates)
        true = scene.own.note("a true word")
        await link.push([true.signed])
        await link.held(true)
        assert await place.facts() == before + 1
        assert not words_heard([message.SerializeToString() for message in link.heard])
    await place.logs(made.reason)


async def test_a_made_up_proof_of_two_histories_silences_nobody(scene: Scene, place: Place) -> None:
    """Whoever could prove that another wrote two histories would end all that it says."""
    victim, certificate = scene.member()
    author = Author(victim, 1)
    true, invented = author.note("the true first"), Author(victim, 1).note("an invented first")
    assert scene.attacker.shown is not None
    forged = signed_by(invented, scene.attacker.shown.key)
    async with scene.attacker.link(place) as link:
        await link.push([true.signed], [certificate])
        await link.held(true)
        for one, other in ((true.signed, forged), (forged, forged), (true.signed, true.signed)):
            proof = facts_pb2.ForkProof(one=one, other=other)
            await link.say(mesh_pb2.LinkMessage(fork_proof=proof))
        later = author.note("the second")
        await link.push([later.signed])
        await link.held(later)
        assert not words_heard([message.SerializeToString() for message in link.heard])
    await place.logs(f"{victim.node_id} with a false signature")


async def settled(place: Place) -> int:
    """How many facts there are once the node has told of itself."""
    async with asyncio.timeout(15):
        while not (count := await place.facts()):  # noqa: ASYNC110  # its profile comes a moment after the engine
            await asyncio.sleep(0.02)
        return count


async def test_a_replayed_fact_counts_once(scene: Scene, place: Place) -> None:
    async with scene.attacker.link(place) as link:
        await settled(place)
        fact = scene.own.note("said once")
        await link.push([fact.signed])
        await link.held(fact)
        count = await place.facts()
        for _ in range(3):
            await link.push([fact.signed, fact.signed])
        after = scene.own.note("after it")
        await link.push([after.signed])
        await link.held(after)
        assert await place.facts() == count + 1
    async with place.daemon.client() as client:
        hits = [hit for hit in await client.search_knowledge("said once") if hit.title == "said once"]
    assert len(hits) == 1
    replayed = [line for line in place.log().splitlines() if f"fact {fact.sequence} of {fact.author}" in line]
    assert len(replayed) == 6
    assert all("DEBUG" in line and "is held already" in line for line in replayed)


async def test_a_fact_said_twice_in_one_push_is_said_to_be_held_already(scene: Scene, place: Place) -> None:
    async with scene.attacker.link(place) as link:
        fact = scene.own.note("twice in a breath")
        await link.push([fact.signed, fact.signed])
        await link.held(fact)
    await place.logs(f"fact {fact.sequence} of {fact.author}", "is held already")


async def test_a_flood_of_refused_facts_leaves_room_in_the_log(besieged: Besieged) -> None:
    """Each is signed by a key that nobody knows: a thousand different reasons, of one member."""
    daemon = await asyncio.to_thread(besieged.start, "flooded", Role.NODE)
    flooded = await Place.of(daemon, besieged.mesh.authority.ca_der)
    shown = await asyncio.to_thread(besieged.mesh.enrol, besieged.folder / "flooder", Role.NODE)
    own = Author(shown.key, 1)
    strangers = [Author(NodeKey(new_private_key())).note("from nowhere").signed for _ in range(300)]
    async with Attacker(shown).link(flooded) as link:
        for start in range(0, len(strangers), 10):
            await link.push(strangers[start : start + 10])
        true = own.note("a true word")
        await link.push([true.signed])
        await link.held(true)
    await asyncio.to_thread(daemon.end)  # which says what was counted until then
    lines = flooded.log().splitlines()
    assert sum("are dropped: it has no certificate" in line for line in lines) == LINES_OF_ONE
    (told,) = [line for line in lines if f"more refused from {shown.key.node_id}" in line]
    assert f"and {len(strangers) - LINES_OF_ONE} more" in told


async def test_a_fact_can_not_be_moved_to_another_place(scene: Scene, place: Place) -> None:
    """Sequence, stream and life are in the signed body, so a fact is only ever the one that its author made."""
    fact = scene.own.note("here and nowhere else")
    body = facts_pb2.FactBody.FromString(fact.signed.body)
    for moved in ({"sequence": fact.sequence + 1}, {"incarnation": 77}, {"hybrid_clock": 1 << 60}):
        changed = facts_pb2.FactBody()
        changed.CopyFrom(body)
        for name, value in moved.items():
            setattr(changed, name, value)
        raw = changed.SerializeToString(deterministic=True)
        assert raw != fact.signed.body
        assert not parse(facts_pb2.SignedFact(body=raw, signature=fact.signed.signature)).is_signed_by_author()
    async with scene.attacker.link(place) as link:
        await link.push([fact.signed])
        await link.held(fact)


async def test_a_revoked_authors_later_facts_count_for_nobody(scene: Scene, place: Place) -> None:
    """What it said before stays; what it says, or dates back, after is dropped whoever brings it."""
    besieged = scene.besieged
    shown = await asyncio.to_thread(besieged.mesh.enrol, besieged.folder / "stolen", Role.NODE)
    thief = Author(shown.key, 1)
    said = thief.note("said before the theft")
    later, backdated = thief.note("said after it"), Author(shown.key, 2).note("said in an invented life")
    async with Attacker(shown).link(place) as link:
        await link.push([said.signed])
        await link.held(said)
    async with place.daemon.client() as client:
        await client.revoke(shown.key.node_id)
    async with scene.attacker.link(place) as link:
        count = await place.facts()
        await link.push([later.signed, backdated.signed], [shown.identity.certificate])
        true = scene.own.note("another true word")
        await link.push([true.signed])
        await link.held(true)
        assert await place.facts() == count + 1
    async with place.daemon.client() as client:
        titles = {hit.title for hit in await client.search_knowledge("said")}
    await place.logs(f"a fact of {shown.key.node_id} that does not count: its author was revoked")
    assert "said before the theft" in titles
    assert not titles & {"said after it", "said in an invented life"}


def test_every_kind_of_fact_is_judged_by_role() -> None:
    """No kind is open to all by accident: a client authors nothing, and what is in no row is refused."""
    assert FACTS.keys() == STREAM_OF_KIND.keys() | {""}
    assert all(Role.CLIENT not in roles for roles in FACTS.values())
