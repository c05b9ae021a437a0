"""Who holds a copy: the nodes with the highest hash of (content, node), so that all agree without talking.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998).
"""

import hashlib
from collections.abc import Iterable

from mesh.identity import NodeId


def holders(content: bytes, nodes: Iterable[NodeId], count: int) -> list[NodeId]:
    """The `count` nodes that should hold what is named `content`, most wanted first."""
    ranked = sorted(nodes, key=lambda node: hashlib.sha256(content + node.encode()).digest(), reverse=True)
    return ranked[:count]
