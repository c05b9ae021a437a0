"""Which addresses a node tells of itself while it runs."""

import ipaddress

import pytest

from node import interfaces
from node.interfaces import Interface
from node.listening import Bound


def lan(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """This machine is on a LAN with these addresses."""
    here = [Interface("eth0", 2, tuple(ipaddress.ip_address(address) for address in addresses))]
    monkeypatch.setattr(interfaces, "interfaces", lambda: here)


def test_a_new_lease_is_told_and_no_network_leaves_what_was(monkeypatch: pytest.MonkeyPatch) -> None:
    lan(monkeypatch, "10.77.0.1")
    bound = Bound("0.0.0.0", 7600, ())
    assert bound.addresses() == [("10.77.0.1", 7600)]
    lan(monkeypatch, "10.77.0.99")
    assert bound.addresses() == [("10.77.0.99", 7600)]
    lan(monkeypatch)
    assert bound.addresses() == [("10.77.0.99", 7600)]


def test_an_interface_that_was_named_by_its_address_and_has_another_now(monkeypatch: pytest.MonkeyPatch) -> None:
    lan(monkeypatch, "10.77.0.1")
    bound = Bound("0.0.0.0", 7600, ("10.77.0.1",))
    assert bound.addresses() == [("10.77.0.1", 7600)]
    lan(monkeypatch, "10.77.0.99")
    assert bound.addresses() == [("10.77.0.1", 7600)], "nothing better is known"


def test_where_it_listens_on_one_address_only_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lan(monkeypatch, "10.77.0.99")
    assert Bound("10.77.0.1", 7600, ()).addresses() == [("10.77.0.1", 7600)]
