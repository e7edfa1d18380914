"""Nested JSON lists to arrays, with the checks and messages of the real server.

Well-formed lists take a fast way; whatever is odd is walked through value by value, for the message
(tensorflow_serving/util/json_tensor.cc).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from graftline.serving.server.json_values import decoded, is_base64, kind_of, shown, to_bytes
from graftline.serving.server.status import Code, Failure, invalid

_MOST_DIMENSIONS = 32  # numpy 1's
_INTEGERS = {
    tf.int8: (-(1 << 31), (1 << 31) - 1),
    tf.int16: (-(1 << 31), (1 << 31) - 1),
    tf.int32: (-(1 << 31), (1 << 31) - 1),
    tf.uint8: (-(1 << 31), (1 << 31) - 1),
    tf.int64: (-(1 << 63), (1 << 63) - 1),
    tf.uint32: (0, (1 << 32) - 1),
    tf.uint64: (0, (1 << 64) - 1),
}
_CPP_NAMES = {tf.float16: "half", tf.float32: "float", tf.float64: "double"}
# The integers that a float keeps as they are.
_WHOLE = {tf.float32: (1 << 24) - 1, tf.float64: (1 << 53) - 1}


def tensor(value: Any, dtype: tf.DType) -> np.ndarray:
    """An array of nested lists, or of a single value."""
    quick = quickly(value, dtype) if isinstance(value, list) else None
    return _carefully(value, dtype) if quick is None else quick


def quickly(value: list[Any], dtype: tf.DType) -> np.ndarray | None:
    """The array of nested lists, where all is as it should be; else None."""
    shape: list[int] = []
    level: list[Any] = value
    while level and isinstance(level[0], list):
        sizes = set(map(len, level)) if set(map(type, level)) == {list} else set()
        if len(sizes) != 1 or len(shape) == _MOST_DIMENSIONS - 1:
            return None
        shape.append(len(level[0]))
        level = list(itertools.chain.from_iterable(level))
    flat = _flat(level, set(map(type, level)), dtype) if level else None
    return None if flat is None else flat.reshape(len(value), *shape)


def lossless(value: int | float, dtype: tf.DType) -> float:
    """The number, unless a float of that width does not hold it."""
    whole = type(value) is int and -(1 << 63) <= value < 1 << 64
    try:
        number = float(value)
    except OverflowError:
        raise invalid("JSON Parse error: Number too big to be stored in double.") from None
    if math.isfinite(number) and (
        abs(value) > _WHOLE[dtype]
        if whole
        else abs(number) > float(np.finfo(dtype.as_numpy_dtype).max)
    ):
        raise invalid(
            f"Cannot convert JSON value: {shown(value)} to {_name(dtype)} without loss of "
            "precision."
        )
    return number


def _flat(values: list[Any], kinds: set[type], dtype: tf.DType) -> np.ndarray | None:
    if dtype in _WHOLE and kinds <= {int, float}:
        if int in kinds and max(abs(v) for v in values if type(v) is int) > _WHOLE[dtype]:
            return None
        array = np.array(values, dtype=np.float64)
        largest = np.finfo(dtype.as_numpy_dtype).max
        if np.any(np.abs(array[np.isfinite(array)]) > largest):
            return None
        return array.astype(dtype.as_numpy_dtype)
    if dtype in _INTEGERS and kinds == {int}:
        low, high = _INTEGERS[dtype]
        if min(values) < low or max(values) > high:
            return None
        # Numbers of 32 bits that the type does not hold wrap around, as in C++.
        wide = np.array(values, dtype=np.uint64 if dtype == tf.uint64 else np.int64)
        return wide.astype(dtype.as_numpy_dtype)
    if dtype == tf.bool and kinds == {bool}:
        return np.array(values, dtype=bool)
    if dtype == tf.string and kinds == {str}:
        return _objects([to_bytes(value) for value in values])
    if dtype == tf.string and kinds == {dict} and all(map(is_base64, values)):
        return _objects([decoded(value) for value in values])
    return None


def _objects(values: list[bytes]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _carefully(value: Any, dtype: tf.DType) -> np.ndarray:
    """The array of nested lists or a single value, with a message for the first thing amiss."""
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        if not first:
            break
        first = first[0]
    if len(shape) > _MOST_DIMENSIONS:
        raise invalid(f"tensor parsing error: more than {_MOST_DIMENSIONS} dimensions")
    values: list[Any] = []
    _fill(value, 0, shape, dtype, values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    if dtype != tf.string:
        array = array.astype(np.float64 if dtype in _WHOLE else object)
        if dtype in _INTEGERS:
            array = array.astype(np.uint64 if dtype == tf.uint64 else np.int64)
        array = array.astype(dtype.as_numpy_dtype)
    return array.reshape(shape)


def _fill(value: Any, level: int, shape: Sequence[int], dtype: tf.DType, values: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {shown(value)} found at incorrect level: {level + 1} in the JSON "
                f"DOM. Expected at level: {len(shape)}"
            )
        values.append(_scalar(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: "
            f"{shape[level]}"
        )
    for element in value:
        _fill(element, level + 1, shape, dtype, values)


def _scalar(value: Any, dtype: tf.DType) -> Any:
    if isinstance(value, dict):
        if dtype == tf.string:
            return decoded(value)
        raise _type_error(value, dtype)
    if dtype in _WHOLE:
        if type(value) not in (int, float):
            raise _type_error(value, dtype)
        return lossless(value, dtype)
    if dtype in _INTEGERS:
        low, high = _INTEGERS[dtype]
        if type(value) is not int or not low <= value <= high:
            raise _type_error(value, dtype)
        return value
    if dtype == tf.bool:
        if type(value) is not bool:
            raise _type_error(value, dtype)
        return value
    if dtype == tf.string:
        if not isinstance(value, str):
            raise _type_error(value, dtype)
        return to_bytes(value)
    raise Failure(
        Code.UNIMPLEMENTED, f"Conversion of JSON Value: {shown(value)} to type: {_name(dtype)}"
    )


def _type_error(value: Any, dtype: tf.DType) -> Failure:
    return invalid(
        f"JSON Value: {shown(value)} Type: {kind_of(value)} is not of expected type: {_name(dtype)}"
    )


def _name(dtype: tf.DType) -> str:
    """The type's name as C++ writes it."""
    return _CPP_NAMES.get(dtype, dtype.name)
