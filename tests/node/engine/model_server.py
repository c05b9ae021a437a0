"""A real llama-server for tests, in a process of its own: `python -m tests.node.engine.model_server MODEL`.

It prints its address and lives until its standard input ends. It asks for `KEY`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY = "sesame"
MODEL = "small"
CONTEXT_TOKENS = 1024


def main(path: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {MODEL}
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.endpoint_metrics = True
    params.fit_params = params.ui = False
    params.cache_ram_mib = 0
    params.verbosity = -1
    params.api_keys = [KEY]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)


@contextmanager
def llama_server(model_path: Path) -> Iterator[str]:
    """Its base URL, with /v1."""
    command = [sys.executable, "-m", "tests.node.engine.model_server", str(model_path)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        address = child.stdout.readline().strip()
        assert address.startswith("http://"), address
        yield f"{address}/v1"
    finally:
        child.stdin.close()
        child.wait(10)
        child.stdout.close()


if __name__ == "__main__":
    main(sys.argv[1])
