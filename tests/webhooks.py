"""A real HTTP server that takes webhooks, as well or as badly as a test wants."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

# In place of a status code.
HANG = -1
DRIP = -2


class Received(NamedTuple):
    """One request."""

    headers: dict[str, str]
    body: bytes

    @property
    def notice(self) -> dict[str, Any]:
        """Its JSON."""
        found: dict[str, Any] = json.loads(self.body)
        return found


class Webhook(NamedTuple):
    """A server under way.

    Attributes:
        url: where it listens.
        received: what has come so far.
        answers: status codes of the next answers, HANG or DRIP; 200 once they are used up.
    """

    url: str
    received: list[Received]
    answers: list[int]


@contextlib.contextmanager
def webhook(*answers: int) -> Iterator[Webhook]:
    """Listens on a port of its own until the block ends."""
    ended = threading.Event()
    received: list[Received] = []
    coming = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(Received(dict(self.headers), body))
            code = coming.pop(0) if coming else 200
            if code == HANG:
                ended.wait()
                return
            while code == DRIP and not ended.wait(0.05):
                # Never silent for long, and never done.
                with contextlib.suppress(OSError):
                    self.wfile.write(b"HTTP/1.1 200 OK" if not ended.is_set() else b"")
                    self.wfile.flush()
            if code > 0:
                self.send_response(code)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield Webhook(f"http://127.0.0.1:{server.server_port}/hook", received, coming)
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
