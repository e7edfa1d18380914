"""TensorProto to numpy array and back, with limits: what comes from a client is not trusted."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2

from graftline.serving.server.status import Code, Failure, invalid

# One value may stand for a whole tensor (`float_val: 0` and any shape): 30 bytes of a request must
# not become gigabytes of memory.
LARGEST_BYTES = 1 << 30
_MOST_DIMENSIONS = 32  # numpy 1's


class _Type(msgspec.Struct, frozen=True):
    """How values of a type stand in a message.

    Attributes:
        enum: the type's number.
        array: of the numpy array.
        field: which field of the message holds values.
        stored: numpy type of what that field holds.
        size: bytes of a value in memory; of a string, without its characters.
    """

    enum: int
    array: np.dtype
    field: str
    stored: np.dtype
    size: int


def _type(dtype: tf.DType, field: str, stored: Any = None) -> _Type:
    array = np.dtype(dtype.as_numpy_dtype)
    size = 64 if dtype == tf.string else array.itemsize
    return _Type(dtype.as_datatype_enum, array, field, np.dtype(stored or array), size)


_TYPES = (
    _type(tf.string, "string_val"),
    _type(tf.float32, "float_val"),
    _type(tf.float64, "double_val"),
    _type(tf.int8, "int_val", np.int32),
    _type(tf.int16, "int_val", np.int32),
    _type(tf.int32, "int_val"),
    _type(tf.uint8, "int_val", np.int32),
    _type(tf.uint16, "int_val", np.int32),
    _type(tf.int64, "int64_val"),
    _type(tf.uint32, "uint32_val"),
    _type(tf.uint64, "uint64_val"),
    _type(tf.bool, "bool_val"),
    _type(tf.float16, "half_val", np.uint16),
    _type(tf.bfloat16, "half_val", np.uint16),
    _type(tf.complex64, "scomplex_val", np.float32),
    _type(tf.complex128, "dcomplex_val", np.float64),
)
# Fields that hold the bits, or the parts, of a value.
_VIEWED = ("half_val", "scomplex_val", "dcomplex_val")
_BY_ENUM = {kind.enum: kind for kind in _TYPES}
_BY_ARRAY = {kind.array: kind for kind in _TYPES}


def to_array(proto: Any, alias: str) -> np.ndarray:
    """The array that a TensorProto holds; strings as an object array of bytes.

    Args:
        proto: the message.
        alias: name of the input, for the failure.

    Raises:
        Failure: it holds none: a type that cannot be fed, shape and values that do not fit, too
            large.
    """
    kind = _BY_ENUM.get(proto.dtype)
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if (
        kind is None
        or proto.tensor_shape.unknown_rank
        or min(shape, default=0) < 0
        or len(shape) > _MOST_DIMENSIONS
    ):
        raise invalid(f"tensor parsing error: {alias}")
    count = math.prod(shape)
    if count * kind.size > LARGEST_BYTES:
        raise invalid(
            f"tensor parsing error: {alias}: more than {LARGEST_BYTES >> 20} MiB in one tensor"
        )
    values = getattr(proto, kind.field)
    try:
        if len(values) != count or proto.tensor_content:
            # Packed bytes, or fewer values than the shape says: the last one is repeated.
            made: np.ndarray = tf.make_ndarray(proto)
            return made
        if kind.field == "string_val":
            strings = np.empty(count, dtype=object)
            strings[:] = list(values)
            return strings.reshape(shape)
        stored = np.fromiter(values, kind.stored, count)
    except (TypeError, ValueError, KeyError):
        raise invalid(f"tensor parsing error: {alias}") from None
    converted = stored.view(kind.array) if kind.field in _VIEWED else stored.astype(kind.array)
    return converted.reshape(shape)


def to_proto(array: np.ndarray, as_content: bool = False) -> Any:
    """A TensorProto of an array, with its values in the `*_val` field of its type.

    Args:
        array: what a session returned.
        as_content: write `tensor_content` instead; strings stay `string_val`.

    Raises:
        Failure: a type that has no such field.
    """
    kind = _BY_ARRAY.get(array.dtype)
    if kind is None:
        raise Failure(Code.UNIMPLEMENTED, f"Cannot return a tensor of type {array.dtype}")
    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in array.shape]
    proto = tensor_pb2.TensorProto(
        dtype=kind.enum, tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=dims)
    )
    if as_content and kind.field != "string_val":
        proto.tensor_content = array.tobytes()
    else:
        flat = array.ravel()
        values = flat.view(kind.stored) if kind.field in _VIEWED else flat
        getattr(proto, kind.field).extend(values.tolist())
    return proto
