"""TensorProto to numpy array and back, with limits: what comes from a client is not trusted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2

from graftline.serving.server.status import Code, Failure, invalid

# One value may stand for a whole tensor (`float_val: 0` and any shape): 30 bytes of a request must
# not become gigabytes of memory.
LARGEST_BYTES = 1 << 30
_MOST_DIMENSIONS = 32  # numpy 1's

_VALUE_FIELD = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int8: "int_val",
    tf.int16: "int_val",
    tf.int32: "int_val",
    tf.uint8: "int_val",
    tf.uint16: "int_val",
    tf.int64: "int64_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
    tf.float16: "half_val",
    tf.bfloat16: "half_val",
}


def to_array(proto: Any, alias: str) -> np.ndarray:
    """The array that a TensorProto holds; strings as an object array of bytes.

    Raises:
        Failure: it holds none: unknown type, shape and values that do not fit, too large.
    """
    shape = [dim.size for dim in proto.tensor_shape.dim]
    try:
        dtype = tf.dtypes.as_dtype(proto.dtype)
        size = max(dtype.size or 1, 1)
    except TypeError:
        raise invalid(f"tensor parsing error: {alias}") from None
    if (
        proto.tensor_shape.unknown_rank
        or min(shape, default=0) < 0
        or len(shape) > _MOST_DIMENSIONS
    ):
        raise invalid(f"tensor parsing error: {alias}")
    if math.prod(shape) * size > LARGEST_BYTES:
        raise invalid(
            f"tensor parsing error: {alias}: more than {LARGEST_BYTES >> 20} MiB in one tensor"
        )
    try:
        array: np.ndarray = tf.make_ndarray(proto)
    except (TypeError, ValueError, KeyError):
        raise invalid(f"tensor parsing error: {alias}") from None
    return array


def to_proto(array: np.ndarray, as_content: bool = False) -> Any:
    """A TensorProto of an array, with its values in the `*_val` field of its type.

    Args:
        array: what a session returned.
        as_content: write `tensor_content` instead; strings stay `string_val`.

    Raises:
        Failure: a type that has no such field.
    """
    dtype = tf.dtypes.as_dtype(array.dtype if array.dtype != object else tf.string)
    proto = tensor_pb2.TensorProto(
        dtype=dtype.as_datatype_enum,
        tensor_shape=tensor_shape_pb2.TensorShapeProto(
            dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in array.shape]
        ),
    )
    field = _VALUE_FIELD.get(dtype)
    if as_content and dtype != tf.string:
        proto.tensor_content = array.tobytes()
    elif field is None:
        raise Failure(Code.UNIMPLEMENTED, f"Cannot return a tensor of type {dtype.name}")
    else:
        flat = array.ravel()
        values = flat.view(np.uint16) if field == "half_val" else flat
        getattr(proto, field).extend(values.tolist())
    return proto
