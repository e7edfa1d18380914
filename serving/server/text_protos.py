"""The text files of TensorFlow Serving whose messages tensorflow-serving-api does not bring.

Messages are built from the few fields below; names and numbers are those of
`tensorflow_serving/config/*.proto`, `servables/tensorflow/session_bundle_config.proto` and of
TensorFlow's `profiler_service.proto`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from graftline.serving.server.status import invalid

_PACKAGE = "graftline.server"
# message: {field: (number, type)}; `repeated` stands before the type. Other messages by name.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "SSLConfig": {
        "server_key": (1, "string"),
        "server_cert": (2, "string"),
        "custom_ca": (3, "string"),
        "client_verify": (4, "bool"),
    },
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
    "MonitoringConfig": {"prometheus_config": (1, "PrometheusConfig")},
    "BatchingParameters": {
        "max_batch_size": (1, "Int64Value"),
        "batch_timeout_micros": (2, "Int64Value"),
        "max_enqueued_batches": (3, "Int64Value"),
        "num_batch_threads": (4, "Int64Value"),
        "thread_pool_name": (5, "StringValue"),
        "allowed_batch_sizes": (6, "repeated int64"),
        "pad_variable_length_inputs": (7, "bool"),
        "enable_large_batch_splitting": (8, "BoolValue"),
        "max_execution_batch_size": (9, "Int64Value"),
    },
    "ProfileRequest": {
        "duration_ms": (1, "uint64"),
        "repository_root": (5, "string"),
        "session_id": (6, "string"),
        "host_name": (7, "string"),
    },
}
_TYPES = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "uint64": descriptor_pb2.FieldDescriptorProto.TYPE_UINT64,
}


def _declare() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="graftline/server.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for name, (number, kind) in fields.items():
            field = message.field.add(name=name, number=number)
            repeated = kind.startswith("repeated ")
            kind = kind.removeprefix("repeated ")
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            field.type = _TYPES.get(kind, field.TYPE_MESSAGE)
            if kind in _MESSAGES:
                field.type_name = f".{_PACKAGE}.{kind}"
            elif kind not in _TYPES:
                field.type_name = f".google.protobuf.{kind}"
    # A pool of its own: the name of no other library's message can clash.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _message(name: str) -> Any:
    descriptor = _pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")
    # protobuf 3.20 knows only the factory, 4.22 and newer prefer the function, 5 only has it.
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool=_pool).GetPrototype(descriptor)


_pool = _declare()
SSLConfig = _message("SSLConfig")
MonitoringConfig = _message("MonitoringConfig")
BatchingParameters = _message("BatchingParameters")
ProfileRequest = _message("ProfileRequest")


def read_text(path: Path | str, message: Any) -> Any:
    """Parses a text proto file into a message and returns it.

    Raises:
        Failure: the file cannot be read, or does not parse; with the line and column.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return text_format.Parse(text, message)
    except OSError as error:
        raise invalid(f"Cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise invalid(f"Cannot read {path}: it is not text") from None
    except (text_format.ParseError, RecursionError) as error:
        name = message.DESCRIPTOR.name
        package = "tensorflow.serving" if name in _MESSAGES else message.DESCRIPTOR.file.package
        raise invalid(f"Error parsing text-format {package}.{name}: {path}: {error}") from None
