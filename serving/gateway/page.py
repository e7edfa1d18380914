"""The page to drop an image on. It loads nothing from elsewhere, and its policy forbids that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent
_FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes() -> list[Route]:
    """The page, its style and its script."""
    return [Route(path, _show(_FOLDER / name), methods=["GET"]) for path, name in _FILES.items()]


def _show(file: Path) -> Callable[[Request], Awaitable[Response]]:
    content = file.read_bytes()

    async def show(request: Request) -> Response:
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        return Response(content, headers=headers, media_type=_TYPES[file.suffix])

    return show
