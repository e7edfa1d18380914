"""The HTTP server under REST and gateway: uvicorn in a thread, with limits on slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from graftline.serving.server.status import Code, Failure

_BACKLOG = 2048
_LONGEST_HEAD = 512 << 10
# Address of the client, method, path, status.
Refused = Callable[[str, str, str, int], None]


class HttpServer:
    """Serves an ASGI application on a port, in a thread with an event loop of its own."""

    def __init__(
        self,
        application: Any,
        *,
        read_seconds: float,
        grace_seconds: float,
        refused: Refused = lambda *_: None,
        **settings: Any,
    ) -> None:
        """Takes what it serves; `start` opens the port.

        Args:
            application: the ASGI application.
            read_seconds: in which the head of a request must have arrived, an answer have been
                taken, the next request on the same connection have begun.
            grace_seconds: in which `stop` lets begun requests finish.
            refused: told of each request that the application does not see: 400, what is no HTTP,
                or 503, more than `limit_concurrency`.
            settings: others of uvicorn's.
        """
        usual = {
            "http": type(
                "_Own",
                (_Protocol,),
                {"read_seconds": read_seconds, "refused": staticmethod(refused)},
            ),
            "loop": "asyncio",
            "ws": "none",
            "lifespan": "off",
            "interface": "asgi3",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "proxy_headers": False,
            "timeout_keep_alive": max(1, round(read_seconds)),
            "timeout_graceful_shutdown": max(1, round(grace_seconds)),
        }
        self._server = uvicorn.Server(uvicorn.Config(application, **{**usual, **settings}))
        self._thread: threading.Thread | None = None

    def start(self, address: str, port: int) -> None:
        """Listens.

        Args:
            address: of the interface; empty for all, over IPv6 and IPv4.
            port: TCP port.

        Raises:
            Failure: the port cannot be opened.
        """
        try:
            listener = _listen(address, port)
        except OSError as error:
            raise Failure(
                Code.UNAVAILABLE,
                f"Failed to start HTTP Server at {address or 'localhost'}:{port}: {error.strerror}",
            ) from None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._server.serve(sockets=[listener])),
            name="http",
            daemon=True,
        )
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it serves."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Stops listening; returns when begun requests have finished, or the grace is over."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()


def raise_file_limit() -> None:
    """Lets this process open as many files as it may: a connection is one, and 1024 are few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Protocol(HttpToolsProtocol):
    """Ends connections of clients that send a head too slowly or without end, or take no answer.

    Without this uvicorn would keep them. And it tells of what uvicorn refuses by itself.
    """

    read_seconds: float
    refused: Refused
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _LONGEST_HEAD:
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        # As uvicorn is about to decide.
        limit = self.limit_concurrency
        crowded = limit is not None and max(len(self.connections), len(self.tasks)) >= limit
        super().on_headers_complete()
        if crowded:
            self._tell(503)

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)
        self._tell(400)

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # closing would wait until the client has taken it all
        else:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _tell(self, status: int) -> None:
        scope: dict[str, Any] = dict(self.scope or {})
        address = self.client[0] if self.client else ""
        self.refused(address, scope.get("method", ""), scope.get("path", ""), status)

    def _expect_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.read_seconds, self.transport.close)

    def _stop_timer(self) -> None:
        self._head_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _listen(address: str, port: int) -> socket.socket:
    if not address:
        # A machine without IPv6 gets IPv4 alone, as from the real server.
        with contextlib.suppress(OSError):
            return _bound(socket.AF_INET6, "::", port)
        return _bound(socket.AF_INET, "0.0.0.0", port)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return _bound(family, address, port)


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    # Named, not left to the system: asyncio turns off Nagle's algorithm only where it sees TCP, and
    # with it an answer waits for the client's delayed acknowledgement, 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
