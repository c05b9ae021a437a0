"""The command scripts/bench NAME [--json]: measures one thing, prints a table, and with --json one object at the end.

The object is {bench, machine, figures}; figures are numbers under names that do not change.
"""

import argparse
import importlib
import json
import os
import platform
import signal
import sys
from pathlib import Path

from node.cli import output
from node.errors import KithError
from scripts.daemons import NotInTime

BENCHES = sorted(path.stem.replace("_", "-") for path in (Path(__file__).parent / "benches").glob("[a-z]*.py"))


def machine() -> dict[str, str | int | float]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    try:
        rows = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(row.split(":", 1)[1].strip() for row in rows if row.startswith(("model name", "Model")))
    except (OSError, StopIteration):
        pass
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 1,
        "memory_gb": round(memory, 1),
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
    }


def _interrupted(_: int, __: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure one thing.")
    parser.add_argument("name", choices=BENCHES)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--model", default="", help="a GGUF file, for benches that take one")
    given = parser.parse_args(arguments)
    if given.model:
        os.environ["KITH_BENCH_MODEL"] = given.model
    signal.signal(signal.SIGTERM, _interrupted)  # a time limit must not leave daemons behind
    bench = importlib.import_module(f"scripts.benches.{given.name.replace('-', '_')}")
    here = machine()
    print((bench.__doc__ or "").strip())
    print(
        f"\n{here['cpu']}, {here['cores']} cores, {here['memory_gb']} GB, Python {here['python']}, {here['kernel']}\n"
    )
    try:
        figures: dict[str, float] = bench.figures()
    except KithError as error:
        print(f"bench: {error.message}\n→ {error.remedy}", file=sys.stderr)
        return int(error.exit_code)
    except NotInTime as late:
        print(f"bench: {late}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"  {output.bold(name.ljust(width))}  {value:g}")
    if given.json:
        print(json.dumps({"bench": given.name, "machine": here, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
