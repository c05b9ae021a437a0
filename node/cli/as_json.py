"""The shape of `--json`: contract messages as plain dictionaries, with keys that do not change.

Idea: written out by hand, key by key, and documented in docs/cli.md. A generic conversion would leak every rename in
the wire contract to people's scripts. Hashes and ids are lower-case hex in full, enumerations lower-case words, times
milliseconds since 1970 or seconds as the name says.
"""

from typing import TYPE_CHECKING, Any

from mesh.wire import common_pb2, facts_pb2, local_pb2, membership_pb2, work_pb2

if TYPE_CHECKING:
    from node.models.store import Entry

STATE_OF_JOB = {
    local_pb2.JOB_STATE_OPEN: "open",
    local_pb2.JOB_STATE_COMPLETED: "completed",
    local_pb2.JOB_STATE_FAILED: "failed",
    local_pb2.JOB_STATE_CANCELLED: "cancelled",
}
STATE_OF_MEMBER = {
    membership_pb2.MEMBER_STATE_ALIVE: "alive",
    membership_pb2.MEMBER_STATE_SUSPECT: "suspect",
    membership_pb2.MEMBER_STATE_DEAD: "dead",
    membership_pb2.MEMBER_STATE_LEFT: "left",
}


def job_state(snapshot: local_pb2.JobSnapshot) -> str:
    return STATE_OF_JOB.get(snapshot.state, "unknown")


def member_state(node: local_pb2.NodeInfo) -> str:
    return STATE_OF_MEMBER.get(node.state, "unknown")


def address_text(address: common_pb2.NodeAddress) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


def usage(message: common_pb2.Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": message.prompt_tokens,
        "cached_tokens": message.cached_tokens,
        "completion_tokens": message.completion_tokens,
        "prefill_s": message.prefill_seconds,
        "decode_s": message.decode_seconds,
        "queue_s": message.queue_seconds,
    }


def problem(message: common_pb2.Problem) -> dict[str, Any]:
    return {"code": message.code, "message": message.message, "remedy": message.remedy}


def load(message: membership_pb2.NodeLoad) -> dict[str, Any]:
    return {
        "slots_busy": message.slots_busy,
        "slots_total": message.slots_total,
        "queued_prompt_tokens": message.queued_prompt_tokens,
        "queued_output_tokens": message.queued_output_tokens,
        "draining": message.draining,
        "engine_stalled": message.engine_stalled,
    }


def agent(message: facts_pb2.AgentProfile) -> dict[str, Any]:
    return {
        "agent": message.agent,
        "backend": message.backend,
        "model": message.model,
        "model_sha256": message.model_sha256.hex(),
        "model_bytes": message.model_bytes,
        "parameters": message.parameters,
        "quantization": message.quantization,
        "context_tokens": message.context_tokens,
        "slots": message.slots,
        "prefill_tokens_per_s": message.prefill_tokens_per_s,
        "decode_tokens_per_s": message.decode_tokens_per_s,
        "load_s": message.load_seconds,
        "load_wait_s": message.load_wait_seconds,
        "abilities": list(message.abilities),
        "licence": message.licence,
        "role": message.role,
    }


def status(message: local_pb2.StatusReply) -> dict[str, Any]:
    return {
        "node_id": message.node_id,
        "name": message.name,
        "version": message.software_version,
        "uptime_s": message.uptime_s,
        "addresses": [address_text(address) for address in message.addresses],
        "role": message.role,
        "leader_id": message.leader.leader_id,
        "term": message.term,
        "members_alive": message.members_alive,
        "load": load(message.load),
        "engine_state": message.engine_state,
        "engine_problem": message.engine_problem,
        "kv_cache": message.kv_cache,
        "kv_cache_why": message.kv_cache_why,
        "agent": agent(message.agent),
        "jobs_open": message.jobs_open,
        "facts": message.facts,
        "facts_digest": message.facts_digest.hex(),
        "data_dir": message.data_dir,
        "pid": message.pid,
        "http_address": message.http_address,
        "mdns": message.mdns,
        "solver_state": message.solver_state,
        "network": message.network,
        "disk_used_bytes": message.disk_used_bytes,
        "disk_budget_bytes": message.disk_budget_bytes,
        "forked_node_ids": list(message.forked),
        "revoked": message.revoked,
        "denied": [
            {"node_id": one.node_id, "name": one.name, "reason": one.reason, "epoch": one.epoch}
            for one in message.denied
        ],
        "mesh": mesh(message.mesh) if message.HasField("mesh") else None,
    }


def mesh(message: local_pb2.MeshInfo) -> dict[str, Any]:
    return {
        "mesh_id": message.mesh_id,
        "label": message.label,
        "role": message.role,
        "certificate_ends_ms": message.certificate_ends_ms,
        "issuers": message.issuers,
        "backed_up_ms": message.backed_up_ms or None,
    }


def node(message: local_pb2.NodeInfo) -> dict[str, Any]:
    return {
        "node_id": message.node_id,
        "name": message.name,
        "state": member_state(message),
        "addresses": [address_text(address) for address in message.addresses],
        "self": message.self,
        "leader": message.leader,
        "version": message.profile.software_version,
        "agents": [agent(one) for one in message.profile.agents],
        "cores": message.profile.cores,
        "memory_bytes": message.profile.memory_bytes,
        "load": load(message.load),
        "found_by": message.found_by,
        "last_heard_s": message.last_heard_s,
        "forked": message.forked,
        "denied": message.denied,
        "denied_reason": message.denied_reason,
    }


def task(message: local_pb2.TaskSnapshot) -> dict[str, Any]:
    return {
        "index": message.index,
        "replica": message.replica,
        "label": message.label,
        "state": message.state,
        "node_id": message.agent.node_id,
        "node_name": message.node_name,
        "agent": message.agent.agent,
        "model": message.model,
        "attempts": message.attempts,
        "phase": message.progress.phase,
        "tokens_per_s": message.progress.tokens_per_s,
        "output_tokens": message.progress.output_tokens,
        "usage": usage(message.usage),
        "seconds": message.seconds,
    }


def job(message: local_pb2.JobSnapshot, tasks: bool = True) -> dict[str, Any]:
    value: dict[str, Any] = {
        "job_id": message.job_id.hex(),
        "state": job_state(message),
        "kind": message.kind,
        "title": message.title,
        "submitted_ms": message.submitted_ms,
        "submitted_by": message.submitted_by,
        "tasks_total": message.tasks_total,
        "tasks_done": message.tasks_done,
        "leader_id": message.leader.leader_id,
        "waiting_for": message.waiting_for,
        "superseded": message.superseded,
        "reasons": [problem(one) for one in message.reasons],
    }
    if tasks:
        value["tasks"] = [task(one) for one in message.tasks]
    return value


def summary(message: work_pb2.SummaryResult, text: str) -> dict[str, Any]:
    """`text` is the document, for the quotes; empty where no copy is readable."""
    return {
        "sentences": [
            {
                "text": sentence.text,
                "support": sentence.support,
                "verbatim": sentence.verbatim,
                "sources": [
                    {"begin": span.begin, "end": span.end, "text": text[span.begin : span.end]}
                    for span in sentence.sources
                ],
            }
            for sentence in message.summary.sentences
        ],
        "words_in": message.words_in,
        "words_out": message.words_out,
        "pieces": message.pieces,
        "levels": message.levels,
    }


def panel(message: work_pb2.PanelResult) -> dict[str, Any]:
    return {
        "answer": message.answer if message.majority else None,
        "majority": message.majority,
        "votes_for": message.votes_for,
        "votes": len(message.ballots),
        "correlated": message.correlated,
        "options": list(message.options),
        "ballots": [ballot(one) for one in message.ballots],
        "minority": [ballot(one) for one in message.ballots if not one.in_majority],
    }


def ballot(message: work_pb2.Ballot) -> dict[str, Any]:
    return {
        "node_id": message.agent.node_id,
        "node_name": message.node_name,
        "agent": message.agent.agent,
        "model": message.model,
        "answer": message.answer,
        "group": message.group,
        "probabilities": list(message.probabilities),
        "in_majority": message.in_majority,
    }


def result(reply: local_pb2.ResultReply) -> dict[str, Any]:
    return {"job": job(reply.job), **_answer(reply.result, reply.document)}


def alternatives(reply: local_pb2.ResultReply) -> list[dict[str, Any]]:
    return [
        {
            "fact_hash": one.fact_hash.hex(),
            "completed_by": one.completed_by,
            "completed_by_name": one.completed_by_name,
            "time_ms": one.time_ms,
            **_answer(one.result, reply.document),
        }
        for one in reply.alternatives
    ]


def _answer(message: work_pb2.JobResult, document: bytes) -> dict[str, Any]:
    if message.HasField("summary"):
        return {"summary": summary(message.summary, document.decode(errors="replace"))}
    return {"panel": panel(message.panel)} if message.HasField("panel") else {}


def story(reply: local_pb2.StoryReply) -> dict[str, Any]:
    return {
        "events": [
            {
                "time_ms": one.time_ms,
                "node_id": one.node_id,
                "node_name": one.node_name,
                "kind": one.kind,
                "text": one.text,
                "fact_hash": one.fact_hash.hex(),
            }
            for one in reply.events
        ]
    }


def explanation(reply: local_pb2.ExplainReply) -> dict[str, Any]:
    return {"job": job(reply.job), "rounds": [_round(one) for one in reply.rounds]}


def _round(message: local_pb2.ExplainedRound) -> dict[str, Any]:
    assigned = message.assigned
    return {
        "round": assigned.round,
        "leader_id": assigned.token.leader_id,
        "leader_name": message.leader_name,
        "term": assigned.token.term,
        "time_ms": message.time_ms,
        "method": assigned.method,
        "method_reason": assigned.method_reason,
        "objective_s": assigned.objective_s,
        "bound_s": assigned.bound_s,
        "solve_s": assigned.solve_seconds,
        "assignments": [
            {
                "task_index": one.task_index,
                "replica": one.replica,
                "node_id": one.agent.node_id,
                "agent": one.agent.agent,
                "cost_s": one.cost_s,
                "terms": {term.name: term.seconds for term in one.terms},
                "runner_up_node_id": one.runner_up.node_id,
                "runner_up_cost_s": one.runner_up_cost_s,
            }
            for one in assigned.assignments
        ],
    }


def hit(message: local_pb2.KnowledgeHit) -> dict[str, Any]:
    return {
        "item_id": message.item_id.hex(),
        "title": message.title,
        "text": message.text,
        "source": message.source,
        "tags": list(message.tags),
        "author_id": message.author_id,
        "author_name": message.author_name,
        "score": message.score,
        "added_ms": message.added_ms,
    }


def model(message: local_pb2.ShowModelReply) -> dict[str, Any]:
    engine = message.engine
    return {
        "agents": [agent(one) for one in message.agents],
        "path": message.path,
        "architecture": engine.architecture,
        "threads": engine.threads,
        "vocabulary_size": engine.vocabulary_size,
        "trained_context_tokens": engine.trained_context_tokens,
        "has_chat_template": engine.has_chat_template,
        "system_info": engine.system_info,
        "prefill_tokens_per_s": message.calibrated.prefill_tokens_per_s,
        "decode_tokens_per_s": message.calibrated.decode_tokens_per_s,
    }


def stored(entry: "Entry", used: bool, served_here: bool) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "name": entry.name,
        "path": str(entry.path),
        "bytes": manifest.size_bytes,
        "sha256": manifest.sha256,
        "model": manifest.model,
        "parameters": manifest.parameters,
        "quantization": manifest.quantization,
        "architecture": manifest.architecture,
        "trained_context_tokens": manifest.context_tokens,
        "licence": manifest.licence,
        "source": manifest.source,
        "revision": manifest.revision,
        "added_ms": manifest.added_ms,
        "in_use": used,
        "served_here": served_here,
    }
