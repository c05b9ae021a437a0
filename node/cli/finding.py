"""What a check of `kith doctor` found.

"fail" means that a node can not run, be reached or be trusted; "warn" that something is missing that it can live
without.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    check: str
    level: str  # "ok", "warn", "fail"
    message: str
    remedy: str = ""


def ok(check: str, message: str) -> Finding:
    return Finding(check, "ok", message)


def warn(check: str, message: str, remedy: str) -> Finding:
    return Finding(check, "warn", message, remedy)


def fail(check: str, message: str, remedy: str) -> Finding:
    return Finding(check, "fail", message, remedy)
