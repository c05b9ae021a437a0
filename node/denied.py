"""What a node says that was itself cut off from its mesh: it works no more, and is not silent about why."""

from mesh.replica import Replica
from node.errors import ExitCode, KithError


def node_denied(replica: Replica) -> KithError:
    """Nobody would count what this node says or accepts."""
    return KithError(
        "node-denied",
        f"this node was revoked: {replica.denials.reason(replica.me) or 'no reason was given'}",
        "Ask who runs the mesh. To belong again it needs a new identity: `kith leave`, then `kith join`.",
        ExitCode.UNAVAILABLE,
    )
