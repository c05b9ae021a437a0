"""The `xllamacpp` back end: GGUF models by llama-server's C++ in this process, from a wheel that needs no compiler.

Idea: xllamacpp starts llama.cpp's own server, with its batching, cache and templates, on threads of this process. It is
spoken to as any llama-server is (hosted/llama_server.py), over a Unix socket in a folder that only this user can enter,
with a key that nobody else knows: no port is open. So all that the engine's process is held to holds here as well, and
the file's header is read by our own reader before the loader sees it.

Slower than the `llama` engine on CPUs with more than AVX2, because the wheel is built for any of them.

Not guaranteed: that the folder of a process that was killed is gone at once; the next engine of this user removes it.
"""

import contextlib
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

from mesh.wire import engine_pb2
from node import gguf
from node.engine.backend import at_end
from node.engine.hosted.client import HttpClient
from node.engine.hosted.probe import Found, explore, explore_embedder
from node.engine.hosted.serving import Serving
from node.engine.openai import context_of, loaded_of
from node.engine.threads import take as take_threads
from node.errors import ExitCode, KithError

#: Tokens of one step, and so of the longest text that embeddings are made of.
BATCH_TOKENS = 512
#: Connections beside those of the slots: counting tokens, asking for progress.
CONNECTIONS_MORE = 6

#: Of a Unix socket, on the system that allows the least (macOS).
PATH_BYTES_MAX = 103

_FOLDER = "kith-engine-"
_SOCKET = "model.sock"
#: Says how far the server is: grows with every batch it decodes.
_DECODED = re.compile(r"^llamacpp:n_decode_total (\d+)", re.MULTILINE)


class XllamacppBackend(Serving):
    """Implements `Backend`."""

    def __init__(self) -> None:
        super().__init__("xllamacpp", self._decoded)
        self._client: HttpClient
        self._server: Any = None  # held: it ends with its last reference

    def load(self, command: engine_pb2.LoadModel) -> engine_pb2.EngineLoaded:
        begun = time.monotonic()
        header = gguf.read_header(Path(command.path))
        slots = max(1, command.slots)
        wanted = gguf.slot_tokens(header, command.context_tokens)
        library = import_library()
        threads = take_threads(command.threads)  # after the library: of two that start at once, each sees the other
        path = _new_folder() / _SOCKET
        at_end.append(lambda: shutil.rmtree(path.parent, ignore_errors=True))
        key = secrets.token_urlsafe(32)
        pooling = header.vector_pooling()
        self._server = start_server(library, command, wanted, slots, threads, pooling, str(path), key)
        self._client = HttpClient("http://engine/v1", key, "", slots + CONNECTIONS_MORE, str(path))
        trials = explore_embedder(self._client) if header.embeds_only else explore(self._client, "")
        found: Found = self.run(trials)
        context_tokens = context_of(found, wanted)
        self.use(found.dialect, found.abilities, slots, context_tokens)
        loaded = loaded_of(found, context_tokens, slots)
        loaded.threads = threads
        loaded.licence = header.licence
        loaded.architecture = header.architecture
        loaded.quantization = header.quantization
        loaded.model_bytes = header.file_bytes
        loaded.trained_context_tokens = header.context_tokens
        loaded.system_info = f"xllamacpp {library.__version__}: {library.get_system_info().strip(' |')}"
        loaded.load_seconds = time.monotonic() - begun
        return loaded

    async def _decoded(self) -> int:
        found = _DECODED.search(await self._client.text("/metrics", root=True))
        return int(found[1]) if found else 0


def import_library() -> Any:
    """The module `xllamacpp`. Raises `KithError` (`engine-failed`) where it is not there or can not run here."""
    try:
        import xllamacpp
    except ImportError as error:
        remedy = "Install it: pip install 'kithmesh[xllamacpp]'."
        message = f"the engine xllamacpp can not be loaded: {error}"
        raise KithError("engine-failed", message, remedy, ExitCode.CANNOT_START) from error
    return xllamacpp


def start_server(
    library: Any,
    command: engine_pb2.LoadModel,
    context_tokens: int,
    slots: int,
    threads: int,
    pooling: int,
    path: str,
    key: str,
) -> Any:
    """The server, loaded and listening on the Unix socket `path`. Raises `KithError` (`bad-model`)."""
    params = library.CommonParams()
    try:
        _set(params, library, command, context_tokens, slots, threads, pooling)
    except AttributeError as error:
        message = f"xllamacpp {library.__version__} is not a release that this engine knows"
        remedy = "Install one that it knows: pip install 'kithmesh[xllamacpp]'."
        raise KithError("engine-failed", message, remedy, ExitCode.CANNOT_START) from error
    params.hostnames = [path]
    params.api_keys = [key]
    try:
        return library.Server(params)
    except RuntimeError as error:
        message = f"llama.cpp can not load the model {Path(command.path).name}"
        raise KithError("bad-model", message, "Try another GGUF file, or less --ctx.", ExitCode.BAD_INPUT) from error


def _set(
    params: Any,
    library: Any,
    command: engine_pb2.LoadModel,
    context_tokens: int,
    slots: int,
    threads: int,
    pooling: int,
) -> None:
    params.model.path = command.path
    params.model_alias = {Path(command.path).stem}
    params.n_ctx = context_tokens * slots
    params.n_parallel = slots
    params.n_gpu_layers = command.gpu_layers
    params.n_batch = params.n_ubatch = min(BATCH_TOKENS, context_tokens)
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = threads
    params.n_threads_http = slots + CONNECTIONS_MORE
    params.hostnames, params.api_keys = [], []
    params.endpoint_metrics = True
    params.endpoint_slots = params.ui = False
    params.embedding = True  # of a model that writes too, completions come from the same context
    params.pooling_type = library.llama_pooling_type(pooling)
    params.cache_ram_mib = command.spill_bytes >> 20
    params.fit_params = False  # what the user asked for, or an error
    params.verbosity = -1  # prompts stay out of the log


def _new_folder() -> Path:
    """A folder of this user alone for a socket; those that dead engines left are removed."""
    base = _base()
    for left in base.glob(f"{_FOLDER}*"):
        with contextlib.suppress(OSError):
            info = left.lstat()
            if info.st_uid == os.geteuid() and stat.S_ISDIR(info.st_mode) and not _answers(left / _SOCKET):
                shutil.rmtree(left)
    return Path(tempfile.mkdtemp(prefix=_FOLDER, dir=base))


def _base() -> Path:
    """Where sockets may be. Not `tempfile.gettempdir`, which writes a file to see whether it can."""
    for name in (os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"), "/tmp"):
        short = name and len(os.fsencode(name)) + len(_FOLDER) + 8 + 1 + len(_SOCKET) <= PATH_BYTES_MAX
        if name and short and os.access(name, os.W_OK | os.X_OK):
            return Path(name)
    message = "there is no folder where the engine could make a socket"
    raise KithError("engine-failed", message, "Let $TMPDIR name one with a short path.", ExitCode.CANNOT_START)


def _answers(path: Path) -> bool:
    """Whether somebody listens on the socket, or may be about to."""
    if not path.exists():
        return time.time() - path.parent.lstat().st_mtime < 60
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True
