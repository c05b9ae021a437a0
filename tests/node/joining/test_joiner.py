"""Joining from end to end: a founder's door, and machines that come in."""

import secrets
import time
from collections.abc import Callable

import pytest

from mesh.certificates import Role
from node import enrolment
from node.errors import KithError
from node.joining import joiner as joiner_module
from node.joining.advert import Adverts
from node.joining.codes import Token, parse
from node.joining.door import OpenInvite
from node.joining.joiner import join
from node.joining.names import fingerprint_of, shown_name
from node.peers import load_peers
from scripts.throwaway import ThrowawayMesh
from tests.node.joining.doors import ADDRESSES, LOG, Doors, closed, code_of, happened, invite, token_of
from tests.node.test_discovery import LOOPBACK, needs_multicast

DAY_S = 86_400.0


async def test_a_code_brings_a_machine_in(doors: Doors) -> None:
    door = doors.door()
    opened = await invite(door, role=Role.WORKER)
    joined = await doors.join("laptop", code_of(opened), opened.port)
    assert joined.inviter_name == "attic"
    assert not joined.again
    loaded = enrolment.load(doors.paths("laptop"))
    assert loaded is not None
    assert loaded.identity == joined.enrolment.identity
    assert loaded.identity.role is Role.WORKER
    assert loaded.label == "home"
    assert loaded.authority is None
    assert load_peers(doors.paths("laptop").peers) == ADDRESSES
    [came, end] = await happened(opened)
    assert (came.what, came.name, came.node_id) == ("joined", "laptop", loaded.key.node_id)
    assert (end.what, end.reason) == ("closed", "used")
    assert await closed(door, opened.port)


async def test_a_token_is_good_as_often_as_it_says(doors: Doors) -> None:
    door = doors.door()
    opened = await invite(door, uses=2)
    for name in ("one", "two"):
        await doors.join(name, token_of(opened), opened.port)
    assert [event.what for event in await happened(opened)] == ["joined", "joined", "closed"]
    with pytest.raises(KithError) as refused:
        await doors.join("three", token_of(opened), opened.port)
    assert refused.value.code == "inviter-unreachable"


@pytest.mark.parametrize("by", [code_of, token_of])
async def test_an_invite_that_was_used_is_refused(doors: Doors, by: Callable[[OpenInvite], str]) -> None:
    door = doors.door()
    opened, _ = await invite(door), await invite(door)
    secret = by(opened)
    await doors.join("owner", secret, opened.port)
    with pytest.raises(KithError) as refused:
        await doors.join("thief", secret, opened.port)
    assert refused.value.code == "invite-unknown"
    assert not doors.paths("thief").mesh.exists()


@needs_multicast
@pytest.mark.parametrize("by", [code_of, token_of])
async def test_the_inviter_is_found_by_mdns(doors: Doors, by: Callable[[OpenInvite], str]) -> None:
    service_type = f"_kj{secrets.token_hex(4)}._tcp.local."
    door = doors.door(adverts=Adverts(lambda: ["127.0.0.1"], lambda: [LOOPBACK], LOG, service_type))
    opened = await invite(door)
    assert opened.advertised
    asked: list[str] = []
    joined = await join(
        doors.paths("laptop"),
        parse(by(opened)),
        "",
        "laptop",
        [LOOPBACK],
        LOG,
        found=asked.append,
        service_type=service_type,
    )
    assert asked == [joined.inviter] == [f"127.0.0.1:{opened.port}"]


@needs_multicast
async def test_two_doors_with_one_nameplate_are_not_asked(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them may be somebody else's, and each that is asked has a guess."""
    service_type = f"_kj{secrets.token_hex(4)}._tcp.local."
    adverts = Adverts(lambda: ["127.0.0.1"], lambda: [LOOPBACK], LOG, service_type)
    door = doors.door(adverts=adverts)
    opened = await invite(door)
    assert opened.invite.code is not None
    await adverts.show("forged", opened.invite.code.invite, 4001)
    with pytest.raises(KithError) as refused:
        await join(
            doors.paths("laptop"), parse(code_of(opened)), "", "laptop", [LOOPBACK], LOG, service_type=service_type
        )
    assert refused.value.code == "inviter-ambiguous"
    await doors.join("laptop", code_of(opened), opened.port)


async def test_nobody_in_sight_says_what_to_do(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joiner_module, "FIND_S", 0.1)
    with pytest.raises(KithError, match="nobody on this network") as refused:
        await join(doors.paths("laptop"), parse("7-cactus-violin"), "", "laptop", [], LOG)
    assert "HOST:PORT" in refused.value.remedy


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:0", "here", "[::1]"])
async def test_an_address_that_is_none_is_said_so(doors: Doors, address: str) -> None:
    with pytest.raises(KithError) as refused:
        await join(doors.paths("laptop"), parse("7-cactus-violin"), address, "laptop", [], LOG)
    assert refused.value.code == "bad-address"


async def test_an_expired_member_joins_again_and_stays_who_it_is(doors: Doors) -> None:
    issuer = doors.issuer()
    assert issuer.authority is not None
    mesh = ThrowawayMesh()
    mesh.authority = issuer.authority
    before = mesh.enrol(doors.paths("laptop").data_dir, starts_s=-40 * DAY_S)
    (doors.paths("laptop").journal).write_bytes(b"its facts")
    door = doors.door(issuer)
    opened = await invite(door)
    joined = await doors.join("laptop", code_of(opened), opened.port)
    assert joined.again
    after = enrolment.load(doors.paths("laptop"))
    assert after is not None
    assert after.key.node_id == before.key.node_id
    assert after.identity.not_after > before.identity.not_after + 30 * DAY_S
    assert doors.paths("laptop").journal.read_bytes() == b"its facts"


async def test_a_member_of_another_mesh_stays_there_and_says_nothing_of_itself(doors: Doors) -> None:
    member = ThrowawayMesh().enrol(doors.paths("laptop").data_dir)
    door = doors.door()
    opened = await invite(door)
    with pytest.raises(KithError) as refused:
        await doors.join("laptop", code_of(opened), opened.port)
    assert refused.value.code == "already-member"
    after = enrolment.load(doors.paths("laptop"))
    assert after is not None
    assert after.identity == member.identity
    assert member.key.node_id not in {event.node_id for event in await happened(opened)}


async def test_an_issuer_needs_no_invite(doors: Doors) -> None:
    doors.issuer("laptop")
    with pytest.raises(KithError, match="is an issuer") as refused:
        await doors.join("laptop", "7-cactus-violin", 1)
    assert refused.value.code == "already-member"


async def test_a_token_pins_the_mesh(doors: Doors) -> None:
    door = doors.door()
    opened = await invite(door)
    token = opened.invite.token
    elsewhere = Token(bytes(32), token.invite, token.secret)
    with pytest.raises(KithError) as refused:
        await doors.join("laptop", str(elsewhere), opened.port)
    assert refused.value.code == "wrong-mesh"
    assert not doors.paths("laptop").mesh.exists()


@pytest.mark.parametrize(("shift_s", "word"), [(40 * DAY_S, "ahead of"), (-40 * DAY_S, "behind")])
async def test_a_clock_that_is_off_is_named(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, shift_s: float, word: str
) -> None:
    door = doors.door()
    opened = await invite(door)
    now = time.time()
    monkeypatch.setattr(joiner_module, "time", type("Clock", (), {"time": staticmethod(lambda: now + shift_s)}))
    with pytest.raises(KithError, match=f"40 days {word}") as refused:
        await doors.join("laptop", code_of(opened), opened.port)
    assert refused.value.code == "clock-skew"
    assert not doors.paths("laptop").mesh.exists()


async def test_what_does_not_listen_or_speaks_something_else_is_named(doors: Doors) -> None:
    with pytest.raises(KithError) as refused:
        await doors.join("laptop", "7-cactus-violin", 1)
    assert refused.value.code == "inviter-unreachable"


def test_names_of_strangers_are_made_safe() -> None:
    assert shown_name("\x1b[31mred\x07\n lap\u202etop ") == "[31mred lap top"
    assert shown_name("\0\r\n") == "unnamed"
    assert len(shown_name("x" * 1000)) == 40
    assert fingerprint_of("0123456789abcdef") == "012345"
