"""Where each setting of a node comes from: command line, then environment, then file, then default.

Idea: one table of settings. Each knows how to read itself from a word (command line, environment) and from a TOML
value, and what is allowed; every complaint names the origin of the value that it is about. An unknown key in the file
is an error with the nearest known one, because a setting that is silently ignored is the worst kind of wrong.

The environment variable of `gpu_layers` is KITH_GPU_LAYERS, and so on; lists are separated by commas there.
"""

import difflib
import os
import re
import tomllib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from node.addresses import split_address
from node.config import NodeConfig
from node.engine.installed import default_engine
from node.errors import ExitCode, KithError
from node.paths import NodePaths

DEFAULT = "default"
#: Largest configuration file read, bytes.
FILE_BYTES_MAX = 1024 * 1024

Value = str | int | float | bool | tuple[str, ...]
#: Checks a value; a sentence about what is wrong with it, or nothing.
Check = Callable[[Any], str]


@dataclass(frozen=True)
class Setting:
    name: str  # field of NodeConfig and key in the file
    kind: type  # str, int, float, bool or tuple (of str)
    check: Check
    option: str = ""  # on the command line of `kith up`; empty: not there
    words: str = ""  # what the value must be, for messages


def _any(_value: Any) -> str:
    return ""


def _between(low: float, high: float, or_zero: bool = False) -> Check:
    def check(value: float) -> str:
        if low <= value <= high or (or_zero and value == 0):
            return ""
        return f"must be {'0 or ' if or_zero else ''}from {low:,} to {high:,}"

    return check


def _one_of(*names: str) -> Check:
    def check(value: str) -> str:
        if value in names:
            return ""
        near = difflib.get_close_matches(value, names, 1)
        return f"must be one of {', '.join(names)}" + (f"; did you mean {near[0]}?" if near else "")

    return check


def _address(value: str) -> str:
    if value and split_address(value) is None:
        return "must be HOST:PORT, as in 127.0.0.1:7420 or [::1]:7420"
    return ""


def _addresses(values: tuple[str, ...]) -> str:
    if len(values) > 64:
        return "may name at most 64 addresses"
    for value in values:
        parts = split_address(value)
        if parts is None or parts[1] == 0:
            return f"must be HOST:PORT, as in 192.168.1.20:7420, not {value!r}"
    return ""


def _http(value: str) -> str:
    if not value:
        return ""
    if split_address(value) is None:
        return "must be HOST:PORT, as in 127.0.0.1:8420"
    return ""


def _hosts(values: tuple[str, ...]) -> str:
    if len(values) > 64:
        return "may name at most 64 hosts"
    for value in values:
        if not re.fullmatch(r"(\*\.)?[\w.:-]{1,253}", value):
            return f"must be names or addresses of this node, without a port, not {value!r}"
    return ""


def _models(values: tuple[str, ...]) -> str:
    return "may name at most 15 models beside the first" if len(values) > 15 else ""


def _label(value: str) -> str:
    if len(value) > 64:
        return "may have at most 64 characters"
    return "" if value.isprintable() else "must be printable, on one line"


def _sha256(value: str) -> str:
    return "" if re.fullmatch(r"([0-9a-fA-F]{64})?", value) else "must be 64 hex digits"


def _adapters(values: tuple[str, ...]) -> str:
    for value in values:
        name, _, path = value.partition("=")
        if not 0 < len(name) <= 64 or not path:
            return f"must be texts of the form NAME=PATH, not {value!r}"
    return ""


def _url(value: str) -> str:
    if value and not value.startswith(("http://", "https://")):
        return "must start with http:// or https://"
    return ""


SETTINGS: tuple[Setting, ...] = (
    Setting("name", str, _label, "--name"),
    Setting("listen", str, _address, "--listen"),
    Setting("seeds", tuple, _addresses, "--seed"),
    Setting("interfaces", tuple, _any, "--interface"),
    Setting("mdns", bool, _any, "--no-mdns"),
    Setting("network", str, _one_of("lan", "wan", "local"), "--network"),
    Setting("disk_budget_mb", int, _between(64, 1 << 30, or_zero=True), "--disk-budget"),
    Setting("engine", str, _one_of("llama", "xllamacpp", "openai", "echo"), "--engine"),
    Setting("model", str, _any, "--model"),
    Setting("more_models", tuple, _models),
    Setting("memory_budget_mb", int, _between(64, 1 << 30, or_zero=True), "--memory-budget"),
    Setting("model_sha256", str, _sha256),
    Setting("engine_url", str, _url, "--engine-url"),
    Setting("engine_key_env", str, _any),
    Setting("slots", int, _between(1, 256), "--slots"),
    Setting("ctx", int, _between(256, 1_048_576, or_zero=True), "--ctx"),
    Setting("threads", int, _between(0, 1024), "--threads"),
    Setting("adapters", tuple, _adapters),
    Setting("gpu_layers", int, _between(-1, 9999), "--gpu-layers"),
    Setting("kv_cache", str, _one_of("auto", "split", "unified")),
    Setting("http", str, _http, "--http"),
    Setting("http_cert", str, _any),
    Setting("http_key", str, _any),
    Setting("http_hosts", tuple, _hosts),
    Setting("echo_tokens_per_s", float, _between(0.1, 1_000_000)),
    Setting("log_level", str, _one_of("debug", "info", "warning", "error"), "--log-level"),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


def environment_name(setting: str) -> str:
    return f"KITH_{setting.upper()}"


def load_config(
    data_dir: Path,
    given: Mapping[str, Value | None],
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> NodeConfig:
    """The settings of the node under `data_dir`, each with its origin in `NodeConfig.origins`.

    Args:
        given: what the command line says, by setting; None is "not given".
        environment: by default that of this process.
        file: must exist where given; else `node.toml` in the data directory is read if it is there.

    Raises:
        KithError: `bad-config`, exit code USAGE.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    origins = {setting.name: DEFAULT for setting in SETTINGS}

    def take(setting: Setting, value: Any, origin: str) -> None:
        if wrong := setting.check(value):
            found = "" if isinstance(value, tuple) else f", not {_show(value)}"  # a list's check names the one
            raise _bad(f"{origin}: {setting.name} {wrong}{found}")
        values[setting.name] = value
        origins[setting.name] = origin

    path = file or NodePaths(data_dir).config
    for key, value in _read_file(path, required=file is not None).items():
        setting = _BY_NAME.get(key)
        if setting is None:
            near = difflib.get_close_matches(key.replace("-", "_"), _BY_NAME, 1)
            hint = f"did you mean {near[0]}?" if near else f"known settings: {', '.join(_BY_NAME)}"
            raise _bad(f"{path}: there is no setting {key!r}", hint)
        origin = f"{path}, key {key}"
        take(setting, _from_toml(setting, value, origin, path.parent), origin)
    for setting in SETTINGS:
        variable = environment_name(setting.name)
        if (word := environment.get(variable)) is not None:
            take(setting, _from_word(setting, word, f"${variable}"), f"${variable}")
    for name, value in given.items():
        if value is not None:
            setting = _BY_NAME[name]
            take(setting, value, f"option {setting.option or '--model'}")

    if values.get("engine") == "openai" and not values.get("engine_url"):
        raise _bad(
            f"{origins['engine']}: the engine openai needs engine_url",
            "give it, as in: --engine-url http://127.0.0.1:11434/v1",
        )
    values.setdefault("engine", default_engine())
    if values.get("more_models") and values["engine"] != "llama":
        raise _bad(f"{origins['more_models']}: several models need the engine llama", "run a node for each other one")
    return NodeConfig(data_dir=data_dir, origins=origins, **values)


def defaults() -> dict[str, Value]:
    """Each setting's default."""
    return {field.name: field.default for field in fields(NodeConfig) if field.name in _BY_NAME}  # type: ignore[misc]


def _bad(message: str, remedy: str = "correct it and try again; `kith config show` prints what counts") -> KithError:
    return KithError("bad-config", message, remedy, ExitCode.USAGE)


def _show(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else repr(value)


def _read_file(path: Path, required: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        if not required:
            return {}
        raise _bad(f"there is no configuration file {path}", "name one that exists with --config") from error
    except NotADirectoryError:
        return {}  # the data directory itself is wrong, which the daemon says better
    except OSError as error:
        raise _bad(f"{path} can not be read: {error.strerror}", "make it readable") from error
    if len(data) > FILE_BYTES_MAX:
        raise _bad(f"{path} is larger than 1 MiB, so it is no configuration file", "name another one with --config")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise _bad(f"{path} is not UTF-8 text", "save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise _bad(f"{path} is not valid TOML: {error}") from error


def _from_toml(setting: Setting, value: Any, origin: str, base: Path) -> Value:
    kind = setting.kind
    if kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        if setting.name == "more_models":
            return tuple(str((base / one).resolve()) if one.startswith(("./", "../")) else one for one in value)
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is not tuple and type(value) is kind:
        # A relative path in the file is relative to the file, not to wherever `kith` was started.
        if setting.name in ("model", "http_cert", "http_key") and str(value).startswith(("./", "../")):
            return str((base / str(value)).resolve())
        return typing.cast(Value, value)
    wanted = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}
    words = wanted.get(kind, 'a list of texts, as in ["192.168.1.20:7420"]')
    raise _bad(f"{origin}: must be {words}, not {value!r}")


def _from_word(setting: Setting, word: str, origin: str) -> Value:
    if setting.kind is tuple:
        return tuple(part.strip() for part in word.split(",") if part.strip())
    if setting.kind is bool:
        lowered = word.strip().lower()
        if lowered in ("1", "true", "yes", "on"):
            return True
        if lowered in ("0", "false", "no", "off"):
            return False
        raise _bad(f"{origin}: must be true or false, not {word!r}")
    if setting.kind in (int, float):
        try:
            number: int | float = setting.kind(word)
        except ValueError as error:
            kind = "a whole number" if setting.kind is int else "a number"
            raise _bad(f"{origin}: must be {kind}, not {word!r}") from error
        return number
    return word
