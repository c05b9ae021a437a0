"""Every RPC of the mesh service × callers that may not: refused, why is in the node's log, and not in the answer."""

import asyncio
from collections.abc import Callable

import grpc
import pytest

from mesh.authorisation import RPCS
from mesh.certificates import Role
from mesh.wire import engine_pb2, membership_pb2, mesh_pb2
from node.hellos import PROTOCOL_VERSION
from tests.security.attackers import METHODS, REQUESTS, WITHIN_S, Answer, Attacker, Place
from tests.security.conftest import Besieged

DAY_S = 86_400.0
#: What no answer may say, in any case of letters.
REASONS = ("certificate", "expired", "revoked", "denied", "valid", "mesh", "worker", "client", "node", "label")
#: gRPC's own words for the class of a failure, which say nothing of the reason.
CLASSES = ("permission_denied", "invalid_argument")

KINDS: dict[str, tuple[Callable[[Besieged], Attacker], str]] = {
    "no-certificate": (lambda _: Attacker(None), "no certificate was shown"),
    "other-mesh": (
        lambda at: Attacker(at.other_mesh.enrol(at.folder / "other", Role.ISSUER)),
        "the certificate is not of this mesh",
    ),
    "expired": (
        lambda at: Attacker(at.mesh.enrol(at.folder / "expired", Role.ISSUER, starts_s=-9 * DAY_S, days=3)),
        "the certificate has expired",
    ),
    "not-yet-valid": (
        lambda at: Attacker(at.mesh.enrol(at.folder / "future", Role.ISSUER, starts_s=9 * DAY_S)),
        "the certificate is not valid yet",
    ),
}


def says_no_reason(answer: Answer) -> bool:
    words = answer.words.lower()
    for named in CLASSES:
        words = words.replace(named, "")
    return not any(reason in words for reason in REASONS)


def test_every_rpc_has_a_row() -> None:
    assert REQUESTS.keys() == set(METHODS) == RPCS.keys()


@pytest.mark.parametrize("rpc", sorted(METHODS))
@pytest.mark.parametrize("kind", KINDS)
async def test_who_is_no_member_gets_no_further_than_tls(besieged: Besieged, place: Place, kind: str, rpc: str) -> None:
    attacker, reason = KINDS[kind]
    answer = await (await asyncio.to_thread(attacker, besieged)).call(place, rpc)
    assert (answer.code, answer.answers) == (grpc.StatusCode.UNAVAILABLE, 0)
    assert says_no_reason(answer), answer.words
    await place.logs(reason)


@pytest.fixture(scope="module")
def revoked(besieged: Besieged, place: Place) -> Attacker:
    """A member that was linked, and then cut off."""
    attacker = Attacker(besieged.mesh.enrol(besieged.folder / "revoked", Role.ISSUER))
    assert attacker.shown is not None

    async def cut_off(node_id: str) -> None:
        async with attacker.link(place) as link:
            async with place.daemon.client() as client:
                await client.revoke(node_id, "a secret reason")
            await link.end()

    asyncio.run(cut_off(attacker.shown.key.node_id))
    return attacker


async def refused(attacker: Attacker, place: Place, rpc: str) -> Answer:
    """What a call that is refused hears. gRPC may reset a link's stream before its status is read, while the caller is
    still writing; such a call is made again."""
    answer = await attacker.call(place, rpc)
    if rpc == "Link" and answer.code is grpc.StatusCode.INTERNAL:
        assert answer.answers == 0
        answer = await attacker.call(place, rpc)
    return answer


@pytest.mark.parametrize("rpc", sorted(METHODS))
async def test_a_revoked_member_is_refused_everything(place: Place, revoked: Attacker, rpc: str) -> None:
    answer = await refused(revoked, place, rpc)
    assert (answer.code, answer.answers) == (grpc.StatusCode.PERMISSION_DENIED, 0)
    assert says_no_reason(answer), answer.words
    assert "secret reason" not in answer.words
    assert revoked.shown is not None
    await place.logs(f"refused {rpc} of", f"{revoked.shown.key.node_id} is denied")


@pytest.mark.parametrize(
    ("rpc", "role"), [(rpc, role) for rpc in sorted(METHODS) for role in Role if role not in RPCS[rpc]]
)
async def test_a_role_that_may_not_is_refused(besieged: Besieged, place: Place, rpc: str, role: Role) -> None:
    shown = await asyncio.to_thread(besieged.mesh.enrol, besieged.folder / f"as-{role}", role)
    answer = await refused(Attacker(shown), place, rpc)
    assert (answer.code, answer.answers) == (grpc.StatusCode.PERMISSION_DENIED, 0)
    assert says_no_reason(answer), answer.words
    await place.logs(f"refused {rpc} of", f"{shown.key.node_id} is a {role}")


async def test_a_hello_in_anothers_name_opens_no_link(besieged: Besieged, place: Place) -> None:
    member, victim = [
        await asyncio.to_thread(besieged.mesh.enrol, besieged.folder / name) for name in ("liar", "victim")
    ]
    hello = membership_pb2.Hello(
        node_id=victim.key.node_id,
        incarnation=1,
        public_key=victim.key.public_key,
        protocol_version=PROTOCOL_VERSION,
        protocol_version_min=PROTOCOL_VERSION,
        certificate=victim.identity.certificate,
    )
    answer = await Attacker(member).call(place, "Link", mesh_pb2.LinkMessage(hello=hello))
    assert (answer.code, answer.answers) == (grpc.StatusCode.INVALID_ARGUMENT, 0)
    assert says_no_reason(answer), answer.words
    await place.logs(f"{member.key.node_id} can not be linked with", "names another node than its certificate")


def test_the_calls_without_a_wrong_role_are_these() -> None:
    """Whatever is open to every member is so on purpose: asking for text, and having one's own certificate renewed."""
    assert {rpc for rpc in METHODS if RPCS[rpc] == set(Role)} == {"Generate", "Score", "CountTokens", "Embed", "Renew"}


@pytest.mark.parametrize("rpc", sorted(METHODS))
async def test_a_member_in_the_right_role_is_not(besieged: Besieged, place: Place, rpc: str) -> None:
    """Without it, the others could pass because nothing ever works."""
    shown = await asyncio.to_thread(besieged.mesh.enrol, besieged.folder / "member", Role.ISSUER)
    answer = await Attacker(shown).call(place, rpc)
    assert answer.code not in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE), answer.words


async def test_plain_text_gets_no_answer(place: Place) -> None:
    reader, writer = await asyncio.open_connection(place.host, place.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
    async with asyncio.timeout(WITHIN_S):
        said = await reader.read(1000)
    writer.close()
    assert b"kith" not in said
    await place.logs("it was no TLS")


async def test_a_member_that_asks_for_renewal_again_and_again_is_told_of_once(besieged: Besieged, place: Place) -> None:
    shown = await asyncio.to_thread(besieged.mesh.enrol, besieged.folder / "insistent", Role.NODE)
    for _ in range(5):
        assert (await Attacker(shown).call(place, "Renew")).answers == 1
    assert place.log().count(f"the certificate of {shown.key.node_id} was renewed") == 1


@pytest.mark.parametrize("rpc", ["Generate", "Embed"])
async def test_a_large_request_that_is_refused_before_it_is_read_hears_so(
    place: Place, revoked: Attacker, rpc: str
) -> None:
    """The answer comes while megabytes are still under way: a caller that heard of a broken stream would try again."""
    requests = {
        "Generate": mesh_pb2.GenerateCall(request=engine_pb2.GenerateRequest(prompt="x" * (3 << 20))),
        "Embed": mesh_pb2.EmbedCall(request=engine_pb2.EmbedRequest(texts=["x" * (3 << 20)])),
    }
    heard = [(await revoked.call(place, rpc, requests[rpc])).code for _ in range(20)]
    assert heard == [grpc.StatusCode.PERMISSION_DENIED] * 20
