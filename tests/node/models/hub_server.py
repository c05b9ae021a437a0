"""The few pages of the Hub that `huggingface_hub` asks for, served on loopback from memory."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/Tiny-GGUF"
SOURCE = f"hf://{REPO}/T.gguf"


@dataclass
class Hub:
    files: dict[str, bytes]
    url: str = ""
    gated: bool = False
    lie_sha256: str = ""  # says this hash of every file
    break_after: int = 0  # the next answer ends after so many bytes of the file
    stall_after: int = 0  # every answer stands still after so many bytes of the file, until `go_on`
    go_on: threading.Event = field(default_factory=threading.Event)
    ranges: list[str] = field(default_factory=list)  # asked for, in order; "" for a whole file
    tokens: list[str] = field(default_factory=list)
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})  # branches and tags → commits

    def info(self, commit: str) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": "b" * 40,
                "lfs": {
                    "sha256": self.lie_sha256 or hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 134,
                },
            }
            for name, content in self.files.items()
        ]
        card = {"license": "apache-2.0"}
        return {"id": REPO, "modelId": REPO, "sha": commit, "tags": [], "siblings": siblings, "cardData": card}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None: ...

    def _error(self, code: int, said: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", said)
        self.send_header("X-Error-Message", said)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        hub = self.hub
        hub.tokens.append(self.headers.get("Authorization", ""))
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/(\w+/[\w-]+)/revision/(\w+)", path):
            if found[1] != REPO:
                self._error(404, "RepoNotFound")
            elif found[2] not in (*hub.revisions, *hub.revisions.values()):
                self._error(404, "RevisionNotFound")
            else:
                body = json.dumps(hub.info(hub.revisions.get(found[2], found[2]))).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            return
        file = re.sub(rf"^/{REPO}/resolve/[0-9a-f]{{40}}/", "", path)
        if file not in hub.files:
            self._error(404, "EntryNotFound")
        elif hub.gated:
            self._error(403, "GatedRepo")
        else:
            self._send(hub.files[file])

    def _send(self, content: bytes) -> None:
        hub = self.hub
        asked = self.headers.get("Range", "")
        hub.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if hub.stall_after:
            self.wfile.write(content[start : hub.stall_after])
            hub.go_on.wait(60)
            self.close_connection = True
            return
        stop, hub.break_after = hub.break_after, 0
        self.wfile.write(content[start : start + stop] if stop else content[start:])
        if stop:
            self.close_connection = True


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


HubUp = Callable[[], AbstractContextManager[Hub]]
