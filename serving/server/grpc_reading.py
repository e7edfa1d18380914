"""Reads the requests of gRPC clients, so that those who send half of one hold up nobody.

grpcio gives a call its thread when it begins, and the thread waits for the request as long as the
client likes: as many halves of requests as threads, and nobody else would be answered. Here there
are many threads to wait with, for they cost little; a request that does not come is given up; and
of the predictions that have been asked for, as many are worked on at once as the flags say.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

# Threads beside those that work: for requests that have not arrived, or wait for their turn.
WAITING_THREADS = 256
# When so many requests are waited for, each has a second.
_MANY = 128
_PATIENCE_WITH_MANY = 1.0
_PREDICTIONS = "/tensorflow.serving.PredictionService/"


class Reading(grpc.ServerInterceptor):
    """Stands between the calls and the services of one server."""

    def __init__(self, seconds: float, at_once: int) -> None:
        """Starts the thread that gives up what does not come; `close` ends it.

        Args:
            seconds: in which a request must have arrived.
            at_once: predictions worked on at once. Whoever asks for states, or changes the
                configuration, does not wait behind them.
        """
        self._seconds = seconds
        self._hurried = min(seconds, _PATIENCE_WITH_MANY)
        self._turns = threading.Semaphore(at_once)
        self._lock = threading.Lock()
        self._awaited: dict[grpc.ServicerContext, float] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._give_up, name="grpc-reading", daemon=True).start()

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        """Has a method's requests read here; on the wire nothing differs."""
        handler = continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        predicts = handler_call_details.method.startswith(_PREDICTIONS)
        turns = self._turns if predicts else contextlib.nullcontext()
        method = _Method(handler, self.read, turns)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(method, None, handler.response_serializer)
        return grpc.stream_unary_rpc_method_handler(method, None, handler.response_serializer)

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()

    def read(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Waits for the request of a call.

        Raises:
            Exception: it did not come; the call has ended.
        """
        with self._lock:
            self._awaited[context] = time.monotonic()
        try:
            return next(messages)
        except StopIteration:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "The call ended without a request")
            raise AssertionError("abort raises") from None
        finally:
            with self._lock:
                self._awaited.pop(context, None)

    def _give_up(self) -> None:
        while not self._closed.wait(self._hurried / 2):
            with self._lock:
                patience = self._hurried if len(self._awaited) > _MANY else self._seconds
                since = time.monotonic() - patience
                late = [context for context, began in self._awaited.items() if began < since]
                for context in late:
                    del self._awaited[context]
            for context in late:
                context.cancel()


class _Method:
    """A method that takes its request from an iterator, and its turn."""

    def __init__(
        self,
        handler: Any,
        read: Callable[[Iterator[bytes], grpc.ServicerContext], bytes],
        turns: contextlib.AbstractContextManager[Any],
    ) -> None:
        self._method = handler.unary_stream or handler.unary_unary
        self._parse = handler.request_deserializer or bytes
        self._read = read
        self._turns = turns
        # As the health service's: it keeps no thread while it watches.
        self.experimental_non_blocking = getattr(self._method, "experimental_non_blocking", False)

    def __call__(
        self, messages: Iterator[bytes], context: grpc.ServicerContext, *callback: Any
    ) -> Any:
        message = self._read(messages, context)
        with self._turns:
            try:
                request = self._parse(message)
            except Exception:
                context.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")
            return self._method(request, context, *callback)
