"""llama-server inside a process, for the bench `engine`: run by a Python that has xllamacpp and nothing else.

Called with one JSON object of settings; says "ready"; then a line of JSON in is one workload, a line out its figures.
"""

import json
import sys
import threading
import time
from typing import Any


def main() -> None:
    import xllamacpp  # type: ignore[import-not-found, unused-ignore]

    settings = json.loads(sys.argv[1])
    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.n_ctx = settings["context_tokens"] * settings["slots"]
    params.n_parallel = settings["slots"]
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = settings["threads"]
    params.n_gpu_layers = 0
    params.fit_params = False
    params.ui = False
    params.verbosity = -1
    if not settings["flash_attention"]:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    print("ready", xllamacpp.get_system_info(), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(server, **json.loads(line))), flush=True)


def run(server: Any, prompts: list[str], concurrent: int, max_tokens: int) -> dict[str, Any]:
    """Tokens written, seconds for all, and for every request the seconds until its first text."""
    waiting = list(reversed(prompts))
    lock = threading.Lock()
    firsts: list[float] = []
    counts: list[int] = []

    def worker() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                prompt = waiting.pop()
            begun = time.perf_counter()
            first = 0.0
            tokens = 0

            def on_chunk(chunk: Any, begun: float = begun) -> bool:
                nonlocal first, tokens
                for part in chunk if isinstance(chunk, list) else [chunk]:
                    part = json.loads(part) if isinstance(part, str | bytes) else part
                    if not first and part.get("choices") and part["choices"][0].get("text"):
                        first = time.perf_counter() - begun
                    if part.get("usage"):
                        tokens = part["usage"]["completion_tokens"]
                return False

            request = {
                "prompt": prompt,
                "max_tokens": max_tokens,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            server.handle_completions(request, on_chunk)
            with lock:
                firsts.append(first or time.perf_counter() - begun)
                counts.append(tokens)

    begun = time.perf_counter()
    workers = [threading.Thread(target=worker) for _ in range(concurrent)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    return {"tokens": sum(counts), "seconds": time.perf_counter() - begun, "firsts": firsts}


if __name__ == "__main__":
    main()
