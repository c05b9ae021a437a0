"""LoRA adapters: small files that change what a loaded model says. Loaded with the model, named by a request.

llama.cpp sets adapters for a whole context, so requests with different ones can not share a batch: they take turns. A
change makes the library plan its computation anew, so a turn lasts some steps where others wait, and no longer than one
part of a prompt takes. What a sequence holds was computed under its adapter and is of no use under another.

An adapter's file is from a stranger as a model's is: its header is read with bounds before the library sees it.
"""

import ctypes
from collections.abc import Sequence, Set
from pathlib import Path

from mesh.wire import engine_pb2
from node import gguf
from node.engine import llama
from node.errors import ExitCode, KithError

#: Adapters of a model. Threat: each is a file that is kept in memory.
ADAPTERS_MAX = 32
NAME_CHARACTERS_MAX = 64
#: Steps of a turn while others wait, and rows: whichever comes first.
TURN_STEPS, TURN_ROWS = 8, 128


class Adapters:
    """Those of one model, and which of them its context has now. Everything but the making: the loop's thread."""

    def __init__(self, model: llama.Model, wanted: Sequence[engine_pb2.Adapter]) -> None:
        """Raises `KithError` (`bad-adapter`)."""
        if len(wanted) > ADAPTERS_MAX:
            raise _bad(f"{len(wanted)} adapters are more than {ADAPTERS_MAX}")
        self._loaded: dict[str, tuple[object, float]] = {}
        self._now = ""
        self._steps = self._rows = 0  # of this turn, since others wait
        for one in wanted:
            if not 0 < len(one.name) <= NAME_CHARACTERS_MAX or one.name in self._loaded:
                raise _bad(f"the name {one.name[:NAME_CHARACTERS_MAX]!r} is empty, too long or there twice")
            if not 0 <= one.scale <= 100:
                raise _bad(f"the scale of {one.name} is not within 0 and 100")
            path = Path(one.path)
            _check(path, model.meta("general.architecture"))
            pointer = llama.lib.llama_adapter_lora_init(model.pointer, bytes(path))
            if not pointer:
                raise _bad(f"llama.cpp can not load {path.name} for this model")
            self._loaded[one.name] = (pointer, one.scale or 1.0)

    @property
    def names(self) -> list[str]:
        return list(self._loaded)

    def check(self, name: str) -> None:
        """Raises `KithError` (`bad-request`) for an adapter that is not there. Empty: none is asked for."""
        if name and name not in self._loaded:
            message = f"there is no adapter {name[:NAME_CHARACTERS_MAX]!r} here"
            raise KithError("bad-request", message, "Name one that the node has.", ExitCode.BAD_INPUT)

    def turn(self, context: llama.Context, asked: Set[str]) -> str:
        """Whose turn the step is, of the adapters that are asked for: the one that is set, till its turn ends; then the
        next one in a circle, which is set. Empty: none."""
        if asked == {self._now}:
            self._steps = self._rows = 0
        if self._now in asked and self._steps < TURN_STEPS and self._rows < TURN_ROWS:
            self._steps += 1
            return self._now
        self._steps, self._rows = 1, 0
        ring = ["", *self._loaded]
        begin = ring.index(self._now) + 1
        chosen = next(name for name in ring[begin:] + ring[:begin] if name in asked)
        if chosen != self._now:
            self._set(context, chosen)
        return chosen

    def forget(self) -> None:
        """The context began anew: none is set."""
        self._now = ""

    def filled(self, rows: int) -> None:
        """The step has so many rows."""
        self._rows += rows

    def _set(self, context: llama.Context, name: str) -> None:
        lib = llama.lib
        if name:
            pointer, scale = self._loaded[name]
            adapters, scales = (lib.llama_adapter_lora_p_ctypes * 1)(pointer), (ctypes.c_float * 1)(scale)
            code = lib.llama_set_adapters_lora(context.pointer, adapters, 1, scales)
        else:
            code = lib.llama_set_adapters_lora(context.pointer, None, 0, None)
        assert code == 0
        self._now = name


def _check(path: Path, architecture: str) -> None:
    header = gguf.read_header(path)
    if header.kind != "adapter" or header.adapter != "lora":
        raise _bad(f"{path.name} is no LoRA adapter")
    if header.architecture != architecture:
        raise _bad(f"{path.name} is for the architecture {header.architecture[:40]}, the model is {architecture}")


def _bad(reason: str) -> KithError:
    return KithError("bad-adapter", reason, "Use an adapter made for this model.", ExitCode.BAD_INPUT)
