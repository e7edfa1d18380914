"""Why a request failed, in the codes that gRPC, TensorFlow and the REST API share.

The numbers are those of tensorflow/core/protobuf/error_codes.proto and of gRPC; the HTTP codes are
those of tensorflow_serving/model_servers/http_server.cc.
"""

from __future__ import annotations

import enum

_LONGEST_GRPC_MESSAGE = 1024


class Code(enum.IntEnum):
    """A canonical status code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @property
    def http(self) -> int:
        """The HTTP status that stands for this code."""
        return _HTTP[self]


_HTTP = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


class Failure(Exception):
    """A request, a load or a reload that ends with a status other than OK.

    Attributes:
        code: what kind of failure.
        message: what is said to the client, word for word as the real server says it.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        """As the real server logs it: `NOT_FOUND: Servable not found …`."""
        return f"{self.code.name}: {self.message}"

    @property
    def grpc_message(self) -> str:
        """The message as gRPC carries it: cut (model_servers/grpc_status_util.cc)."""
        if len(self.message) <= _LONGEST_GRPC_MESSAGE:
            return self.message
        return self.message[:_LONGEST_GRPC_MESSAGE] + "...TRUNCATED"


def invalid(message: str) -> Failure:
    """A failure that is the request's fault."""
    return Failure(Code.INVALID_ARGUMENT, message)


def explain(error: BaseException) -> Failure:
    """The failure that stands for any exception: TensorFlow's by its code, others as INTERNAL."""
    if isinstance(error, Failure):
        return error
    code = getattr(error, "error_code", None)  # tf.errors.OpError, without importing TensorFlow
    if isinstance(code, int) and 0 < code < len(Code):
        return Failure(Code(code), str(getattr(error, "message", error)))
    if isinstance(error, MemoryError):
        return Failure(Code.RESOURCE_EXHAUSTED, "Out of memory")
    return Failure(Code.INTERNAL, f"{type(error).__name__}: {error}")
