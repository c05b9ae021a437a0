"""Who may do what: one table, by the role in a member's certificate.

Idea: three questions, each answered by a row. May this role call that RPC (node/callers.py asks)? May it say that on a
link (node/links.py)? May it author facts of that kind, which everybody then holds (node/shell.py)? What is in no row is
refused, so something new is refused until somebody decides.

A worker does work for others and stores. It votes, or a mesh of many workers would have no majority, but it does not
lead, submit or teach. A client only asks for text: it has no link and authors nothing.

Does not: know who is denied (mesh/denials.py), or check certificates (mesh/certificates.py).
"""

from mesh.certificates import Role

_ALL = frozenset(Role)
_MEMBERS = frozenset({Role.ISSUER, Role.NODE, Role.WORKER})
_LEADERS = frozenset({Role.ISSUER, Role.NODE})

#: RPC of the service Mesh → roles that may call it.
RPCS: dict[str, frozenset[Role]] = {
    "Link": _MEMBERS,
    "Generate": _ALL,
    "Score": _ALL,
    "CountTokens": _ALL,
    "Embed": _ALL,
    "FetchModel": _MEMBERS,
    "FetchKv": _MEMBERS,
    "FetchBlob": _MEMBERS,
    "Renew": _ALL,
    "TakeAuthority": frozenset({Role.ISSUER}),
}

#: Kind of LinkMessage → roles that may say it.
MESSAGES: dict[str, frozenset[Role]] = {
    "hello": _MEMBERS,
    "probe": _MEMBERS,
    "probe_reply": _MEMBERS,
    "member_news": _MEMBERS,
    "leave": _MEMBERS,
    "vote_request": _LEADERS,
    "vote_reply": _MEMBERS,
    "leader_beat": _LEADERS,
    "leader_beat_reply": _MEMBERS,
    "leader_transfer": _LEADERS,
    "version_vector": _MEMBERS,
    "vector_digest": _MEMBERS,
    "fact_push": _MEMBERS,
    "fact_receipt": _MEMBERS,
    "fork_proof": _MEMBERS,
    "blob_offer": _MEMBERS,
    "blob_receipt": _MEMBERS,
    "assign": _LEADERS,
    "cancel_task": _LEADERS,
    "job_progress": _LEADERS,
    "task_event": _MEMBERS,
    "work_report": _MEMBERS,
}

#: Kind of fact → roles whose facts of it count. The kind of a later version, which this one can not read, is "".
FACTS: dict[str, frozenset[Role]] = {
    "": _LEADERS,
    "node_profile": _MEMBERS,
    "skill_observation": _MEMBERS,
    "task_finished": _MEMBERS,
    "job_submitted": _LEADERS,
    "job_planned": _LEADERS,
    "job_assigned": _LEADERS,
    "job_completed": _LEADERS,
    "job_cancelled": _LEADERS,
    "job_failed": _LEADERS,
    "knowledge_added": _LEADERS,
    "knowledge_superseded": _LEADERS,
    "knowledge_retracted": _LEADERS,
    "evidence": _LEADERS,
    # The CA's signature in it is what counts; a node that was just promoted may still have a node's certificate.
    "deny": _LEADERS,
}


def may_call(role: Role, rpc: str) -> bool:
    return role in RPCS.get(rpc, ())


def may_send(role: Role, message_kind: str) -> bool:
    return role in MESSAGES.get(message_kind, ())


def may_author(role: Role, fact_kind: str) -> bool:
    return role in FACTS.get(fact_kind, ())


def may_lead(role: Role) -> bool:
    return may_send(role, "leader_beat")
