"""llama-server for the bench `engine`: inside this process (package xllamacpp), or a binary of it, over HTTP.

Run by a Python of its own with nothing of ours. Called with one JSON object of settings; says "ready" and what is
measured as JSON: its process and what its kernels use; or "failed" and why. Then a line of JSON in is one workload, a
line out its figures.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any


class InProcess:
    """What the package xllamacpp holds, called without a socket."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import xllamacpp  # type: ignore[import-not-found, unused-ignore]

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
        self._server = xllamacpp.Server(params)
        self.pid = os.getpid()
        self.info = xllamacpp.get_system_info()

    def chunks(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        found: list[tuple[float, dict[str, Any]]] = []

        def on_chunk(chunk: Any) -> bool:
            for part in chunk if isinstance(chunk, list) else [chunk]:
                found.append((time.perf_counter(), json.loads(part) if isinstance(part, str | bytes) else part))
            return False

        self._server.handle_completions(request, on_chunk)
        for at, part in found:
            yield {"at": at, **part}


class Binary:
    """A llama-server of its own process, on a port that it finds."""

    def __init__(self, settings: dict[str, Any]) -> None:
        options = {
            "-m": settings["model"],
            "-c": settings["context_tokens"] * settings["slots"],
            "-np": settings["slots"],
            "-t": settings["threads"],
            "-tb": settings["threads"],
            "-ngl": 0,
            "-fit": "off",
            "-fa": "auto" if settings["flash_attention"] else "off",
            "--host": "127.0.0.1",
            "--port": 0,
        }
        command = [settings["binary"], *(str(word) for option in options.items() for word in option)]
        self.info = _system_info(command)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
                self._port = int(found[1])
                threading.Thread(target=self._drain, daemon=True).start()
                return
        raise SystemExit("".join(said[-10:]))

    def _drain(self) -> None:
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            pass

    def chunks(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(request), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        for line in answer:
            if line.startswith(b"data: ") and line[6:].strip() != b"[DONE]":
                yield {"at": time.perf_counter(), **json.loads(line[6:])}
        connection.close()

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(20)


def _system_info(command: list[str]) -> str:
    """It is only told at a level of the log that costs time: by a first one, that is ended then."""
    with subprocess.Popen([*command, "-lv", "4"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as first:
        assert first.stdout is not None
        told = next((line for line in first.stdout if "system_info" in line), "")
        first.kill()
    return told.partition(" | ")[2].strip()


def main() -> None:
    settings = json.loads(sys.argv[1])
    try:
        server = Binary(settings) if settings["binary"] else InProcess(settings)
    except (Exception, SystemExit) as error:
        print(json.dumps({"failed": f"{error}".strip() or type(error).__name__}), flush=True)
        return
    try:
        print(json.dumps({"ready": server.info, "pid": server.pid}), flush=True)
        for line in sys.stdin:
            print(json.dumps(run(server, **json.loads(line))), flush=True)
    finally:
        if isinstance(server, Binary):
            server.end()


def run(server: InProcess | Binary, prompts: list[str], concurrent: int, max_tokens: int) -> dict[str, Any]:
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
            request = {
                "prompt": prompt,
                "max_tokens": max_tokens,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            for part in server.chunks(request):
                if not first and part.get("choices") and part["choices"][0].get("text"):
                    first = part["at"] - begun
                if part.get("usage"):
                    tokens = part["usage"]["completion_tokens"]
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
