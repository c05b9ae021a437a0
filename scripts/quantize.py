"""Makes a GGUF file of another quantisation with llama.cpp's own quantiser: for measuring speed.

A file that is quantised already is quantised again, which costs quality: such a file is for nothing but speed.
"""

import ctypes
import os
from pathlib import Path

from node.engine import llama

#: enum llama_ftype.
FILE_TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q4_k_s": 14, "q4_k_m": 15, "q6_k": 18}


def quantize(source: Path, target: Path, kind: str) -> None:
    """`kind`: one of `FILE_TYPES`. Raises `RuntimeError` where the library can not; nothing is left then."""
    llama.start(warn=lambda _: None)
    params = llama.lib.llama_model_quantize_default_params()
    params.nthread = len(os.sched_getaffinity(0))
    params.ftype = FILE_TYPES[kind]
    params.allow_requantize = True
    part = target.with_name(target.name + ".part")
    if llama.lib.llama_model_quantize(bytes(source), bytes(part), ctypes.byref(params)) != 0:
        part.unlink(missing_ok=True)
        raise RuntimeError(f"llama.cpp can not make {kind} of {source}")
    part.rename(target)
