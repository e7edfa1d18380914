"""TensorFlow's profiler on the gRPC port, so that TensorBoard can capture a profile of the
server.

`tensorflow.ProfilerService/Profile` asks for so many milliseconds; the trace is written to the
folder that the request names, where TensorBoard, which must see the same disk, finds it.
TensorFlow's own service would open a port of its own on all interfaces.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

import grpc
import tensorflow as tf

from graftline.serving.server.status import Code, Failure, invalid
from graftline.serving.server.text_protos import ProfileRequest

_LONGEST_SECONDS = 600.0
_SERVICE = "tensorflow.ProfilerService"

_log = logging.getLogger(__name__)


class Profiler:
    """Captures one profile at a time."""

    def __init__(self, stopping: threading.Event) -> None:
        """Takes the event that ends a capture early."""
        self._stopping = stopping
        self._capturing = threading.Lock()

    def handler(self) -> grpc.GenericRpcHandler:
        """The service, for a gRPC server."""
        methods = {"Profile": grpc.unary_unary_rpc_method_handler(self._profile)}
        handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(_SERVICE, methods)
        return handler

    def capture(self, request: Any) -> Path:
        """Profiles this process.

        Args:
            request: a ProfileRequest.

        Returns:
            The folder that the trace was written to.

        Raises:
            Failure: another capture is under way, or the folder cannot be written.
        """
        for name in (request.session_id, request.host_name):
            if "/" in name or name in ("", ".", ".."):
                raise invalid(f"{name!r} cannot be part of a file's name")
        seconds = min(request.duration_ms / 1e3, _LONGEST_SECONDS)
        folder = Path(request.repository_root) / request.session_id
        if not self._capturing.acquire(blocking=False):
            raise Failure(Code.UNAVAILABLE, "Another profile is being captured")
        try:
            with tempfile.TemporaryDirectory() as scratch:
                tf.profiler.experimental.start(scratch)
                self._stopping.wait(seconds)
                tf.profiler.experimental.stop()
                for trace in Path(scratch).rglob("*.xplane.pb"):
                    folder.mkdir(parents=True, exist_ok=True)
                    target = folder / f"{request.host_name}.xplane.pb"
                    target.write_bytes(trace.read_bytes())
        except OSError as error:
            raise Failure(Code.FAILED_PRECONDITION, f"Cannot write {folder}: {error}") from None
        finally:
            self._capturing.release()
        _log.info("Wrote a profile of %.1f s to %s", seconds, folder)
        return folder

    def _profile(self, serialized: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            self.capture(ProfileRequest.FromString(serialized))
        except Failure as failure:
            context.abort(getattr(grpc.StatusCode, failure.code.name), failure.grpc_message)
        return b""  # an empty ProfileResponse: the trace is on disk
