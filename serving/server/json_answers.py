"""Bodies of REST answers, byte by byte as the real server writes them.

Predictions, results and errors are written as rapidjson's PrettyWriter does, with its way of
setting lists on one line and their closing bracket on the next
(tensorflow_serving/util/json_tensor.cc); status and metadata as protobuf's JSON printer does
(model_servers/http_rest_api_util.cc).
"""

from __future__ import annotations

import base64
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format

from graftline.serving.server.states import VersionState
from graftline.serving.server.status import Code, invalid

_INDENT = b"    "
_BYTES_SUFFIX = "_bytes"
_DIGITS = {np.dtype(np.float16): 9, np.dtype(np.float32): 9, np.dtype(np.float64): 17}
_SPECIAL = re.compile(rb'[\x00-\x1f"\\]')
_SHORT = {b"\b": b"\\b", b"\f": b"\\f", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}


def predictions(outputs: Mapping[str, np.ndarray]) -> bytes:
    """The answer to a request in rows: an element for each row.

    Args:
        outputs: arrays by the signature's names; all with the same outermost dimension.

    Raises:
        Failure: they cannot be split into rows, or written.
    """
    rows = -1
    for name, array in sorted(outputs.items()):
        if not array.ndim:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows not in (-1, len(array)):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {rows}"
            )
        rows = len(array)
    depth = 3 if len(outputs) > 1 else 2
    # The list of the rows is part of the document, and counted in its depth already.
    columns = {
        name: [_on_one_line(row) for row in _nested(name, array, depth - 1)]
        for name, array in sorted(outputs.items())
    }
    if len(columns) == 1:
        (elements,) = columns.values()
        listed = b", ".join(elements)
    else:
        listed = b",".join(
            b"\n" + 2 * _INDENT + _object(columns, index, 2) for index in range(rows)
        )
    return b'{\n    "predictions": [' + listed + (b"\n    ]" if rows else b"]") + b"\n}"


def outputs(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The answer to a request in columns: every output whole.

    Args:
        arrays: by the signature's names.

    Raises:
        Failure: one cannot be written.
    """
    if len(arrays) == 1:
        ((name, array),) = arrays.items()
        return b'{\n    "outputs": ' + _on_lines(_nested(name, array, 1), 1) + b"\n}"
    members = [
        2 * _INDENT + quoted(name.encode()) + b": " + _on_lines(_nested(name, array, 2), 2)
        for name, array in sorted(arrays.items())
    ]
    return b'{\n    "outputs": {\n' + b",\n".join(members) + b"\n    }\n}"


def classifications(result: Any) -> bytes:
    """The answer to a classify request, from a ClassificationResult."""
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    rows = []
    for answer in result.classifications:
        scores = decimals(np.array([c.score for c in answer.classes], dtype=np.float32))
        labels = [quoted(c.label.encode()) for c in answer.classes]
        pairs = [b"[%s, %s]" % pair for pair in zip(labels, scores, strict=True)]
        rows.append(b"[" + b", ".join(pairs) + b"]")
    return b'{\n    "results": [' + b", ".join(rows) + b"\n    ]\n}"


def regressions(result: Any) -> bytes:
    """The answer to a regress request, from a RegressionResult."""
    if not result.regressions:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    values = np.array([r.value for r in result.regressions], dtype=np.float32)
    return b'{\n    "results": [' + b", ".join(decimals(values)) + b"]\n}"


def error(message: str) -> bytes:
    """The answer to a request that failed."""
    return b'{\n    "error": ' + quoted(message.encode("utf-8", "replace")) + b"\n}"


def status(versions: Mapping[int, VersionState]) -> bytes:
    """The answer to a status request."""
    document = {
        "model_version_status": [
            {
                "version": str(number),
                "state": version.state.name,
                "status": {
                    "error_code": (version.error.code if version.error else Code.OK).name,
                    "error_message": version.error.message if version.error else "",
                },
            }
            for number, version in versions.items()
        ]
    }
    return _printed(document)


def metadata(model: str, number: int, signatures: Any) -> bytes:
    """The answer to a metadata request.

    Args:
        model: the model's name.
        number: the version's.
        signatures: a SignatureDefMap message.
    """
    spec = {"name": model, "version": str(number), "signature_name": ""}
    described = json_format.MessageToDict(
        signatures, preserving_proto_field_name=True, **_PRINT_ALL
    )
    for signature in described["signature_def"].values():
        if not signature.get("defaults"):
            signature.pop("defaults", None)  # a newer field, which the real server does not print
    return (
        b'{\n"model_spec":'
        + _printed(spec)
        + b',\n"metadata": {"signature_def": '
        + _printed(described)
        + b"}\n}\n"
    )


def quoted(value: bytes) -> bytes:
    """A JSON string; bytes that are no UTF-8 go through as they are."""
    return b'"' + _SPECIAL.sub(_escaped, value) + b'"'


def decimals(values: np.ndarray) -> list[bytes]:
    """Floats as the real server writes them.

    Args:
        values: float16, float32 or float64, of shape (N,).

    Returns:
        For each the shortest of six digits or all, with a `.0` where it looks like an integer.
    """
    digits = _DIGITS[values.dtype]
    # A half is written as the float32 that it becomes.
    numbers = values.astype(np.float32) if values.dtype == np.float16 else values
    listed = numbers.tolist()
    short = [f"{number:.6g}" for number in listed]
    same = np.array(short, dtype=np.float64).astype(numbers.dtype) == numbers if short else []
    return [
        _decimal(text if exact else f"{number:.{digits}g}", number)
        for text, exact, number in zip(short, same, listed, strict=True)
    ]


def _decimal(text: str, number: float) -> bytes:
    if number != number:
        return b"NaN"
    if number in (float("inf"), float("-inf")):
        return b"Infinity" if number > 0 else b"-Infinity"
    if "." not in text and "e" not in text:
        text += ".0"
    return text.encode()


def _escaped(match: re.Match[bytes]) -> bytes:
    character = match[0]
    if character in b'"\\':
        return b"\\" + character
    return _SHORT.get(character) or b"\\u%04X" % character[0]


_Nested = Any  # nested lists of what is written for each value


def _nested(name: str, array: np.ndarray, depth: int) -> _Nested:
    """The values of an array as they are written, nested as its dimensions are.

    Args:
        name: of the output; one that ends in `_bytes` is written in base64.
        array: its values.
        depth: how deep in the document the array stands.
    """
    written = np.empty(array.size, dtype=object)
    written[:] = _written(name, array, depth + array.ndim)
    return written.reshape(array.shape).tolist()


def _written(name: str, array: np.ndarray, depth: int) -> list[bytes]:
    flat = array.ravel()
    if flat.dtype in _DIGITS:
        return decimals(flat)
    if flat.dtype == bool:
        return [b"true" if value else b"false" for value in flat.tolist()]
    if flat.dtype == object:
        values = [value if isinstance(value, bytes) else str(value).encode() for value in flat]
        if not name.endswith(_BYTES_SUFFIX):
            return [quoted(value) for value in values]
        inner, outer = (depth + 1) * _INDENT, depth * _INDENT
        return [
            b'{\n%s"b64": "%s"\n%s}' % (inner, base64.b64encode(value), outer) for value in values
        ]
    if np.issubdtype(flat.dtype, np.integer) and flat.dtype != np.uint16:
        return [b"%d" % value for value in flat.tolist()]
    kind = tf.dtypes.as_dtype(array.dtype).name
    raise invalid(f"Failed to write JSON value for tensor type: {kind}")


def _on_one_line(nested: _Nested) -> bytes:
    if isinstance(nested, bytes):
        return nested
    return b"[" + b", ".join(_on_one_line(element) for element in nested) + b"]"


def _on_lines(nested: _Nested, depth: int) -> bytes:
    if isinstance(nested, bytes):
        return nested
    if not nested:
        return b"[]"
    inner = (depth + 1) * _INDENT
    listed = b",\n".join(inner + _on_lines(element, depth + 1) for element in nested)
    return b"[\n" + listed + b"\n" + depth * _INDENT + b"]"


def _object(columns: Mapping[str, Sequence[bytes]], index: int, depth: int) -> bytes:
    members: Iterable[bytes] = (
        (depth + 1) * _INDENT + quoted(name.encode()) + b": " + values[index]
        for name, values in columns.items()
    )
    return b"{\n" + b",\n".join(members) + b"\n" + depth * _INDENT + b"}"


def _printed(document: Any) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _print_all() -> dict[str, bool]:
    """The argument that prints fields of their default value; protobuf 5 renamed it."""
    known = inspect.signature(json_format.MessageToDict).parameters
    new, old = "always_print_fields_with_no_presence", "including_default_value_fields"
    return {new if new in known else old: True}


_PRINT_ALL: Any = _print_all()
