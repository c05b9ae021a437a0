"""Reading the JSON bodies of clients, field by field, so that a refusal names the field (`param`).

Idea: a field is honoured, harmless to ignore, or refused: never dropped in silence where that would change what the
answer means. Names of fields that nobody knows are ignored, as other servers do.

Threat: JSON that no other format of ours can hold (half characters, NaN, numbers without end), and bodies without end.
"""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request

from node.errors import ExitCode, KithError
from node.limits import BODY_BYTES_MAX, REQUEST_WITHIN_S

#: Nesting of a body: what reads it further down goes by recursion.
DEPTH_MAX = 64


class Refused(KithError):
    """A request that can not be honoured. `param`: the field, as the client wrote it; empty: the whole."""

    def __init__(
        self,
        message: str,
        param: str = "",
        remedy: str = "See docs/http.md for what is honoured.",
        code: str = "bad-request",
        exit_code: ExitCode = ExitCode.BAD_INPUT,
    ) -> None:
        super().__init__(code, message, remedy, exit_code)
        self.param = param


async def json_body(request: Request) -> dict[str, Any]:
    """Raises `KithError`: `bad-request`, `too-large`, `too-slow`."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refused("the body is not declared as application/json")
    declared = request.headers.get("content-length", "")
    raw = bytearray()
    try:
        async with asyncio.timeout(REQUEST_WITHIN_S):
            if declared.isascii() and declared.isdigit() and len(declared) < 20 and int(declared) > BODY_BYTES_MAX:
                raise _too_large()
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > BODY_BYTES_MAX:
                    raise _too_large()
    except TimeoutError:
        raise KithError("too-slow", f"the body did not come within {REQUEST_WITHIN_S:g} s", "Send it again.") from None
    return parsed(bytes(raw))


def parsed(raw: bytes) -> dict[str, Any]:
    """A request's body. Raises `Refused`."""
    try:
        body = json.loads(raw, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise Refused("the body is not JSON") from error
    if not isinstance(body, dict):
        raise Refused("the body is not a JSON object")
    if _deeper_than(body, DEPTH_MAX):
        raise Refused(f"the body is nested deeper than {DEPTH_MAX} levels")
    return body


def text(value: Any, param: str) -> str:
    """JSON can hold half of a character, which no other format of ours can."""
    if not isinstance(value, str):
        raise Refused(f"{param} is not a text", param)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(f"{param} holds half of a character (a lone surrogate)", param) from None
    return value


def texts(value: Any, param: str, most: int, remedy: str = "Send the text.") -> list[str]:
    """One text, or a list of at most `most`."""
    if isinstance(value, str):
        return [text(value, param)]
    given = listing(value, param, most)
    if any(isinstance(one, int | list) for one in given):
        raise Refused(f"{param} holds token ids, which mean something else to each model", param, remedy, "unsupported")
    return [text(one, f"{param}[{i}]") for i, one in enumerate(given)]


def number(body: Mapping[str, Any], key: str, default: float, least: float, most: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise Refused(f"{key} is not a number from {_written(least)} to {_written(most)}", key)
    return value


def _written(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:,g}"


def integer(body: Mapping[str, Any], key: str, default: int, least: int, most: int) -> int:
    value = number(body, key, default, least, most)
    if not math.isfinite(value) or value != int(value):
        raise Refused(f"{key} is not a whole number", key)
    return int(value)


def flag(body: Mapping[str, Any], key: str, default: bool = False) -> bool:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Refused(f"{key} is neither true nor false", key)
    return value


def mapping(value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(f"{param} is not an object", param)
    return value


def listing(value: Any, param: str, most: int) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise Refused(f"{param} is no list of 1 to {most:,} entries", param)
    return value


def canonical(value: Any, param: str) -> str:
    """JSON text of a part of the body. Raises `Refused` for half characters and for numbers that JSON has not."""
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise Refused(f"{param} holds a number that JSON does not have", param) from None
    return text(written, param)


def echoed(value: Any, param: str) -> Any:
    """A part of the body as it goes back to the client. Raises `Refused` for what can not be sent."""
    canonical(value, param)
    return value


def refuse(body: Mapping[str, Any], why: Mapping[str, str], harmless: Sequence[Any] = ()) -> None:
    """Raises `Refused` for the first of these fields that is there and asks for anything.

    Args:
        why: field → why it can not be honoured, a sentence's end after "FIELD is not honoured: ".
        harmless: values that ask for nothing, beside null, false, 0 and what is empty.
    """
    for key, reason in why.items():
        value = body.get(key)
        if value and value not in harmless:
            raise Refused(f"{key} is not honoured: {reason}", key, "Leave it out.", code="unsupported")


def _finite(written: str) -> float:
    """Python's reader takes NaN, Infinity and 1e999, which nobody can be sent back."""
    value = float(written)
    if not math.isfinite(value):
        raise ValueError(written)
    return value


def _deeper_than(value: Any, levels: int) -> bool:
    """Without recursion: JSON's own reader may go deeper than ours."""
    layer = [value]
    for _ in range(levels):
        inner: list[Any] = []
        for one in layer:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        layer = [one for one in inner if isinstance(one, dict | list)]
        if not layer:
            return False
    return True


def _too_large() -> KithError:
    return KithError(
        "too-large", f"the body is larger than {BODY_BYTES_MAX} bytes", "Send less at a time.", ExitCode.BAD_INPUT
    )
