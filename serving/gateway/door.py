"""The outermost layer: a name for each request, security headers, and closing what is not read."""

from __future__ import annotations

import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Where an answer does not have its own.
_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


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
                headers = message["headers"]
                there = {name for name, _ in headers}
                headers += [header for header in _HEADERS if header[0] not in there]
                headers.append((b"x-request-id", state["request_id"].encode()))
                if state["unread"]:
                    # Or a body without end would come in after the answer.
                    headers.append((b"connection", b"close"))
            await send(message)

        await self._app(scope, receiving, sending)
