"""What both back ends of llama.cpp begin with: the header, the library, the threads, the model, a thread of their own.

An error that the library calls fatal ends the process: the daemon starts a new one.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mesh.wire import engine_pb2
from node import gguf
from node.engine import llama
from node.engine.threads import take as take_threads

#: Rows of the first batch, read while loading: enough for the kernels that work on many rows.
WARM_UP_TOKENS = 16
#: Exit status of a process whose context broke (EX_SOFTWARE).
EXIT_BROKEN = 70


class FatalDecodeError(Exception):
    """The context can not be used any more; the process has to end."""


@dataclass(frozen=True)
class Opened:
    """A file in memory."""

    path: Path
    header: gguf.GgufHeader
    model: llama.Model
    threads: int
    begun: float  # time.monotonic() before it was read

    def loaded(self, context_tokens: int, slots: int) -> engine_pb2.EngineLoaded:
        """What can be said of every model; called when all is ready."""
        return engine_pb2.EngineLoaded(
            model=self.path.stem,
            parameters=self.model.parameters,
            model_bytes=self.header.file_bytes,
            quantization=self.header.quantization,
            context_tokens=context_tokens,
            slots=slots,
            threads=self.threads,
            load_seconds=time.monotonic() - self.begun,
            licence=self.header.licence,
            architecture=self.header.architecture,
            vocabulary_size=self.model.vocabulary_size,
            trained_context_tokens=self.model.trained_context_tokens,
            system_info=llama.system_info(),
            has_chat_template=bool(self.header.chat_template),
            embedding_size=self.model.embedding_size,
        )


def opened(command: engine_pb2.LoadModel) -> Opened:
    """Raises `KithError` (`bad-model`, `engine-failed`)."""
    begun = time.monotonic()
    path = Path(command.path)
    header = gguf.read_header(path)
    llama.start(warn=warn)
    threads = take_threads(command.threads)
    model = llama.Model(path, command.gpu_layers, command.plain_kernels)
    return Opened(path, header, model, threads, begun)


def start_loop(run: Callable[[], None]) -> None:
    """Have a thread of its own run it for ever; the process ends with it."""
    threading.Thread(target=_run, args=(run,), name="llama", daemon=True).start()


def _run(run: Callable[[], None]) -> None:
    try:
        run()
    except FatalDecodeError as error:
        warn(f"the engine broke: {error}")
    except BaseException as error:  # the thread must not die alone; no message: it could quote a prompt
        frames = "".join(traceback.format_tb(error.__traceback__))
        warn(f"the engine broke: {type(error).__name__}\n{frames}")
    sys.stderr.flush()
    os._exit(EXIT_BROKEN)


def warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
