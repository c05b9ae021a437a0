"""The join door from outside: guessers, people in the middle, crowds. Real sockets, real TLS."""

import asyncio
import logging
import ssl
import struct

import pytest

from mesh.certificates import Role
from node import logs
from node.errors import KithError
from node.joining import door as door_module
from node.joining.codes import Code, parse
from node.joining.door import EXCHANGES_MAX, Door
from node.joining.exchange import FRAME_BYTES_MAX, LENGTH_BYTES, ExchangeError, JoinerSide, Kind, length_of
from node.joining.invites import WRONG_TOKENS_MAX
from node.joining.pace import Pace
from node.joining.throwaway_tls import client_context, server_context
from scripts.throwaway import ThrowawayMesh
from tests.node.joining.doors import (
    WITHIN_S,
    Doors,
    Knock,
    closed,
    code_of,
    happened,
    invite,
    token_of,
    wrong_code_of,
    wrong_token_of,
)


async def test_the_door_is_open_only_while_an_invite_lives(doors: Doors) -> None:
    door = doors.door()
    assert door.port == 0
    one, other = await invite(door), await invite(door)
    assert one.port == other.port == door.port
    port = door.port
    await door.withdraw(one)
    assert not await closed(door, port)
    await door.withdraw(other)
    assert await closed(door, port)
    assert [event.reason for event in await happened(other)] == ["withdrawn"]
    again = await invite(door)
    assert not await closed(door, again.port)


async def test_the_door_closes_when_the_time_is_over(doors: Doors) -> None:
    door = doors.door()
    opened = await invite(door, ttl_s=0.2)
    assert [event.reason for event in await happened(opened)] == ["expired"]
    assert await closed(door, opened.port)


async def test_a_wrong_code_voids_the_invite(doors: Doors) -> None:
    door = doors.door()
    opened = await invite(door)
    with pytest.raises(KithError) as refused:
        await doors.join("guesser", wrong_code_of(opened), opened.port)
    assert refused.value.code == "wrong-code"
    events = await happened(opened)
    assert [(event.what, event.reason) for event in events] == [("refused", "secret"), ("closed", "void")]
    assert await closed(door, opened.port)
    with pytest.raises(KithError) as refused:
        await doors.join("late", code_of(opened), opened.port)
    assert refused.value.code == "inviter-unreachable"
    assert not doors.paths("guesser").mesh.exists()


async def test_after_a_wrong_code_the_right_one_is_of_no_use(doors: Doors) -> None:
    """Another invite keeps the door open."""
    door = doors.door()
    opened, other = await invite(door), await invite(door)
    with pytest.raises(KithError):
        await doors.join("guesser", wrong_code_of(opened), opened.port)
    for secret in (code_of(opened), token_of(opened)):
        with pytest.raises(KithError) as refused:
            await doors.join("late", secret, opened.port)
        assert refused.value.code == "invite-unknown"
    await doors.join("friend", code_of(other), other.port)


async def test_who_takes_the_proof_and_hangs_up_has_guessed(doors: Doors) -> None:
    door = doors.door()
    opened = await invite(door)
    knock = await Knock.at(opened.port)
    await knock.start(parse(wrong_code_of(opened)))
    await knock.close()
    assert [event.reason for event in await happened(opened)] == ["secret", "void"]


async def test_who_takes_the_proof_and_is_silent_has_guessed(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "FRAME_S", 0.2)
    door = doors.door()
    opened = await invite(door)
    knock = await Knock.at(opened.port)
    await knock.start(parse(wrong_code_of(opened)))
    assert [event.reason for event in await happened(opened)] == ["secret", "void"]
    await knock.close()


async def test_who_leaves_before_has_guessed_nothing(doors: Doors) -> None:
    door = doors.door()
    opened = await invite(door)
    (await asyncio.open_connection("127.0.0.1", opened.port))[1].close()
    await (await Knock.at(opened.port)).close()
    half = await Knock.at(opened.port)
    half.writer.write(b"\0\0")
    await half.close()
    joined = await doors.join("friend", code_of(opened), opened.port)
    assert joined.enrolment.identity.role is Role.NODE


async def test_a_code_is_spoken_for_one_exchange_at_a_time(doors: Doors) -> None:
    door = doors.door()
    opened = await invite(door)
    knock = await Knock.at(opened.port)
    await knock.start(parse(code_of(opened)))
    with pytest.raises(KithError) as refused:
        await doors.join("second", code_of(opened), opened.port)
    assert refused.value.code == "invite-busy"
    await knock.close()


async def test_a_token_is_not_voided_by_a_few_and_is_by_many(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    door = doors.door()
    door._pace = Pace(per_host=1000, together=1000)
    opened = await invite(door, uses=2)
    for number in range(WRONG_TOKENS_MAX):
        if number == WRONG_TOKENS_MAX - 1:
            await doors.join("friend", token_of(opened), opened.port)
        with pytest.raises(KithError) as refused:
            await doors.join("guesser", str(wrong_token_of(opened)), opened.port)
        assert refused.value.code == "wrong-code"
    events = await happened(opened)
    assert [event.what for event in events] == ["refused"] * 19 + ["joined", "refused", "closed"]
    assert events[-1].reason == "void"


async def test_somebody_in_the_middle_learns_nothing_and_gets_nowhere(doors: Doors) -> None:
    """A relay with a TLS certificate of its own, which passes on every byte."""
    door = doors.door()
    opened = await invite(door)
    context, _ = server_context()
    seen = bytearray()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await Knock.at(opened.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, keep: bytearray | None) -> None:
            while data := await source.read(1 << 16):
                if keep is not None:
                    keep += data
                sink.write(data)
                await sink.drain()

        try:
            back = asyncio.create_task(pump(behind.reader, writer, None))
            await pump(reader, behind.writer, seen)
            back.cancel()
        finally:
            await behind.close()
            writer.close()

    async with await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(KithError) as refused:
            await doors.join("victim", code_of(opened), port)
        assert refused.value.code == "wrong-code"
        assert [event.reason for event in await happened(opened)] == ["secret", "void"]
    assert not doors.paths("victim").mesh.exists()
    assert length_of(bytes(seen[:LENGTH_BYTES])) == len(seen) - LENGTH_BYTES
    assert seen[LENGTH_BYTES] == Kind.START


async def test_a_false_inviter_hears_a_blinded_element_only(doors: Doors) -> None:
    context, _ = server_context()
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(LENGTH_BYTES)
        start = await reader.readexactly(length_of(first))
        # A frame as large as allowed, and wrong.
        writer.write(struct.pack(">I", FRAME_BYTES_MAX) + bytes([Kind.PROOF]) + bytes(FRAME_BYTES_MAX - 1))
        heard.put_nowait(start + await reader.read())
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(KithError):
            await doors.join("victim", "7-cactus-violin", port)
        async with asyncio.timeout(WITHIN_S):
            said = await heard.get()
    assert said[0] == Kind.START
    assert len(said) < 100
    for secret in (b"cactus", b"violin", b"victim", doors.paths("victim").key.read_bytes()[30:60]):
        assert secret not in said


async def test_a_revoked_node_is_refused_and_the_invite_lives(doors: Doors) -> None:
    mine = doors.issuer()
    denied: set[str] = set()
    door = doors.door(mine, denied.__contains__)
    opened = await invite(door, uses=2)
    joined = await doors.join("stolen", code_of(opened), opened.port)
    denied.add(joined.enrolment.key.node_id)
    with pytest.raises(KithError) as refused:
        await doors.join("stolen", code_of(opened), opened.port)
    assert refused.value.code == "node-revoked"
    await doors.join("friend", code_of(opened), opened.port)
    events = await happened(opened)
    assert [event.what for event in events] == ["joined", "refused", "joined", "closed"]
    assert events[1].node_id == joined.enrolment.key.node_id


async def test_who_has_the_code_and_no_key_gets_nothing_and_voids_it(doors: Doors) -> None:
    door = doors.door()
    opened = await invite(door)
    knock = await Knock.at(opened.port)
    side = await knock.start(parse(code_of(opened)))
    knock.writer.write(struct.pack(">I", 1 + 40) + bytes([Kind.REQUEST]) + bytes(40))
    assert [event.reason for event in await happened(opened)] == ["secret", "void"]
    await knock.close()
    del side


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        struct.pack(">I", FRAME_BYTES_MAX + 1),
        struct.pack(">I", 5) + bytes([Kind.WELCOME]) + b"1234",
        struct.pack(">I", 5) + bytes([99]) + b"1234",
        struct.pack(">I", 5) + bytes([Kind.START]) + b"\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_exchange_is_answered_and_ended(doors: Doors, said: bytes) -> None:
    door = doors.door()
    opened = await invite(door)
    knock = await Knock.at(opened.port)
    knock.writer.write(said)
    async with asyncio.timeout(WITHIN_S):
        answer = await knock.reader.read()
    assert len(answer) < 64
    assert answer[LENGTH_BYTES] == Kind.REFUSED
    await knock.close()
    await doors.join("friend", code_of(opened), opened.port)


async def test_plain_bytes_and_old_tls_get_no_further(doors: Doors) -> None:
    door = doors.door()
    opened = await invite(door)
    reader, writer = await asyncio.open_connection("127.0.0.1", opened.port)
    writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
    async with asyncio.timeout(WITHIN_S):
        await reader.read()
    writer.close()
    old = client_context()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", opened.port, ssl=old)


async def test_a_crowd_is_held_off_and_each_host_has_its_own_measure(doors: Doors) -> None:
    door = doors.door()
    door._pace = Pace(per_host=3, together=100)
    opened = await invite(door)
    for _ in range(3):
        await (await Knock.at(opened.port, "127.0.0.9")).close()
    with pytest.raises((ConnectionError, ssl.SSLError)):
        await Knock.at(opened.port, "127.0.0.9")
    await doors.join("friend", code_of(opened), opened.port)


async def test_idle_connections_do_not_fill_the_door_for_long(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "HANDSHAKE_S", 0.3)
    door = doors.door()
    door._pace = Pace(per_host=1000, together=1000)
    opened = await invite(door)
    idle = [await asyncio.open_connection("127.0.0.1", opened.port) for _ in range(EXCHANGES_MAX)]
    async with asyncio.timeout(WITHIN_S):
        for reader, _ in idle:
            await reader.read()  # until the door has closed it
    await doors.join("friend", code_of(opened), opened.port)
    for _, writer in idle:
        writer.close()


async def test_nothing_secret_is_logged(doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    logs.logger.propagate = True
    caplog.set_level(logging.DEBUG)
    door = doors.door()
    opened = await invite(door, uses=2)
    await doors.join("friend", code_of(opened), opened.port, "\x1b[2Jmy laptop\n")
    with pytest.raises(KithError):
        await doors.join("guesser", wrong_code_of(opened), opened.port)
    await happened(opened)
    code = opened.invite.code
    assert isinstance(code, Code)
    assert "my laptop" in caplog.text
    assert "did not know the secret" in caplog.text
    for secret in (*code.words, token_of(opened), token_of(opened).rpartition(".")[2], "\x1b"):
        assert secret not in caplog.text


async def test_only_an_issuer_invites_and_nobody_is_invited_as_one(doors: Doors) -> None:
    member = ThrowawayMesh().enrol(doors.paths("member").data_dir)
    with pytest.raises(KithError, match="no CA key"):
        await invite(doors.door(member))
    with pytest.raises(KithError, match="makes no issuer"):
        await invite(doors.door(), role=Role.ISSUER)


async def test_a_port_that_is_taken_is_not_waited_for(doors: Doors) -> None:
    mine = doors.issuer()
    first = await invite(doors.door(mine))
    door = Door(mine, "attic", "127.0.0.1", first.port, list, lambda _: False)
    try:
        second = await invite(door)
        assert second.port not in (0, first.port)
    finally:
        await door.close()
    bad = Door(mine, "attic", "192.0.2.1", 0, list, lambda _: False)
    with pytest.raises(KithError, match="can not be opened"):
        await invite(bad)
    assert bad.port == 0


async def test_closing_the_door_ends_what_is_under_way(doors: Doors) -> None:
    door = doors.door()
    opened = await invite(door)
    knock = await Knock.at(opened.port)
    await knock.start(parse(code_of(opened)))
    await door.close()
    assert (await happened(opened))[-1].reason == "withdrawn"
    assert await closed(door, opened.port)
    await knock.close()


async def test_a_proof_of_one_connection_is_of_no_use_in_another(doors: Doors) -> None:
    """A door that is asked through another connection signs for that connection's certificate only."""
    door = doors.door()
    opened = await invite(door)
    knock = await Knock.at(opened.port)
    secret = parse(code_of(opened))
    side = JoinerSide(secret.invite, secret.password, b"another certificate")
    knock.writer.write(side.start())
    frame = await door_module.read_frame(knock.reader, Kind.PROOF, WITHIN_S)
    with pytest.raises(ExchangeError):
        side.read_proof(frame)
    await knock.close()
