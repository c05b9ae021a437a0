"""A model file from Hugging Face: the revision resolved to a commit, the file checked by its SHA-256, resumed at will.

Idea: `huggingface_hub` asks the Hub what a revision is and what each file's hash is, and reads the bytes with the
user's own token and proxies. The bytes go to the part of that hash in the store, so that an interrupted pull goes on
where it stopped, in this process or a later one: the library's own download begins anew each time, so its ranged read
is used directly. Imported where it is used: the library is an extra, and takes 0.3 s.

Not guaranteed: that the file is good, only that it is the one which the repository names.

Source: huggingface_hub 2.4, file_download.http_get and HfApi.model_info.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from node.errors import ExitCode, KithError
from node.models.source import HubSource
from node.models.store import Entry, ModelStore, Origin, check_name

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

Progress = Callable[[int, int], None]

INFO_WITHIN_S = 20.0
FILES_NAMED_MAX = 12
_REMEDY_OFFLINE = (
    "Connect to the network; or copy the file here and run kith model pull FILE; "
    "or take it from a node that has it: kith model pull peer:NODE/MODEL"
)


def pull(
    source: HubSource,
    store: ModelStore,
    name: str = "",
    sha256: str = "",
    progress: Progress = lambda _done, _size: None,
) -> Entry:
    """The file in the store, fetched where it is not there. Blocks.

    Args:
        sha256: what the file must be, hex; empty: what the repository says.

    Raises:
        KithError: `no-hub`, `no-network`, `model-unknown`, `model-gated`, `bad-model`, `model-exists`, `disk-full`.
    """
    _require_library()
    name = check_name(name or source.name)
    revision = source.revision or "main"
    with _told(source):
        info = _info(source, revision)
        commit, expected, size = _pinned(source, info)
        if sha256 and sha256.lower() != expected:
            message = f"{source} has the SHA-256 {expected} at {commit[:12]}, not {sha256.lower()}"
            raise KithError("bad-model", message, "Correct --sha256, or name another revision.", ExitCode.BAD_INPUT)
        if (there := store.occupied(name, expected)) is not None:
            return store.pulled_again(there, revision) if there.manifest.source == str(source) else there
        _check_size(source, size)
        with store.part(expected, size) as file:
            _read(source, commit, size, file, progress)
            file.flush()
            os.fsync(file.fileno())
            origin = Origin(str(source), commit, _licence(info), revision)
            return store.finish(store.part_path(expected), name, expected, origin)


def _require_library() -> None:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        message = "hf:// needs the package huggingface-hub, which is not installed"
        remedy = (
            "uv tool install 'kithmesh[hub]', or pipx inject kithmesh huggingface-hub, or pip install 'kithmesh[hub]'; "
            "or copy the file here and run kith model pull FILE"
        )
        raise KithError("no-hub", message, remedy, ExitCode.UNAVAILABLE) from error


def _info(source: HubSource, revision: str) -> "ModelInfo":
    from huggingface_hub import HfApi

    return HfApi(library_name="kithmesh").model_info(
        source.repo, revision=revision, timeout=INFO_WITHIN_S, files_metadata=True
    )


def _pinned(source: HubSource, info: "ModelInfo") -> tuple[str, str, int]:
    """Commit, SHA-256 and size of the file. Raises `KithError`."""
    siblings = info.siblings or []
    found = next((one for one in siblings if one.rfilename == source.file), None)
    if found is None:
        files = [one.rfilename for one in siblings if one.rfilename.lower().endswith(".gguf")]
        said = f"Its GGUF files: {', '.join(files[:FILES_NAMED_MAX])}" if files else "It holds no GGUF file."
        more = f" and {len(files) - FILES_NAMED_MAX} more" if len(files) > FILES_NAMED_MAX else ""
        message = f"the repository {source.repo} has no file {source.file}"
        raise KithError("model-unknown", message, f"{said}{more}", ExitCode.NOT_FOUND)
    if not info.sha or found.lfs is None or not found.lfs.sha256:
        message = f"the repository {source.repo} names no SHA-256 of {source.file}, so it can not be checked"
        raise KithError("bad-model", message, "Take the file from a repository that stores it by LFS.")
    return info.sha, found.lfs.sha256.lower(), found.lfs.size


def _check_size(source: HubSource, size: int) -> None:
    """Raises `KithError` (`bad-model`) for what the library does not read in one request."""
    from huggingface_hub import constants

    if size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        most = constants.MAX_HTTP_DOWNLOAD_SIZE / 1e9
        message = f"{source} has {size / 1e9:.1f} GB, too large for one request, which gives {most:.0f} GB at most"
        remedy = f"hf download {source.repo} {source.file} --local-dir DIR, then kith model pull DIR/{source.file}"
        raise KithError("bad-model", message, remedy, ExitCode.UNAVAILABLE)


def _licence(info: "ModelInfo") -> str:
    card = info.card_data
    name = getattr(card, "license", None)
    if name == "other":
        name = getattr(card, "license_name", None) or name
    return name if isinstance(name, str) else ""


def _read(source: HubSource, commit: str, size: int, file: Any, progress: Progress) -> None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    class Bar(_Bar):
        tell = staticmethod(progress)

    done = file.tell()
    progress(done, size)
    if done == size:
        return
    url = f"{constants.ENDPOINT}/{source.repo}/resolve/{commit}/{quote(source.file)}"
    headers = {**build_hf_headers(library_name="kithmesh"), "Accept-Encoding": "identity"}
    http_get(url, file, resume_size=done, headers=headers, expected_size=size, tqdm_class=Bar)


class _Bar:
    """What the library calls its progress bar: only what it uses of one."""

    tell: Progress

    def __init__(self, *_arguments: Any, total: int = 0, initial: int = 0, **_options: Any) -> None:
        self.n, self.total = initial, total

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, count: int = 1) -> None:
        self.n += count
        self.tell(self.n, self.total)

    def close(self) -> None: ...


@contextlib.contextmanager
def _told(source: HubSource) -> Iterator[None]:
    """Errors of the library in our words; its own warnings are kept from the terminal meanwhile."""
    from huggingface_hub import constants, errors

    httpx2 = _httpx()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    web = f"{constants.ENDPOINT}/{source.repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        message = f"the owner of {source.repo} asks you to accept terms before you may fetch from it"
        remedy = f"Accept them at {web}, make a token there, then: HF_TOKEN=… kith model pull {source}"
        raise KithError("model-gated", message, remedy, ExitCode.UNAVAILABLE) from error
    except errors.RevisionNotFoundError as error:
        message = f"the repository {source.repo} has no revision {source.revision or 'main'}"
        raise KithError("model-unknown", message, f"Look at {web}.", ExitCode.NOT_FOUND) from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        message = f"there is no repository {source.repo}, or it is private"
        remedy = f"Look at {web}; for a private one give a token: HF_TOKEN=… kith model pull {source}"
        raise KithError("model-unknown", message, remedy, ExitCode.NOT_FOUND) from error
    except errors.OfflineModeIsEnabled as error:
        message = "HF_HUB_OFFLINE is set, so nothing is fetched from Hugging Face"
        raise KithError("no-network", message, _REMEDY_OFFLINE, ExitCode.UNAVAILABLE) from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        message = f"Hugging Face answered {code or 'with an error'} for {source}"
        raise KithError("no-network", message, "Try again later; the pull goes on.", ExitCode.UNAVAILABLE) from error
    except (httpx2.TransportError, ConnectionError) as error:
        message = f"{constants.ENDPOINT} can not be reached: {type(error).__name__}"
        raise KithError("no-network", message, _REMEDY_OFFLINE, ExitCode.UNAVAILABLE) from error
    except OSError as error:
        if error.errno is not None:
            raise
        message = f"{source} came to an end too early"
        raise KithError("no-network", message, "Pull again: it goes on.", ExitCode.UNAVAILABLE) from error
    finally:
        logger.setLevel(level)


def _httpx() -> Any:
    import httpx2

    return httpx2
