"""Tests of multicast.py: what strangers put into the cache does not keep a question from being asked."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from zeroconf._dns import DNSPointer, DNSQuestion
from zeroconf._protocol.incoming import DNSIncoming
from zeroconf._protocol.outgoing import DNSOutgoing
from zeroconf.asyncio import AsyncZeroconf

from node.multicast import Speaker

TYPE = "_kith._tcp.local."
PTR, CLASS_IN, QUERY = 12, 1, 0
TOO_LONG = "\N{REPLACEMENT CHARACTER}" * 63


@pytest.fixture
async def speaker() -> AsyncIterator[Speaker]:
    speaker = Speaker(interfaces=["127.0.0.1"], unicast=True)
    around = AsyncZeroconf(zc=speaker)
    await speaker.async_wait_for_start()
    yield speaker
    await around.async_close()


def question(name: str = TYPE, *known: str) -> DNSOutgoing:
    out = DNSOutgoing(QUERY)
    out.add_question(DNSQuestion(name, PTR, CLASS_IN))
    for alias in known:
        out.add_answer_at_time(DNSPointer(TYPE, PTR, CLASS_IN, 4500, alias), 0)
    return out


async def heard(speaker: Speaker, *said: DNSOutgoing) -> list[DNSIncoming]:
    """What arrives of these and of one more plain question, which comes last."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.bind(("127.0.0.1", 0))
        ear.setblocking(False)
        port = ear.getsockname()[1]
        last = question("last._tcp.local.")
        for out in (*said, last):
            speaker.async_send(out, "127.0.0.1", port)
        packets: list[DNSIncoming] = []
        async with asyncio.timeout(10):
            while not packets or packets[-1].questions[0].name != "last._tcp.local.":
                packets.append(DNSIncoming(await asyncio.get_running_loop().sock_recv(ear, 9000)))
    return packets[:-1]


async def test_a_question_goes_out_with_the_answers_that_are_known(speaker: Speaker) -> None:
    [packet] = await heard(speaker, question(TYPE, f"plain.{TYPE}"))
    assert [one.name for one in packet.questions] == [TYPE]
    assert [getattr(one, "alias", "") for one in packet.answers()] == [f"plain.{TYPE}"]


async def test_a_known_answer_that_can_not_be_written_is_left_out(speaker: Speaker) -> None:
    [packet] = await heard(speaker, question(TYPE, f"plain.{TYPE}", f"{TOO_LONG}.{TYPE}"))
    assert [one.name for one in packet.questions] == [TYPE]
    assert packet.answers() == []


async def test_a_question_about_a_name_that_can_not_be_written_is_not_asked(speaker: Speaker) -> None:
    assert await heard(speaker, question(f"{TOO_LONG}.{TYPE}")) == []
