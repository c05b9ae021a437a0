"""What a user may write where a model is meant: a path, a name in the store, hf://…, peer:…, or a hash.

Does not: fetch anything.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from node.errors import ExitCode, KithError
from node.models.default import default_model_path
from node.models.store import SPLIT_PATTERN, Entry, Manifest, ModelStore
from node.paths import expanded

HUB_PREFIX, PEER_PREFIX, HASH_PREFIX = "hf://", "peer:", "sha256:"
_WORD = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB = re.compile(rf"hf://({_WORD})/({_WORD})/((?:[\w.+-]+/){{0,8}}[\w.+-]+)(?:@([\w./-]{{1,200}}))?")
_BAD = ExitCode.BAD_INPUT


@dataclass(frozen=True)
class HubSource:
    """`revision`: a branch, a tag or a commit; empty: the main branch."""

    repo: str  # org/name
    file: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{HUB_PREFIX}{self.repo}/{self.file}"

    @property
    def name(self) -> str:
        return self.file.rpartition("/")[2]


@dataclass(frozen=True)
class PeerSource:
    """`node` empty: any. One of `model` and `sha256` (hex) is given."""

    node: str = ""
    model: str = ""
    sha256: str = ""


Source = HubSource | PeerSource | Path


def parse(text: str) -> Source:
    """Raises `KithError` (`bad-model`) for what can not be meant."""
    if text.startswith(HUB_PREFIX):
        return _hub(text)
    if text.startswith(PEER_PREFIX):
        node, slash, model = text.removeprefix(PEER_PREFIX).partition("/")
        if not slash or not node or not model:
            raise KithError("bad-model", f"{text!r} names no node and model", "Write it as peer:NODE/MODEL.", _BAD)
        return PeerSource(node, sha256=found) if (found := _hash(model)) else PeerSource(node, model)
    if found := _hash(text):
        return PeerSource(sha256=found)
    if text.startswith(HASH_PREFIX):
        raise KithError("bad-model", f"{text!r} is no SHA-256", "Write it as sha256: and 64 hex digits.", _BAD)
    return expanded(text)


def is_hub(text: str) -> bool:
    return text.startswith(HUB_PREFIX)


def resolve_model(spec: str, store: ModelStore | None = None) -> Path:
    """The file that a user means: a path, a name in the store, an `hf://` that was pulled, or with "" the default one.

    Raises `KithError` (`bad-model`) when there is no such file here.
    """
    if not spec:
        return default_model_path()
    store = store or ModelStore()
    if is_hub(spec):
        if (pulled := pulled_from(_hub(spec), store)) is None:
            raise KithError("bad-model", f"{spec} was not pulled yet", f"kith model pull {spec}", _BAD)
        return pulled.path
    path = expanded(spec)
    if path.is_dir():
        raise KithError("bad-model", f"{path} is a folder, not a model file", "Name the GGUF file in it.", _BAD)
    if path.exists():
        return path
    if "/" not in spec and (entry := store.find(spec)) is not None:
        return entry.path
    names = [entry.name for entry in store.entries()]
    near = difflib.get_close_matches(spec, [*names, *(name.removesuffix(".gguf") for name in names)], 1, 0.5)
    remedy = "Correct --model, or leave it out for the default model."
    if near:
        remedy = f"Did you mean {near[0]}? kith model list shows what is here."
    where = "" if "/" in spec else f", nor a model of that name in {store.folder}"
    raise KithError("bad-model", f"there is no model file {path}{where}", remedy, _BAD)


def pulled_from(source: HubSource, store: ModelStore) -> Entry | None:
    """The file in the store that came from there, by this revision; the newest, where none is asked for."""
    found = [
        entry
        for entry in store.entries()
        if entry.manifest.source == str(source) and _is_of(entry.manifest, source.revision)
    ]
    return max(found, key=lambda entry: entry.manifest.added_ms, default=None)


def _is_of(manifest: Manifest, revision: str) -> bool:
    if not revision or revision in manifest.pulled_as.split():
        return True
    if re.fullmatch(r"[0-9a-f]{7,40}", revision):
        return manifest.revision.startswith(revision)
    return not manifest.pulled_as  # earlier releases did not note by which branch or tag they pulled


def _hub(text: str) -> HubSource:
    found = _HUB.fullmatch(text)
    if found is None or ".." in text or not found[3].lower().endswith(".gguf"):
        remedy = "Write it as hf://ORG/REPO/FILE.gguf, with @REVISION where you want a certain one."
        raise KithError("bad-model", f"{text!r} names no GGUF file on Hugging Face", remedy, _BAD)
    if SPLIT_PATTERN.search(found[3]):
        message = f"{found[3]} is one of several files of a model, which can not be pulled"
        raise KithError("bad-model", message, "Choose a quantisation that is one file.", _BAD)
    return HubSource(f"{found[1]}/{found[2]}", found[3], found[4] or "")


def _hash(text: str) -> str:
    digits = text.removeprefix(HASH_PREFIX).lower()
    return digits if re.fullmatch(r"[0-9a-f]{64}", digits) else ""
