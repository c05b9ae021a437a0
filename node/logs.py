"""The node's log: one rotated file, and the terminal of a node that runs in the foreground. Never prompt text."""

import logging
import logging.handlers
import sys
import traceback
from pathlib import Path

LOG_BYTES_MAX = 5 << 20
LOG_FILES = 3
LEVELS = ("debug", "info", "warning", "error")

logger = logging.getLogger("kith")


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
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(form)
        logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False


def tear_down() -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def where(error: BaseException) -> str:
    """Kind and place of an unexpected error. Its own text is left out: it may quote what people asked."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def log(level: str, text: str) -> None:
    logger.log(logging.getLevelNamesMapping()[level.upper()], text)
