"""The LAN of namespaces itself: multicast reaches every host, cuts are one way or both, nothing is left behind."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.lan_network import Network, why_not

pytestmark = [pytest.mark.lan]

#: Listens on a multicast group, says so, then prints who was heard until a line comes on standard input.
LISTENER = """
import json, select, socket, struct, sys
family = socket.AF_INET6 if sys.argv[1] == "6" else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("", 5400))
index = socket.if_nametoindex("eth0")
if family == socket.AF_INET6:
    group = socket.inet_pton(family, "ff02::fb") + struct.pack("@I", index)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
else:
    s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + bytes(4))
print("listening", flush=True)
heard = set()
while True:
    ready, _, _ = select.select([s, sys.stdin], [], [])
    if s in ready:
        heard.add(s.recv(100).decode())
    elif sys.stdin in ready:
        print(json.dumps(sorted(heard)), flush=True)
        break
"""
#: Sends its name to the group and to each unicast address given.
SENDER = """
import socket, sys
version, name, *targets = sys.argv[1:]
family = socket.AF_INET6 if version == "6" else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
if family == socket.AF_INET6:
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
for target in targets:
    s.sendto(name.encode(), (target, 5400))
"""
#: Counts datagrams until one second is silent.
COUNTER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 5401))
print("listening", flush=True)
count = 0
try:
    while True:
        s.recv(100)
        count += 1
        s.settimeout(1.0)
except TimeoutError:
    print(count, flush=True)
"""
#: Sends 1,000 datagrams, slowly enough for any buffer.
FLOOD = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(1000):
    s.sendto(b"x", (sys.argv[1], 5401))
    time.sleep(0.0002)
"""
GROUP = {"4": "224.0.0.251", "6": "ff02::fb"}


@pytest.fixture
def network() -> Iterator[Network]:
    if problem := why_not():
        pytest.skip(f"{problem[0]}; {problem[1]}")
    made = Network("t", 3)
    made.create()
    yield made
    made.destroy()
    assert not list(Path("/run/netns").glob("kitht-*"))


def heard(network: Network, version: str) -> dict[str, list[str]]:
    """Each host sends to the multicast group; who heard whom, itself left out."""
    listeners = {
        host: subprocess.Popen(
            [*network.inside(host), sys.executable, "-c", LISTENER, version],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for host in network.hosts
    }
    try:
        for one in listeners.values():
            assert one.stdout is not None
            assert one.stdout.readline() == "listening\n"
        for host in network.hosts:
            command = [*network.inside(host), sys.executable, "-c", SENDER, version, host, GROUP[version]]
            subprocess.run(command, check=True, timeout=10)
        found = {}
        for host, one in listeners.items():
            answer, _ = one.communicate("\n", timeout=10)
            found[host] = [name for name in json.loads(answer) if name != host]
        return found
    finally:
        for one in listeners.values():
            one.kill()
            one.wait()


ALL = {"h1": ["h2", "h3"], "h2": ["h1", "h3"], "h3": ["h1", "h2"]}


@pytest.mark.parametrize("version", ["4", "6"])
def test_multicast_cut_and_heal(network: Network, version: str) -> None:
    assert heard(network, version) == ALL

    network.cut("h1", "h2", one_way=True)
    assert network.cuts() == [("h1", "h2")]
    assert heard(network, version) == ALL | {"h2": ["h3"]}

    network.cut("h1", "h3")
    assert heard(network, version) == {"h1": ["h2"], "h2": ["h3"], "h3": ["h2"]}

    network.heal()
    assert network.cuts() == []
    assert heard(network, version) == ALL


def arrived(network: Network, source: str, target: str) -> int:
    """Of 1,000 datagrams."""
    counter = subprocess.Popen(
        [*network.inside(target), sys.executable, "-c", COUNTER], stdout=subprocess.PIPE, text=True
    )
    try:
        assert counter.stdout is not None
        assert counter.stdout.readline() == "listening\n"
        command = [*network.inside(source), sys.executable, "-c", FLOOD, network.ipv4(target)]
        subprocess.run(command, check=True, timeout=10)
        answer, _ = counter.communicate(timeout=10)
        return int(answer)
    finally:
        counter.kill()
        counter.wait()


def test_loss_takes_its_share_each_way_and_addresses_change(network: Network) -> None:
    assert arrived(network, "h1", "h2") == 1000  # from now on each knows the other's hardware address
    network.lose(30)
    assert 600 < arrived(network, "h1", "h2") < 800
    assert 600 < arrived(network, "h2", "h1") < 800
    assert network.cuts() == []
    network.lose(0)
    network.readdress("h2", "10.77.0.99")
    assert arrived(network, "h1", "h2") == 1000
    network.lose(90)
    network.heal()
    assert arrived(network, "h2", "h1") == 1000
