"""The `openai` back end: a model that another server holds (Ollama, llama-server, vLLM, a Ray Serve app, a hosted one).

What the server can do is tried when the engine starts (hosted/probe.py), and the profile says that; llama-server is
spoken to in its own API, which can do more. The same rates are measured as of any engine.

The key is read from the environment variable that the configuration names, and goes nowhere but to that server.
"""

import os
import time
from pathlib import Path

from mesh.wire import engine_pb2
from node.engine.hosted.client import HttpClient
from node.engine.hosted.probe import Found, explore
from node.engine.hosted.serving import Serving
from node.errors import ExitCode, KithError

#: Where neither the user nor the server says how much fits.
CONTEXT_TOKENS_DEFAULT = 4096
#: Connections beside those of the slots: counting tokens, and trying what the server can do.
CONNECTIONS_MORE = 4


class OpenaiBackend(Serving):
    """Implements `Backend`."""

    def __init__(self) -> None:
        super().__init__("openai")

    def load(self, command: engine_pb2.LoadModel) -> engine_pb2.EngineLoaded:
        url = command.base_url.rstrip("/")
        if not url.startswith(("http://", "https://")):
            message = f"the engine's URL {command.base_url!r} is none of http or https"
            remedy = "Give it by --engine-url, for example http://127.0.0.1:11434/v1."
            raise KithError("bad-request", message, remedy, ExitCode.BAD_INPUT)
        key = os.environ.get(command.key_env, "") if command.key_env else ""
        slots = max(1, command.slots)
        begun = time.monotonic()
        client = HttpClient(url, key, command.key_env, slots + CONNECTIONS_MORE)
        found = self.run(explore(client, command.model_name))
        context_tokens = context_of(found, command.context_tokens)
        self.use(found.dialect, found.abilities, slots, context_tokens)
        counts = "exact" if found.counts_tokens else "estimated where the server gives none"
        loaded = loaded_of(found, context_tokens, slots)
        loaded.load_seconds = time.monotonic() - begun
        loaded.system_info = f"{found.kind} at {url}; token counts are {counts}"
        return loaded


def context_of(found: Found, wanted: int) -> int:
    """Tokens of one request: what the server allows, less where the user wants less."""
    told = found.context_tokens
    return min(wanted or told, told) if told else wanted or CONTEXT_TOKENS_DEFAULT


def loaded_of(found: Found, context_tokens: int, slots: int) -> engine_pb2.EngineLoaded:
    return engine_pb2.EngineLoaded(
        model=Path(found.model).stem if found.model.endswith(".gguf") else found.model,
        parameters=found.parameters,
        model_bytes=found.model_bytes,
        quantization=found.quantization,
        context_tokens=context_tokens,
        slots=slots,
        abilities=found.abilities,
        architecture="hosted",
        vocabulary_size=found.vocabulary_size,
        trained_context_tokens=found.trained_context_tokens or context_tokens,
        has_chat_template=found.has_chat_template,
        embedding_size=found.embedding_size,
    )
