"""Asks over REST: images as base64 in JSON, TensorFlow Serving's row format."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
import requests

from graftline.serving.client.address import Address, Tls
from graftline.serving.client.transport import (
    MOST_BYTES,
    Answer,
    Asked,
    Description,
    strange,
)
from graftline.serving.server.status import Code, Failure
from graftline.serving.signature import SIGNATURE

_CODES = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    413: Code.RESOURCE_EXHAUSTED,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    # A proxy says 502 where it does not reach the server.
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}


class _Row(msgspec.Struct):
    classes: list[str]
    scores: list[float]


class _Predictions(msgspec.Struct):
    predictions: list[_Row]


class _Spec(msgspec.Struct):
    version: str


class _Signature(msgspec.Struct):
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}


class _Signatures(msgspec.Struct):
    signature_def: dict[str, _Signature]


class _Fields(msgspec.Struct):
    signature_def: _Signatures


class _Metadata(msgspec.Struct):
    model_spec: _Spec
    metadata: _Fields


class RestTransport:
    """One session of HTTP."""

    tells_version = False

    def __init__(self, address: Address, tls: Tls) -> None:
        """Opens no connection yet."""
        self._root = f"{address.rest}/v1/models/"
        self._session = requests.Session()
        # Servers are in one's own network, where the environment's proxy does not lead to.
        self._session.trust_env = False
        if tls.ca is not None:
            self._session.verify = str(tls.ca)
        if tls.certificate is not None and tls.key is not None:
            self._session.cert = (str(tls.certificate), str(tls.key))

    def describe(self, asked: Asked, seconds: float) -> Description:
        """As Transport."""
        answer = self._ask("GET", f"{_path(asked)}/metadata", None, seconds, _Metadata)
        try:
            version = int(answer.model_spec.version)
        except ValueError:
            raise strange(f"a version {answer.model_spec.version!r}") from None
        found = answer.metadata.signature_def.signature_def.get(SIGNATURE, _Signature())
        return Description(version, frozenset(found.inputs), frozenset(found.outputs))

    def classify(self, asked: Asked, images: Sequence[bytes], seconds: float) -> Answer:
        """As Transport."""
        # Bytes are encoded as base64.
        instances = [{"b64": image} for image in images]
        body = msgspec.json.encode({"signature_name": SIGNATURE, "instances": instances})
        answer = self._ask("POST", f"{_path(asked)}:predict", body, seconds, _Predictions)
        rows = answer.predictions
        if len(rows) != len(images) or any(len(r.classes) != len(r.scores) for r in rows):
            raise strange(f"{len(rows)} rows of classes and scores for {len(images)} images")
        return Answer(None, [list(zip(r.classes, r.scores, strict=True)) for r in rows])

    def close(self) -> None:
        """As Transport."""
        self._session.close()

    def _ask(self, method: str, path: str, body: bytes | None, seconds: float, kind: type) -> Any:
        status, content = _within(seconds, lambda: self._exchange(method, path, body, seconds))
        try:
            # TensorFlow Serving writes NaN and Infinity, which only this parser takes.
            document = json.loads(content)
        except (ValueError, RecursionError):
            document = None
        if status == requests.codes.ok:
            try:
                return msgspec.convert(document, kind)
            except msgspec.ValidationError as error:
                raise strange(f"an answer that cannot be read: {error}") from error
        said = document.get("error") if isinstance(document, dict) else None
        code = _CODES.get(status, Code.UNKNOWN)
        if isinstance(said, str):
            raise Failure(code, said)
        if code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED):
            raise Failure(code, f"HTTP status {status}")  # of a proxy in front of the server
        raise strange(f"HTTP status {status}, without a model server's error")

    def _exchange(
        self, method: str, path: str, body: bytes | None, seconds: float
    ) -> tuple[int, bytes]:
        try:
            with self._session.request(
                method,
                self._root + path,
                data=body,
                headers={"Content-Type": "application/json"} if body else None,
                timeout=seconds,
                allow_redirects=False,
                stream=True,
            ) as response:
                content = bytearray()
                for chunk in response.iter_content(1 << 16):
                    content += chunk
                    if len(content) > MOST_BYTES:
                        raise strange(f"more than {MOST_BYTES >> 20} MiB")
                return response.status_code, bytes(content)
        except requests.exceptions.SSLError as error:
            raise Failure(Code.UNAUTHENTICATED, f"TLS: {_root_cause(error)}") from error
        except requests.Timeout as error:
            raise Failure(Code.DEADLINE_EXCEEDED, "timed out") from error
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise Failure(Code.UNAVAILABLE, _root_cause(error)) from error
        except requests.RequestException as error:
            raise strange(_root_cause(error)) from error
        except OSError as error:  # a file of the certificates
            raise Failure(Code.UNAUTHENTICATED, f"TLS: {error}") from error


def _path(asked: Asked) -> str:
    path = quote(asked.model, safe="")
    if asked.version is not None:
        return f"{path}/versions/{asked.version}"
    return f"{path}/labels/{quote(asked.label, safe='')}" if asked.label else path


def _within(seconds: float, work: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
    """Does some work in a thread, and waits no longer than so many seconds for it.

    The timeouts of requests are those of single reads: a server that sends a byte now and then
    would hold its client up for ever.
    """
    outcome: queue.SimpleQueue[tuple[int, bytes] | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(work())
        except BaseException as error:
            outcome.put(error)

    threading.Thread(target=run, name="rest", daemon=True).start()
    try:
        result = outcome.get(timeout=seconds)
    except queue.Empty:
        raise Failure(Code.DEADLINE_EXCEEDED, "timed out") from None
    if isinstance(result, BaseException):
        raise result
    return result


def _root_cause(error: BaseException) -> str:
    """The innermost reason, e.g. `Connection refused`, of errors that wrap each other."""
    seen: list[BaseException] = []
    inner: object = error
    while isinstance(inner, BaseException) and inner not in seen:
        seen.append(inner)
        with contextlib.suppress(IndexError):
            following = getattr(inner, "reason", None) or inner.args[-1]
            inner = following
    last = seen[-1]
    return str(getattr(last, "strerror", None) or last)
