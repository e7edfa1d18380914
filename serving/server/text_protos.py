"""The text files of TensorFlow Serving whose messages tensorflow-serving-api does not bring.

Messages are built from the few fields below; names and numbers are those of
`tensorflow_serving/config/*.proto`, `servables/tensorflow/session_bundle_config.proto` and of
TensorFlow's `profiler_service.proto`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format

from graftline.serving.protos import Table, declare
from graftline.serving.server.status import invalid

_MESSAGES: Table = {
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
_classes = declare("graftline.server", _MESSAGES)
SSLConfig = _classes["SSLConfig"]
MonitoringConfig = _classes["MonitoringConfig"]
BatchingParameters = _classes["BatchingParameters"]
ProfileRequest = _classes["ProfileRequest"]


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
