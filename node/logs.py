"""The node's log: one rotated file, and the terminal of a node that runs in the foreground. Never prompt text.

What a library catches of our own faults (a callback of asyncio, a handler of gRPC or of the HTTP server) it would print
with a traceback, whose text may quote anything. Here it becomes a line like any other: kind and place.
"""

import logging
import logging.handlers
import sys
import traceback
from pathlib import Path

from node.once import Once

LOG_BYTES_MAX = 5 << 20
LOG_FILES = 3
LEVELS = ("debug", "info", "warning", "error")
#: Libraries that catch faults of ours, by the names of their loggers.
CATCHERS = ("asyncio", "grpc", "uvicorn")
#: The same fault is told again after this, seconds.
FAULT_AGAIN_S = 60.0

logger = logging.getLogger("kith")


class _Faults(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._once = Once(FAULT_AGAIN_S)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        what = where(error) if error is not None else str(record.msg).partition("\n")[0]
        said = f"{record.name.partition('.')[0]}: {what}"
        if self._once.due(said):
            logger.error("%s", said)


def set_up(path: Path, level: str, *, terminal: bool) -> None:
    """Send the log to `path`, and with `terminal` to standard error too. `level` is one of LEVELS."""
    assert level in LEVELS
    path.parent.mkdir(parents=True, exist_ok=True)
    form = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    file_handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES - 1, encoding="utf-8"
    )
    handlers: list[logging.Handler] = [file_handler]
    if terminal:
        handlers.append(logging.StreamHandler(sys.stderr))
    tear_down()
    for handler in handlers:
        handler.setFormatter(form)
        logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    faults = _Faults()
    for name in CATCHERS:
        logging.getLogger(name).addHandler(faults)


def tear_down() -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
    for catcher in map(logging.getLogger, CATCHERS):
        for handler in [one for one in catcher.handlers if isinstance(one, _Faults)]:
            catcher.removeHandler(handler)


def where(error: BaseException) -> str:
    """Kind and place of an unexpected error. Its own text is left out: it may quote what people asked."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def log(level: str, text: str) -> None:
    logger.log(logging.getLevelNamesMapping()[level.upper()], text)


def say(text: str) -> None:
    """For those that tell a person how far they are, in one text."""
    log("info", text)
