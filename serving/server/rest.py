"""The REST interface, to the letter of TensorFlow Serving's, as an ASGI application.

The event loop only reads and writes; JSON and sessions are worked on by the request threads.
Grammar and messages are those of `tensorflow_serving/model_servers/`: http_server.cc,
http_rest_api_util.cc, http_rest_api_handler.cc.
"""

from __future__ import annotations

import asyncio
import logging
import re
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from tensorflow_serving.apis import (
    classification_pb2,
    model_pb2,
    regression_pb2,
)

from graftline.serving.server import json_answers, json_requests, json_values
from graftline.serving.server.core import Core
from graftline.serving.server.flags import Flags
from graftline.serving.server.metrics import Metrics
from graftline.serving.server.requests import Requests, signature_map
from graftline.serving.server.status import Code, Failure, explain, invalid

_API = re.compile(rb"/v1/.*", re.IGNORECASE | re.DOTALL)
_MODEL = rb"([^/:]+)"
_VERSION = rb"(?:(?:/versions/([0-9]+))|(?:/labels/([^/:]+)))?"
_PREDICTION = re.compile(
    rb"/v1/models/" + _MODEL + _VERSION + rb":(classify|regress|predict)", re.IGNORECASE
)
_STATUS = re.compile(
    rb"/v1/models(?:/" + _MODEL + rb")?" + _VERSION + rb"(?:/(metadata))?", re.IGNORECASE
)
_HIGHEST_VERSION = (1 << 63) - 1
_ORIGIN = re.compile(rb"https?://.*", re.DOTALL)
_CORS = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
]
# Bodies of all requests under way, in longest requests. Beyond that the answer is 503, not a queue.
_LONGEST_AT_ONCE = 8

_log = logging.getLogger(__name__)
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class _Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    closes: bool = False


class RestApplication:
    """Answers HTTP requests."""

    def __init__(self, core: Core, metrics: Metrics, flags: Flags, metrics_path: str) -> None:
        """Takes what requests need.

        Args:
            core: the models.
            metrics: where requests are counted.
            flags: how the server was started.
            metrics_path: where Prometheus finds the metrics; empty for nowhere.
        """
        self._core = core
        self._metrics = metrics
        self._requests = Requests(core, metrics, flags, "REST")
        self._flags = flags
        self._metrics_path = metrics_path.encode()
        self._threads = ThreadPoolExecutor(flags.rest_api_num_threads, "rest")
        self._bytes_at_once = 0

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answers one request; called by the HTTP server."""
        try:
            answer = await self._answer(scope, receive)
        except _Gone:
            return
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", str(len(answer.body)).encode()),
            *answer.headers,
        ]
        if answer.closes:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body})

    def close(self) -> None:
        """Ends the threads that work on no request any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, scope: _Message, receive: _Receive) -> _Answer:
        path: bytes = scope["raw_path"].partition(b"?")[0]
        headers = dict(scope["headers"])
        reservation = 0
        try:
            if path == self._metrics_path and path:
                return _Answer(200, self._metrics.page(), b"text/plain")
            if not _API.fullmatch(path):
                return _html(404, "Not Found")
            reservation = self._reserve(headers)
            body = await self._read(headers, receive)
            if scope["method"] == "OPTIONS":
                allowed = _ORIGIN.fullmatch(headers.get(b"origin", b""))
                return self._with_cors(_Answer(200 if allowed else 400, b""))
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(
                self._threads, self._respond, scope["method"], path, headers, body
            )
            return self._with_cors(await work)
        except _Refused as refusal:
            # Or a browser's page would not get to know why.
            return self._with_cors(refusal.answer)
        finally:
            self._bytes_at_once -= reservation

    def _with_cors(self, answer: _Answer) -> _Answer:
        if not self._flags.rest_api_enable_cors_support:
            return answer
        return msgspec.structs.replace(answer, headers=(*answer.headers, *_CORS))

    def _reserve(self, headers: dict[bytes, bytes]) -> int:
        """Sets memory aside for a body: as much as it says, or the most when it does not say.

        Raises:
            _Refused: it is too long, or there are too many.
        """
        limit = self._flags.max_request_bytes
        declared = headers.get(b"content-length", b"")
        chunked = b"transfer-encoding" in headers
        length = int(declared) if declared.isdigit() else limit if chunked else 0
        if length > limit:
            raise _Refused(_too_long(limit))
        if self._bytes_at_once + length > _LONGEST_AT_ONCE * limit:
            raise _Refused(
                _failed(Failure(Code.UNAVAILABLE, "Too many requests at once"), closes=True)
            )
        self._bytes_at_once += length
        return length

    async def _read(self, headers: dict[bytes, bytes], receive: _Receive) -> bytes:
        """The body.

        Raises:
            _Refused: it is too long or too slow.
            _Gone: the client is.
        """
        limit = self._flags.max_request_bytes
        chunks: list[bytes] = []
        length = 0
        seconds = self._flags.request_read_timeout_seconds
        until = asyncio.get_running_loop().time() + seconds
        while True:
            try:
                left = max(0.0, until - asyncio.get_running_loop().time())
                message = await asyncio.wait_for(receive(), left)
            except asyncio.TimeoutError:
                raise _Refused(_too_slow(seconds)) from None
            if message["type"] == "http.disconnect":
                raise _Gone
            chunks.append(message.get("body", b""))
            length += len(chunks[-1])
            if length > limit:
                raise _Refused(_too_long(limit))
            if not message.get("more_body", False):
                return b"".join(chunks)

    def _respond(
        self, method: str, path: bytes, headers: dict[bytes, bytes], body: bytes
    ) -> _Answer:
        try:
            body = _uncompressed(headers, body, self._flags.max_request_bytes)
            return _Answer(200, self._process(method, path, body))
        except Exception as error:
            failure = explain(error)
            if failure.code is Code.INTERNAL and failure is not error:
                _log.exception("A request to %s crashed", path)
            return _failed(failure)

    def _process(self, method: str, path: bytes, body: bytes) -> bytes:
        """The body of the answer.

        Raises:
            Failure: there is none.
        """
        malformed = invalid(f"Malformed request: {method} {path.decode('utf-8', 'replace')}")
        if method == "POST":
            match = _PREDICTION.fullmatch(path)
            if match is None:
                raise malformed
            spec = _spec(match)
            verb = match[4]  # the grammar ignores case, but the verb does not
            if verb == b"predict":
                return self._predict(spec, body)
            if verb == b"classify":
                return self._classify(spec, body)
            if verb == b"regress":
                return self._regress(spec, body)
        elif method == "GET":
            match = _STATUS.fullmatch(path)
            if match is None:
                raise malformed
            spec = _spec(match)
            if not spec.name:
                raise invalid("Missing model name in request.")
            if match[4] == b"metadata":
                return self._metadata(spec)
            return json_answers.status(self._core.status(spec))
        raise malformed

    def _predict(self, spec: Any, body: bytes) -> bytes:
        document = json_values.parse(body)
        spec.signature_name = json_requests.signature_name(document)
        outputs, rows = self._requests.predict_json(
            spec,
            lambda signature: json_requests.predict_inputs(document, signature),
            self._flags.rest_api_timeout_in_ms,
        )
        return json_answers.predictions(outputs) if rows else json_answers.outputs(outputs)

    def _classify(self, spec: Any, body: bytes) -> bytes:
        request = classification_pb2.ClassificationRequest(model_spec=spec)
        _fill(request, body)
        response = classification_pb2.ClassificationResponse()
        self._requests.classify(request, response, self._flags.rest_api_timeout_in_ms)
        return json_answers.classifications(response.result)

    def _regress(self, spec: Any, body: bytes) -> bytes:
        request = regression_pb2.RegressionRequest(model_spec=spec)
        _fill(request, body)
        response = regression_pb2.RegressionResponse()
        self._requests.regress(request, response, self._flags.rest_api_timeout_in_ms)
        return json_answers.regressions(response.result)

    def _metadata(self, spec: Any) -> bytes:
        with self._core.use(spec) as (number, servable):
            return json_answers.metadata(spec.name, number, signature_map(servable))


class _Refused(Exception):
    """A request that is not read to its end."""

    def __init__(self, answer: _Answer) -> None:
        super().__init__()
        self.answer = answer


class _Gone(Exception):
    """The client has left: nobody waits for an answer."""


def _spec(match: re.Match[bytes]) -> Any:
    """The ModelSpec that a path names.

    Raises:
        Failure: the version's number is too large.
    """
    spec = model_pb2.ModelSpec(name=_unquoted(match[1] or b"", "model name"))
    if match[2] is not None:
        # Counted first: Python refuses to read numbers of thousands of digits.
        if len(match[2].lstrip(b"0")) > 19 or int(match[2]) > _HIGHEST_VERSION:
            raise invalid(f"Failed to convert version: {match[2].decode()} to numeric.")
        spec.version.value = int(match[2])
    if match[3] is not None:
        spec.version_label = _unquoted(match[3], "model version label")
    return spec


def _unquoted(name: bytes, what: str) -> str:
    try:
        return unquote_to_bytes(name).decode()
    except UnicodeDecodeError:
        raise invalid(f"Failed to decode {what}:{name.decode('ascii', 'replace')}") from None


def _fill(request: Any, body: bytes) -> None:
    document = json_values.parse(body)
    request.model_spec.signature_name = json_requests.signature_name(document)
    request.input.CopyFrom(json_requests.examples_input(document))


def _uncompressed(headers: dict[bytes, bytes], body: bytes, limit: int) -> bytes:
    """The body, unpacked where the client packed it.

    Raises:
        Failure: it is damaged, or unpacks to more than the limit.
    """
    if b"gzip" not in headers.get(b"content-encoding", b""):
        return body
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error:
        raise invalid("Failed to uncompress gzip content") from None
    if len(unpacked) > limit:
        raise invalid(f"Request body is longer than {limit} bytes")
    if not unpacker.eof:
        raise invalid("Failed to uncompress gzip content")
    return unpacked


def _failed(failure: Failure, closes: bool = False) -> _Answer:
    return _Answer(failure.code.http, json_answers.error(failure.message), closes=closes)


def _too_long(limit: int) -> _Answer:
    body = json_answers.error(f"Request body is longer than {limit} bytes")
    return _Answer(413, body, closes=True)


def _too_slow(seconds: float) -> _Answer:
    body = json_answers.error(f"The request did not arrive within {seconds:g} s")
    return _Answer(408, body, closes=True)


def _html(status: int, title: str) -> _Answer:
    body = (
        f"<HTML><HEAD>\n<TITLE>{status} {title}</TITLE>\n</HEAD><BODY>\n<H1>{title}</H1>\n"
        "</BODY></HTML>\n"
    )
    return _Answer(status, body.encode(), b"text/html")
