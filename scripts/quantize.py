"""Makes a GGUF file of another quantisation with llama.cpp's own quantiser: for measuring speed.

A file that is quantised already is quantised again, which costs quality: such a file is for nothing but speed.
"""

import ctypes
import re
from pathlib import Path

from node.engine import llama
from node.engine.threads import cores

#: enum llama_ftype.
FILE_TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q4_k_s": 14, "q4_k_m": 15, "q6_k": 18}


def quantize(source: Path, target: Path, kind: str) -> int:
    """Returns how many matrices got another kind, because theirs does not fit their rows. Raises `RuntimeError` where
    the library can not; nothing is left then.

    Args:
        kind: one of `FILE_TYPES`.
    """
    llama.start(warn=lambda _: None)
    replaced = 0

    def on_log(_level: int, text: bytes | None, _data: object) -> None:
        nonlocal replaced
        if told := re.search(rb"(\d+) of \d+ tensor\(s\) required fallback", text or b""):
            replaced = int(told[1])

    callback = llama.lib.llama_log_callback(on_log)
    llama.lib.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        _quantize(source, target, kind)
    finally:
        llama.lib.llama_log_set(llama._log_callback, ctypes.c_void_p(0))
    return replaced


def _quantize(source: Path, target: Path, kind: str) -> None:
    params = llama.lib.llama_model_quantize_default_params()
    params.nthread = cores()
    params.ftype = FILE_TYPES[kind]
    params.allow_requantize = True
    part = target.with_name(target.name + ".part")
    if llama.lib.llama_model_quantize(bytes(source), bytes(part), ctypes.byref(params)) != 0:
        part.unlink(missing_ok=True)
        raise RuntimeError(f"llama.cpp can not make {kind} of {source}")
    part.rename(target)
