"""Renewal in time. With an issuer at the other end of a link: tests/node/test_trust.py."""

import logging
import time
from pathlib import Path

import pytest

from mesh.certificates import Role
from node import enrolment, logs
from node.paths import NodePaths
from node.renewal import Renewal
from scripts.throwaway import ThrowawayMesh

DAY_S = 86_400.0


class Used:
    """How often a new certificate was taken into use."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def used() -> Used:
    return Used()


async def test_a_young_certificate_is_left_alone(tmp_path: Path, used: Used) -> None:
    member = ThrowawayMesh().enrol(tmp_path, Role.ISSUER, starts_s=-19 * DAY_S)
    before = member.identity
    assert not await Renewal(member, list, lambda _: None, used).look()
    assert member.identity == before
    assert used.count == 0


@pytest.mark.parametrize("age_days", [21.0, 29.9, 45.0])
async def test_an_issuer_renews_itself_also_when_late(tmp_path: Path, used: Used, age_days: float) -> None:
    member = ThrowawayMesh().enrol(tmp_path, Role.ISSUER, starts_s=-age_days * DAY_S)
    renewal = Renewal(member, list, lambda _: None, used)
    assert await renewal.look()
    assert used.count == 1
    loaded = enrolment.load(NodePaths(tmp_path))
    assert loaded is not None
    assert loaded.identity == member.identity
    assert loaded.identity.role is Role.ISSUER
    assert loaded.identity.not_after > time.time() + 29 * DAY_S
    assert not await renewal.look()


async def test_without_an_issuer_it_says_so_once_and_goes_on(
    tmp_path: Path, used: Used, caplog: pytest.LogCaptureFixture
) -> None:
    logs.logger.propagate = True
    caplog.set_level(logging.WARNING)
    member = ThrowawayMesh().enrol(tmp_path, starts_s=-25 * DAY_S)
    before = member.identity
    renewal = Renewal(member, list, lambda _: None, used)
    assert not await renewal.look()
    assert not await renewal.look()
    assert member.identity == before
    assert caplog.text.count("no issuer is linked") == 1
    assert "ends in 5 days" in caplog.text


async def test_a_disk_that_fails_leaves_the_old_certificate(
    tmp_path: Path, used: Used, caplog: pytest.LogCaptureFixture
) -> None:
    logs.logger.propagate = True
    member = ThrowawayMesh().enrol(tmp_path, Role.ISSUER, starts_s=-25 * DAY_S)
    before = member.identity
    NodePaths(tmp_path).mesh.rename(tmp_path / "gone")
    assert not await Renewal(member, list, lambda _: None, used).look()
    assert member.identity == before
    assert used.count == 0
    assert "can not be renewed" in caplog.text
