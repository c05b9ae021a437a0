"""Build: how long llama.cpp took to build on this machine, when scripts/demo or scripts/test built it.

Nothing is built now: the figure was kept beside the wheel. From the fetching of its source to the finished wheel.
"""

from node.errors import ExitCode, KithError
from scripts import _llama


def figures() -> dict[str, float]:
    kept = _llama.cache_dir() / _llama.key() / "build_s.txt"
    wheel = _llama.cached()
    if wheel is None or not kept.exists():
        message = "no build of this machine is kept"
        raise KithError("bench-impossible", message, f"rm -r {kept.parent}, then scripts/test", ExitCode.UNAVAILABLE)
    return {"build_s": float(kept.read_text()), "wheel_mb": round(wheel.stat().st_size / 1e6, 1)}
