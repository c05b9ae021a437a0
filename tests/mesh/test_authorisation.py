"""The table of roles: every row there is, and no other."""

import pytest

from mesh.authorisation import FACTS, MESSAGES, RPCS, may_author, may_call, may_lead, may_send
from mesh.certificates import Role
from mesh.facts import STREAM_OF_KIND
from mesh.wire import mesh_pb2

#: Said by protocols before 3 only.
GONE = {"heartbeat"}


def test_every_rpc_message_and_fact_has_a_row_and_nothing_else_has() -> None:
    assert RPCS.keys() == set(mesh_pb2.DESCRIPTOR.services_by_name["Mesh"].methods_by_name)
    said = mesh_pb2.LinkMessage.DESCRIPTOR.oneofs_by_name["message"].fields
    assert MESSAGES.keys() == {field.name for field in said} - GONE
    assert FACTS.keys() == STREAM_OF_KIND.keys() | {""}


@pytest.mark.parametrize(
    ("role", "rpcs", "leads"),
    [
        (Role.ISSUER, RPCS.keys(), True),
        (Role.NODE, RPCS.keys() - {"TakeAuthority"}, True),
        (Role.WORKER, RPCS.keys() - {"TakeAuthority"}, False),
        (Role.CLIENT, {"Generate", "Score", "CountTokens", "Embed", "Renew"}, False),
    ],
)
def test_roles_and_their_rpcs(role: Role, rpcs: set[str], leads: bool) -> None:
    assert {rpc for rpc in RPCS if may_call(role, rpc)} == set(rpcs)
    assert may_lead(role) == leads


def test_a_worker_votes_works_and_stores_but_does_not_lead_submit_or_teach() -> None:
    assert all(may_send(Role.WORKER, kind) for kind in ("vote_reply", "task_event", "blob_receipt", "fact_push"))
    assert not any(may_send(Role.WORKER, kind) for kind in ("vote_request", "leader_beat", "assign", "cancel_task"))
    assert {kind for kind in FACTS if may_author(Role.WORKER, kind)} == {
        "node_profile",
        "skill_observation",
        "task_finished",
    }


def test_a_client_says_nothing_and_authors_nothing() -> None:
    assert not any(may_send(Role.CLIENT, kind) for kind in MESSAGES)
    assert not any(may_author(Role.CLIENT, kind) for kind in FACTS)


@pytest.mark.parametrize("role", Role)
def test_what_is_in_no_row_is_refused(role: Role) -> None:
    assert not may_call(role, "Format")
    assert not may_send(role, "heartbeat")
    assert not may_author(role, "job_forgotten")
