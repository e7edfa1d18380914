"""Bodies of REST requests: JSON to arrays for predict, to tf.Examples for classify and regress.

Grammar, checks, their order and their messages are those of
`tensorflow_serving/util/json_tensor.cc`, which parses with rapidjson: anything after the first
value is ignored, NaN and Infinity are numbers, the first of two equal keys counts, bytes need not
be UTF-8. Well-formed lists take a fast way; whatever is odd is walked through value by value, for
the message.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis import input_pb2

from graftline.serving.server.status import Code, Failure, invalid

_WHITESPACE = re.compile(r"[ \t\n\r]*")
_BASE64_SPACE = re.compile(r"\s+", re.ASCII)
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
# The integers that a float keeps as they are.
_CPP_NAMES = {tf.float16: "half", tf.float32: "float", tf.float64: "double"}
_WHOLE = {tf.float32: (1 << 24) - 1, tf.float64: (1 << 53) - 1}


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object at the beginning of a body.

    Raises:
        Failure: there is none.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    # Bytes that are no UTF-8 go through unchanged: see `_bytes`.
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    start = _end_of(_WHITESPACE, text)
    if start == len(text):
        raise invalid("JSON Parse error: The document is empty. at offset: " + str(start))
    try:
        document, _ = _decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise invalid(
            f"JSON Parse error: {_said_of(error)} at offset: {_offset(text, error.pos)}"
        ) from None
    except RecursionError:
        raise invalid("JSON Parse error: The document is nested too deeply.") from None
    except ValueError:  # an integer of thousands of digits
        raise invalid("JSON Parse error: Number too big to be stored in double.") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_shown(document)} Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature that a request names; empty for none.

    Raises:
        Failure: it is no string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {_shown(document)} not formatted correctly. 'signature_name' key must be "
            "a string value."
        )
    return _utf8(name)


def predict_inputs(
    document: Mapping[str, Any], signature: Any
) -> tuple[dict[str, np.ndarray], bool]:
    """The inputs of a predict request.

    Args:
        document: what `parse` returned.
        signature: the SignatureDef that the request is for.

    Returns:
        Arrays by the signature's names, and whether the request is in rows (`instances`) rather
        than in columns (`inputs`): the answer is then, too.

    Raises:
        Failure: it is malformed, or does not fit the signature.
    """
    types = {
        name: tf.dtypes.as_dtype(signature.inputs[name].dtype) for name in sorted(signature.inputs)
    }
    if not types:
        raise invalid("Failed to get input map for signature: DEFAULT")
    try:
        if "instances" in document:
            return _rows(document, types), True
        if "inputs" in document:
            return _columns(document["inputs"], types), False
    except RecursionError:
        raise invalid("JSON Parse error: The document is nested too deeply.") from None
    raise invalid("Missing 'inputs' or 'instances' key")


def examples_input(document: Mapping[str, Any]) -> input_pb2.Input:
    """The tf.Examples of a classify or regress request, as an Input message.

    Raises:
        Failure: it is malformed.
    """
    source = input_pb2.Input()
    if "context" in document:
        source.example_list_with_context.context.CopyFrom(_example(document["context"]))
        listed = source.example_list_with_context.examples
    else:
        listed = source.example_list.examples
    if "examples" not in document:
        raise invalid(
            f"JSON Value: {_shown(document)} When method is classify, key 'examples' is expected "
            "and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise invalid(
            f"JSON Value: {_shown(document)} Expecting 'examples' value to be an list/array"
        )
    if not examples:
        raise invalid(f"JSON Value: {_shown(document)} 'examples' value is an empty array")
    listed.extend(_example(value) for value in examples)
    return source


def _first_of_equal_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else dict(reversed(pairs))


_decoder = json.JSONDecoder(object_pairs_hook=_first_of_equal_keys, strict=False)


def _end_of(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.match(text)
    return match.end() if match else 0


# What rapidjson says where Python says the key.
_SAID = {
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Illegal trailing comma before end of array": "Invalid value.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\escape: ": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}


def _said_of(error: json.JSONDecodeError) -> str:
    if error.msg == "Expecting ',' delimiter":
        opened = error.doc[: error.pos]
        in_object = opened.rfind("{") > opened.rfind("[")
        kind = "} after an object member." if in_object else "] after an array element."
        return f"Missing a comma or {kind}"
    return _SAID.get(error.msg, "Invalid value.")


def _offset(text: str, position: int) -> int:
    return len(text[:position].encode("utf-8", "surrogateescape"))


def _rows(document: Mapping[str, Any], types: Mapping[str, tf.DType]) -> dict[str, np.ndarray]:
    instances = document["instances"]
    if "inputs" in document:
        raise invalid(
            f"JSON Value: {_shown(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {_shown(document)} Excepting 'instances' to be an list/array")
    if not instances:
        raise invalid(f"JSON Value: {_shown(document)} No values in 'instances' array")
    if not isinstance(instances[0], dict) and len(types) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    if _is_object(instances[0]):
        return _named_rows(instances, types)
    ((name, dtype),) = types.items()
    array = _quickly(instances, dtype)
    if array is not None:
        return {name: array}
    arrays: list[np.ndarray] = []
    for index, instance in enumerate(instances):
        if _is_object(instance):
            raise invalid(f"Expecting value/list but got object at item {index} of input list")
        with _element(index):
            arrays.append(_like(arrays, _tensor(instance, dtype)))
    return {name: np.stack(arrays)}


def _named_rows(instances: Sequence[Any], types: Mapping[str, tf.DType]) -> dict[str, np.ndarray]:
    if all(_is_object(instance) and instance.keys() == types.keys() for instance in instances):
        quick = {
            name: _quickly([instance[name] for instance in instances], dtype)
            for name, dtype in types.items()
        }
        if all(array is not None for array in quick.values()):
            return {name: array for name, array in quick.items() if array is not None}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in types}
    for index, instance in enumerate(instances):
        if not _is_object(instance):
            raise invalid(f"Expecting object but got list at item {index} of input list")
        for key, value in instance.items():
            with _element(index, f" key: {key}"):
                if key not in types:
                    raise invalid(f"JSON object: does not have named input: {key}")
                columns[key].append(_like(columns[key], _tensor(value, types[key])))
        if instance.keys() != types.keys():
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{_shown(instance)} keys must be equal to: {','.join(types)}"
            )
    return {name: np.stack(arrays) for name, arrays in columns.items()}


@contextlib.contextmanager
def _element(index: int, key: str = "") -> Iterator[None]:
    """Says in which element of the rows a failure was found."""
    try:
        yield
    except Failure as failure:
        raise invalid(
            f"Failed to process element: {index}{key} of 'instances' list. Error: {failure}"
        ) from None


def _columns(inputs: Any, types: Mapping[str, tf.DType]) -> dict[str, np.ndarray]:
    if not _is_object(inputs):
        if len(types) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        return {name: _tensor(inputs, dtype) for name, dtype in types.items()}
    for name in types:
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _tensor(inputs[name], dtype) for name, dtype in types.items()}


def _like(before: Sequence[np.ndarray], array: np.ndarray) -> np.ndarray:
    if before and before[0].size != array.size:
        raise invalid(f"Expecting tensor size: {before[0].size} but got: {array.size}")
    if before and before[0].shape != array.shape:
        raise invalid(f"Expecting shape {_listed(before[0].shape)} but got: {_listed(array.shape)}")
    return array


def _listed(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _tensor(value: Any, dtype: tf.DType) -> np.ndarray:
    """An array of nested lists, or of a single value."""
    quick = _quickly(value, dtype) if isinstance(value, list) else None
    return _carefully(value, dtype) if quick is None else quick


def _quickly(value: list[Any], dtype: tf.DType) -> np.ndarray | None:
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
        return _objects([_bytes(value) for value in values])
    if dtype == tf.string and kinds == {dict} and all(map(_is_base64, values)):
        return _objects([_decoded(value) for value in values])
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
                f"JSON Value: {_shown(value)} found at incorrect level: {level + 1} in the JSON "
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
            return _decoded(value)
        raise _type_error(value, dtype)
    if dtype in _WHOLE:
        if type(value) not in (int, float):
            raise _type_error(value, dtype)
        return _lossless(value, dtype)
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
        return _bytes(value)
    raise Failure(
        Code.UNIMPLEMENTED, f"Conversion of JSON Value: {_shown(value)} to type: {_name(dtype)}"
    )


def _lossless(value: int | float, dtype: tf.DType) -> float:
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
            f"Cannot convert JSON value: {_shown(value)} to {_name(dtype)} without loss of "
            "precision."
        )
    return number


def _type_error(value: Any, dtype: tf.DType) -> Failure:
    return invalid(
        f"JSON Value: {_shown(value)} Type: {_kind(value)} is not of expected type: {_name(dtype)}"
    )


def _name(dtype: tf.DType) -> str:
    """The type's name as C++ writes it."""
    return _CPP_NAMES.get(dtype, dtype.name)


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    names: dict[type, str] = {dict: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


def _shown(value: Any) -> str:
    """A JSON value as the messages show it: rapidjson's pretty form, four spaces."""
    text = json.dumps(value, indent=4, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _decoded(value: Any) -> bytes:
    """The bytes of a `{"b64": …}` object; padding is optional, whitespace ignored."""
    if not _is_base64(value):
        raise invalid(f"JSON Value: {_shown(value)} not formatted correctly for base64 data")
    text: str = value["b64"]
    with contextlib.suppress(ValueError):
        return base64.b64decode(text, validate=True)
    text = _BASE64_SPACE.sub("", text).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise invalid("Unable to base64 decode") from None


def _bytes(text: str) -> bytes:
    """The bytes of a JSON string as they came."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None


def _utf8(name: str) -> str:
    """A name as protobuf takes it.

    Raises:
        Failure: it is no UTF-8.
    """
    try:
        return _bytes(name).decode()
    except UnicodeDecodeError:
        raise invalid(f"{_shown(name)} is no UTF-8") from None


def _example(value: Any) -> example_pb2.Example:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {_kind(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        feature = example.features.feature[_utf8(name)]
        for element in content if isinstance(content, list) else [content]:
            _add(feature, name, element)
    return example


def _add(feature: feature_pb2.Feature, name: str, value: Any) -> None:
    if (
        value is None
        or isinstance(value, list)
        or (isinstance(value, dict) and not _is_base64(value))
    ):
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {_kind(value)}")
    whole = type(value) is int and -(1 << 63) <= value < 1 << 64
    if isinstance(value, bool) or whole:
        kind = "int64"
    elif isinstance(value, (str, dict)):
        kind = "bytes"
    else:
        kind = "float"
    present = feature.WhichOneof("kind")
    if present not in (None, f"{kind}_list"):
        expected = present.removesuffix("_list")
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {expected}")
    if kind == "bytes":
        content = _bytes(value) if isinstance(value, str) else _decoded(value)
        feature.bytes_list.value.append(content)
    elif kind == "float":
        feature.float_list.value.append(_lossless(value, tf.float32))
    elif value >= 1 << 63:
        raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    else:
        feature.int64_list.value.append(int(value))
