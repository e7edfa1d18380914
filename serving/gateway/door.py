"""The outermost layer: a name for each request, security headers, and closing what is not read."""

from __future__ import annotations

import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Door:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        names = {name for name, _ in scope["headers"]}
        state = scope.setdefault("state", {})
        state["request_id"] = uuid.uuid4().hex
        state["unread"] = bool(names & {b"content-length", b"transfer-encoding"})

        async def receiving() -> Message:
            message = await receive()
            if not message.get("more_body", False):
                state["unread"] = False
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-ID"] = state["request_id"]
                if state["unread"]:
                    # Or a body without end would come in after the answer.
                    headers["Connection"] = "close"
            await send(message)

        await self._app(scope, receiving, sending)
