"""What the daemon may ask of an engine, whatever runs behind it.

Two implementations meet here: `process.EngineProcess`, which the daemon uses, speaks to a child process; the back ends
inside that child (`llama`, `openai`, `echo`) implement `Backend` in `backend.py`.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol, TypeVar

from mesh.wire import engine_pb2

#: What waits in a queue before it is answered: it says on whose behalf, how urgent it is and how long it is of use.
Asked = engine_pb2.GenerateRequest | engine_pb2.ScoreRequest | engine_pb2.EmbedRequest
AskedT = TypeVar("AskedT", engine_pb2.GenerateRequest, engine_pb2.ScoreRequest, engine_pb2.EmbedRequest)


class Engine(Protocol):
    """An engine as the daemon sees it. All methods raise `KithError` (`engine-not-ready`, `engine-gone`, …)."""

    @property
    def state(self) -> str:
        """One of "starting", "ready", "restarting", "failed", "stopped"."""

    @property
    def problem(self) -> str:
        """Why the state is "failed" or "restarting"; empty otherwise."""

    @property
    def stalled(self) -> bool:
        """It runs and does not move: what is in it may never end."""

    @property
    def figures(self) -> engine_pb2.EngineStats:
        """As of its last sign of life: a quarter of a second old, or older where it does not answer."""

    @property
    def loaded(self) -> engine_pb2.EngineLoaded | None:
        """What was loaded; None until ready."""

    @property
    def calibrated(self) -> engine_pb2.Calibrated | None:
        """Measured rates; None until measured."""

    async def start(self) -> None:
        """Spawn, load and calibrate. Raises `KithError` (`bad-model`, `engine-failed`) when the model can not load."""

    def generate(self, request: engine_pb2.GenerateRequest) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
        """Stream events; the last one is `finished` or the iterator raises. Closing the iterator (`aclose`, which every
        early end of a task does as well) cancels. Deltas that were not read in time come joined to one."""

    async def score(self, request: engine_pb2.ScoreRequest) -> engine_pb2.ScoreReply: ...

    async def embed(self, request: engine_pb2.EmbedRequest) -> engine_pb2.EmbedReply: ...

    async def export_kv(self, request: engine_pb2.ExportKvRequest) -> engine_pb2.ExportKvReply:
        """What is held of the tokens' beginning; 0 tokens where nothing is."""

    async def import_kv(self, request: engine_pb2.ImportKvRequest) -> None:
        """Take in what another engine of the same `kv_layout` and model exported. It becomes a cached prefix."""

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special tokens."""

    async def prompt_tokens(self, request: engine_pb2.GenerateRequest) -> list[int]:
        """The tokens that the request's prompt is for this engine."""

    async def stats(self) -> engine_pb2.EngineStats: ...

    async def stop(self) -> None:
        """End the child process and wait until it is gone."""
