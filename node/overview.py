"""How the node is and whom it sees, in one message each, for whoever asks at its doors."""

import hashlib
import os
import time
from typing import TYPE_CHECKING

from mesh.certificates import Role
from mesh.identity import NodeId
from mesh.journal import Journal
from mesh.wire import local_pb2, membership_pb2
from node import __version__, clock

if TYPE_CHECKING:
    from node.daemon import Daemon


def status_of(daemon: "Daemon") -> local_pb2.StatusReply:
    replica = daemon.replica
    election = replica.election
    status = local_pb2.StatusReply(
        node_id=replica.me,
        name=daemon.name,
        software_version=__version__,
        uptime_s=time.monotonic() - daemon.started_at,
        addresses=daemon.hello().addresses,
        leader=election.leader,
        role=_role(daemon),
        term=election.term,
        members_alive=len(replica.membership.view()),
        load=replica.membership.load,
        engine_state=daemon.engine.state,
        engine_problem=daemon.engine.problem,
        jobs_open=len(replica.ledger.open_jobs()),
        facts=sum(position.sequence for position in replica.journal.durable.values()),
        facts_digest=facts_digest(replica.journal),
        data_dir=str(daemon.config.data_dir),
        pid=os.getpid(),
        http_address=daemon.http_address,
        mdns=daemon.mdns,
        solver_state=daemon.solver.state,
        forked=sorted(_forked(daemon)),
        disk_used_bytes=daemon.disk_used_bytes,
        disk_budget_bytes=daemon.store.budget_bytes,
        network=daemon.config.network,
        mesh=_mesh_info(daemon),
        revoked=_why_revoked(daemon),
        denied=_denied(daemon),
        kv_cache=daemon.engine.figures.kv_cache,
        kv_cache_why=daemon.engine.figures.kv_cache_why,
    )
    if daemon.profile.agents:
        status.agent.CopyFrom(daemon.profile.agents[0])
    return status


def _mesh_info(daemon: "Daemon") -> local_pb2.MeshInfo | None:
    enrolled = daemon.enrolment
    if enrolled is None:
        return None
    return local_pb2.MeshInfo(
        mesh_id=enrolled.mesh_id,
        label=enrolled.label,
        role=enrolled.identity.role,
        certificate_ends_ms=int(enrolled.identity.not_after * 1000),
        issuers=len(issuers_known(daemon)),
        backed_up_ms=int(enrolled.backed_up_s() * 1000),
    )


def issuers_known(daemon: "Daemon") -> set[NodeId]:
    """Who holds the CA key, as far as this node knows: not denied, not left, with a certificate that has not ended.

    Certificates come with facts; who became an issuer and said nothing since shows it in its link.
    """
    assert daemon.enrolment is not None
    members, denials = daemon.replica.membership.members, daemon.replica.denials
    found = set()
    linked = filter(None, map(daemon.shell.links.identity_of, daemon.shell.live_peers()))
    as_issuers = (identity for identity in linked if identity.role is Role.ISSUER)
    for identity in (*daemon.shell.authors.in_role(Role.ISSUER), *as_issuers):
        member = members.get(identity.node_id)
        left = member is not None and member.state == membership_pb2.MEMBER_STATE_LEFT
        if identity.valid_at(time.time()) and not left and not denials.is_denied(identity.node_id):
            found.add(identity.node_id)
    if daemon.enrolment.authority is not None:
        found.add(daemon.replica.me)
    return found


def _role(daemon: "Daemon") -> str:
    election = daemon.replica.election
    if daemon.replica.denied:
        return "revoked"
    return "starting" if election.leader is None and election.role.value == "follower" else election.role.value


def _why_revoked(daemon: "Daemon") -> str:
    """Why this node itself was cut off; empty where it was not."""
    replica = daemon.replica
    return (replica.denials.reason(replica.me) or "no reason was given") if replica.denied else ""


def _denied(daemon: "Daemon") -> list[local_pb2.DeniedNode]:
    replica = daemon.replica
    return [
        local_pb2.DeniedNode(
            node_id=one.node_id, name=_name_of(daemon, one.node_id), reason=one.reason, epoch=one.epoch
        )
        for one in replica.denials.denied()
    ]


def _name_of(daemon: "Daemon", node_id: NodeId) -> str:
    profile = daemon.replica.profiles.of(node_id)
    return profile.name if profile is not None else ""


def facts_digest(journal: Journal) -> bytes:
    """Of all facts and proven forks; those of a node decide what it reads."""
    forks = sorted((*stream_id, fork.sequence) for stream_id, fork in journal.forks.items())
    return hashlib.sha256(journal.digest() + repr(forks).encode()).digest()


def _forked(daemon: "Daemon") -> set[NodeId]:
    """Who wrote two histories."""
    return {stream_id.author for stream_id in daemon.replica.journal.forks}


def node_infos(daemon: "Daemon") -> list[local_pb2.NodeInfo]:
    """This node first, then the others by name, those that were cut off last."""
    replica = daemon.replica
    leader = replica.election.leader.leader_id if replica.election.leader else ""
    forked = _forked(daemon)
    own = local_pb2.NodeInfo(
        node_id=replica.me,
        name=daemon.name,
        state=membership_pb2.MEMBER_STATE_ALIVE,
        addresses=daemon.hello().addresses,
        self=True,
        leader=leader == replica.me,
        profile=replica.profiles.of(replica.me),
        load=replica.membership.load,
        forked=replica.me in forked,
    )
    others = []
    for member in replica.membership.members.values():
        info = local_pb2.NodeInfo(
            node_id=member.node_id,
            name=member.name,
            state=membership_pb2.MemberState.ValueType(member.state),
            leader=leader == member.node_id,
            profile=replica.profiles.of(member.node_id),
            load=member.load,
            found_by=replica.addresses.found_by(NodeId(member.node_id)),
            last_heard_s=max(0.0, clock.now() - member.last_heard),
            forked=member.node_id in forked,
        )
        for host, port in member.addresses:
            info.addresses.add(host=host, port=port)
        others.append(info)
    own.denied, own.denied_reason = replica.denied, _why_revoked(daemon)
    denied = [
        local_pb2.NodeInfo(
            node_id=one.node_id,
            name=one.name,
            state=membership_pb2.MEMBER_STATE_DEAD,
            forked=one.node_id in forked,
            denied=True,
            denied_reason=one.reason,
        )
        for one in _denied(daemon)
        if one.node_id != replica.me
    ]
    return [own, *sorted(others, key=lambda info: (info.name, info.node_id)), *denied]
