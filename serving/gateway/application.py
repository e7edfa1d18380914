"""The gateway as an ASGI application: routes, and what a request goes through.

Who calls, how often, how many at once; then the body, its header, the split, the model server. Each
step refuses what the next should not be bothered with, so that a stranger costs next to nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from graftline.serving.gateway import metrics as counters
from graftline.serving.gateway import openapi, page, refusals
from graftline.serving.gateway.admission import Admission
from graftline.serving.gateway.answer import Answer, Prediction
from graftline.serving.gateway.audit import Audit, Entry
from graftline.serving.gateway.callers import Callers
from graftline.serving.gateway.config import GatewayConfig
from graftline.serving.gateway.door import Door
from graftline.serving.gateway.image_input import read_image
from graftline.serving.gateway.metrics import Metrics
from graftline.serving.gateway.model_server import (
    Classification,
    LabelRefused,
    ModelServer,
    credentials,
)
from graftline.serving.gateway.refusals import Refusal, malformed
from graftline.serving.gateway.sampling import Sampler
from graftline.serving.gateway.split import Split
from graftline.serving.image_check import Limits

CLASSIFY = "/v1/classify"
_JSON = "application/json"
_NO_LABEL, _REFUSED = "latest", "none"
# Reasons of what the HTTP server refuses, by status.
_UNSEEN = {400: "not-http", 503: "too-many-connections"}
_LOOK_SECONDS = 0.5
_READY_SECONDS = 1.0
# Of a refused request's body, that the client may hear why; more is cut off.
_DRAIN_SECONDS = 0.5

_log = logging.getLogger(__name__)


class Gateway:
    """What all requests share."""

    def __init__(self, config: GatewayConfig, model: str, root: Path) -> None:
        """Reads what the configuration names; connects to nothing yet.

        Args:
            config: the settings.
            model: its name on the model server.
            root: `<base>/<model>`, where the split of requests stands.

        Raises:
            UserError: a file is not as it should be.
        """
        self._config = config
        self._model = model
        self._limits = Limits(
            max_bytes=config.max_bytes,
            max_pixels=config.max_pixels,
            min_side=config.min_side,
            max_aspect=config.max_aspect,
        )
        self.metrics = Metrics()
        self._callers = Callers(config)
        self._split = Split(root)
        self._admission = Admission(config, self.metrics)
        self._audit = Audit(config.audit_log, self.metrics)
        self._sampler = Sampler(config.sample, self.metrics)
        self._credentials = credentials(config)
        self._openapi = openapi.document(config, model)
        self._server: ModelServer
        self._ready: asyncio.Task[bool] | None = None
        self._ready_until = 0.0
        self.stopping = False

    def refused_unseen(self, address: str, method: str, path: str, status: int) -> None:
        """Counts and logs what the HTTP server has refused by itself.

        Args:
            address: from which it came.
            method: of HTTP; empty where it was none.
            path: without the query.
            status: of the answer, 400 or 503.
        """
        self._note(
            Entry(
                request_id="",
                address=address,
                caller=None,
                method=method,
                path=path,
                status=status,
                reason=_UNSEEN[status],
            )
        )

    def _note(self, entry: Entry) -> None:
        self.metrics.refusals.labels(entry.reason).inc()
        self._audit.refused(entry)

    def application(self) -> Door:
        """The ASGI application."""
        get = ["GET"]
        routed = Starlette(
            routes=[
                Route(CLASSIFY, self._classify, methods=["POST"]),
                Route("/healthz", self._health, methods=get),
                Route("/readyz", self._readiness, methods=get),
                Route("/metrics", self._metrics_page, methods=get),
                Route("/openapi.json", self._document, methods=get),
                *page.routes(),
            ],
            exception_handlers={
                Refusal: self._refuse,
                HTTPException: self._refuse_path,
                ClientDisconnect: self._gone,
                Exception: self._crash,
            },
            lifespan=self._lifespan,
        )
        routed.router.redirect_slashes = False
        return Door(routed)

    @contextlib.asynccontextmanager
    async def _lifespan(self, application: Starlette) -> AsyncIterator[None]:
        self._server = ModelServer(self._config, self._model, self._credentials)
        # Apart, for keys may come from far away.
        looks = (self._split.look, self._callers.look)
        watchers = [asyncio.create_task(_repeat(look)) for look in looks]
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.cancel()
            await self._server.close()
            await asyncio.to_thread(self._sampler.close)
            self._audit.close()

    async def _classify(self, request: Request) -> Response:
        began = time.perf_counter()
        address = _address(request)
        caller = request.state.caller = await self._callers.identify(request.headers, address)
        self._admission.count(caller)
        with self._admission.slot(caller):
            top = _top(request)
            image, _ = await read_image(request, self._limits, self._config.read_seconds)
            classification, label = await self._ask(request, image, caller)
        answer = Answer(
            model=self._model,
            version=classification.version,
            label=label,
            predictions=_ranked(classification, top),
            request_id=request.state.request_id,
        )
        shown = label or _NO_LABEL
        self._sampler.offer(image, classification, shown)
        self.metrics.requests.labels("200", shown).inc()
        self.metrics.seconds.labels(shown).observe(time.perf_counter() - began)
        return Response(msgspec.json.encode(answer), media_type=_JSON)

    async def _ask(
        self, request: Request, image: bytes, caller: str
    ) -> tuple[Classification, str | None]:
        label = request.state.label = self._split.label(caller)
        try:
            return await self._server.classify(image, label), label
        except LabelRefused:
            # It has just been taken away: what is in force now has been written before that.
            await asyncio.to_thread(self._split.look)
        label = request.state.label = self._split.label(caller)
        try:
            return await self._server.classify(image, label), label
        except LabelRefused:
            raise Refusal(
                503,
                "no-model",
                f"The model server has no version with the label {label}.",
                {"Retry-After": "1"},
            ) from None

    async def _health(self, request: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type=_JSON)

    async def _readiness(self, request: Request) -> Response:
        if self.stopping:
            said = "stopping"
        elif not self._callers.ready:
            said = "no keys to check tokens with"
        elif not await self._available():
            said = "the model server has no version to answer with"
        else:
            return Response(b'{"status":"ready"}', media_type=_JSON)
        return Response(msgspec.json.encode({"status": said}), 503, media_type=_JSON)

    async def _available(self) -> bool:
        """Asks the server, once for all who want to know within a second."""
        if self._ready is None or (self._ready.done() and time.monotonic() >= self._ready_until):
            self._ready = asyncio.create_task(self._server.available())
            self._ready_until = time.monotonic() + _READY_SECONDS
        return await asyncio.shield(self._ready)

    async def _metrics_page(self, request: Request) -> Response:
        return Response(self.metrics.page(), media_type=counters.CONTENT_TYPE)

    async def _document(self, request: Request) -> Response:
        return Response(self._openapi, media_type=_JSON)

    async def _refuse(self, request: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, Refusal)
        if refusal.__cause__ is not None and refusal.status >= 500:
            _log.warning("%s: %s", refusal.reason, refusal.__cause__)
        self._record(request, refusal)
        await _drain(request, self._limits.max_bytes)
        request_id = request.state.request_id
        return Response(
            refusals.problem(refusal, request_id),
            refusal.status,
            refusal.headers,
            refusals.CONTENT_TYPE,
        )

    async def _refuse_path(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        refusal = Refusal(404, "not-found", "There is nothing at this path.")
        if error.status_code == 405:
            detail = "The path is there, the method is not."
            refusal = Refusal(405, "method-not-allowed", detail, dict(error.headers or {}))
        return await self._refuse(request, refusal)

    async def _gone(self, request: Request, error: Exception) -> Response:
        return await self._refuse(request, Refusal(400, "gone", "The client has gone."))

    async def _crash(self, request: Request, error: Exception) -> Response:
        return await self._refuse(request, Refusal(500, "crash", "The gateway made a mistake."))

    def _record(self, request: Request, refusal: Refusal) -> None:
        state = request.state
        if request.scope["path"] == CLASSIFY:
            label = getattr(state, "label", _REFUSED) or _NO_LABEL
            self.metrics.requests.labels(str(refusal.status), label).inc()
        self._note(
            Entry(
                request_id=state.request_id,
                address=_address(request),
                caller=getattr(state, "caller", None),
                method=request.method,
                path=request.scope["path"],
                status=refusal.status,
                reason=refusal.reason,
            )
        )


async def _repeat(look: Callable[[], None]) -> None:
    """Takes over files that change, until it is cancelled."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            await asyncio.to_thread(look)
        except Exception:
            _log.exception("Looking for changed files failed; it is tried again")


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _top(request: Request) -> int:
    """How many classes are wanted.

    Raises:
        Refusal: that is no number.
    """
    wanted = request.query_params.get("top", str(openapi.TOP))
    if not (wanted.isascii() and wanted.isdecimal() and 1 <= int(wanted[:5]) <= openapi.MOST):
        raise malformed(f"top must be a number from 1 to {openapi.MOST}.")
    return int(wanted)


def _ranked(answer: Classification, top: int) -> list[Prediction]:
    pairs = sorted(zip(answer.scores, answer.classes, strict=True), key=lambda pair: -pair[0])
    return [Prediction(name, score) for score, name in pairs[:top]]


async def _drain(request: Request, longest: int) -> None:
    """Takes what is left of a body, a little, for a client that is cut off may not see why."""
    if "Expect" in request.headers:
        return  # it waits to be told whether to send

    size = 0
    with anyio.move_on_after(_DRAIN_SECONDS):
        while size <= longest and request.state.unread:
            message = await request.receive()
            if message["type"] != "http.request":
                break
            size += len(message.get("body", b""))
