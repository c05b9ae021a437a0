"""Names and certificates of the door."""

from pathlib import Path

import pytest

from node.errors import KithError
from node.http.tls import Certificate, hosts_of


def test_a_wildcard_listens_under_this_machines_names_only() -> None:
    hosts = hosts_of("0.0.0.0", ("Mesh.Example.org", "*.lab.example"), None)
    assert {"localhost", "mesh.example.org", "*.lab.example"} <= hosts
    assert hosts_of("10.0.0.7", (), None) == {"localhost", "127.0.0.1", "::1", "10.0.0.7"}


def test_a_certificate_that_changes_on_disk_is_taken_over(tmp_path: Path) -> None:
    from scripts.throwaway import ThrowawayMesh

    enrolment = ThrowawayMesh().enrol(tmp_path / "a")
    held = Certificate(enrolment.paths.certificate, enrolment.paths.key)
    assert f"{enrolment.identity.node_id}.kith" in held.names()
    enrolment.paths.certificate.write_text("nonsense")
    held.refresh()  # said, and the old one stays
    with pytest.raises(KithError, match="can not be used"):
        Certificate(enrolment.paths.certificate, enrolment.paths.key)
