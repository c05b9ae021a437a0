"""Opens the HTTP door: where it listens, with which certificate, and who is let in.

On loopback it is open to the programs of this machine, unless API keys were made; elsewhere it is TLS, and only for who
has a key (tls.py, guard.py). A browser page must not be able to use it: the Host header has to name this machine,
bodies have to be JSON, and no CORS header is ever sent. What it offers is in routes.py.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from node.addresses import target
from node.api_keys import ApiKeys
from node.config import NodeConfig
from node.errors import ExitCode, KithError
from node.http.guard import Connection, Guard
from node.http.routes import NEEDS, OPEN_PATHS, application
from node.http.tls import Certificate, hosts_of
from node.interfaces import is_loopback
from node.limits import CONNECTIONS_MAX, CONNECTIONS_TOLD_MAX
from node.listening import address_of

if TYPE_CHECKING:
    from node.daemon import Daemon


@contextlib.asynccontextmanager
async def serve(daemon: "Daemon", listen: str) -> AsyncIterator[str]:
    """Serve while the context is open. Yields HOST:PORT. Raises `KithError`: no TLS or no key where others can reach
    it, port taken."""
    host, port = address_of(listen)
    certificate = _certificate(daemon, host)
    keys = ApiKeys(daemon.paths.api_keys)
    keys_needed = not is_loopback(host)
    if keys_needed and not keys.all():
        raise KithError(
            "binding-refused",
            f"other machines can reach {host}, and no API key was made: nobody could use the HTTP door",
            "Make one with `kith key add NAME`, or use --http 127.0.0.1:PORT.",
            ExitCode.CANNOT_START,
        )
    guarded = Guard(
        application(daemon),
        hosts=hosts_of(host, daemon.config.http_hosts, certificate),
        keys=keys,
        keys_needed=keys_needed,
        needs=NEEDS,
        open_paths=OPEN_PATHS,
    )
    # Whoever sends nonsense must not fill the log with it.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    served = uvicorn.Config(
        guarded,
        host=host,
        port=port,
        http=Connection,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,  # else any local program could name another host as its own
        limit_concurrency=CONNECTIONS_MAX + CONNECTIONS_TOLD_MAX + 1,  # guard.py refuses before that
    )
    served.load()
    served.ssl = certificate.context if certificate is not None else None
    server = _Server(served)
    try:
        listening = served.bind_socket()
    except SystemExit:
        raise KithError(
            "port-taken", f"{listen} is taken", "Choose another one with --http.", ExitCode.CANNOT_START
        ) from None
    task = asyncio.create_task(server.serve(sockets=[listening]), name="http")
    fresh = asyncio.create_task(certificate.keep_fresh(), name="http certificate") if certificate is not None else None
    try:
        yield target(host, listening.getsockname()[1])
    finally:
        if fresh is not None:
            fresh.cancel()
        server.should_exit = True
        server.force_exit = True
        await task
        listening.close()


def scheme(config: NodeConfig) -> str:
    """What the door speaks."""
    return "https" if config.http_cert or not is_loopback(address_of(config.http)[0]) else "http"


def _certificate(daemon: "Daemon", host: str) -> Certificate | None:
    """What the door shows; None: plain HTTP, on loopback only. Raises `KithError`."""
    config = daemon.config
    if config.http_cert:
        return Certificate(Path(config.http_cert), Path(config.http_key or config.http_cert))
    if scheme(config) == "http":
        return None
    if daemon.enrolment is None:
        raise KithError(
            "binding-refused",
            f"other machines can reach {host}: the HTTP door opens there with TLS only",
            "Give a certificate (http_cert, http_key), make a mesh with `kith init`, or use --http 127.0.0.1:PORT.",
            ExitCode.CANNOT_START,
        )
    return Certificate(daemon.enrolment.paths.certificate, daemon.enrolment.paths.key)


class _Server(uvicorn.Server):
    """Signals belong to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield
