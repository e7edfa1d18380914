"""Bodies of REST requests: JSON to arrays for predict, to tf.Examples for classify and regress.

Grammar, checks, their order and their messages are those of
`tensorflow_serving/util/json_tensor.cc`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis import input_pb2

from graftline.serving.server.json_tensors import lossless, quickly, tensor
from graftline.serving.server.json_values import (
    decoded,
    is_object,
    kind_of,
    shown,
    to_bytes,
    to_text,
)
from graftline.serving.server.status import Failure, invalid


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature that a request names; empty for none.

    Raises:
        Failure: it is no string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {shown(document)} not formatted correctly. 'signature_name' key must be "
            "a string value."
        )
    return to_text(name)


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
            f"JSON Value: {shown(document)} When method is classify, key 'examples' is expected "
            "and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise invalid(
            f"JSON Value: {shown(document)} Expecting 'examples' value to be an list/array"
        )
    if not examples:
        raise invalid(f"JSON Value: {shown(document)} 'examples' value is an empty array")
    listed.extend(_example(value) for value in examples)
    return source


def _rows(document: Mapping[str, Any], types: Mapping[str, tf.DType]) -> dict[str, np.ndarray]:
    instances = document["instances"]
    if "inputs" in document:
        raise invalid(
            f"JSON Value: {shown(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {shown(document)} Excepting 'instances' to be an list/array")
    if not instances:
        raise invalid(f"JSON Value: {shown(document)} No values in 'instances' array")
    if not isinstance(instances[0], dict) and len(types) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    if is_object(instances[0]):
        return _named_rows(instances, types)
    # Of several inputs, which only a first `{"b64": …}` lets through, the others are missed later.
    name, dtype = next(iter(types.items()))
    array = quickly(instances, dtype)
    if array is not None:
        return {name: array}
    arrays: list[np.ndarray] = []
    for index, instance in enumerate(instances):
        if is_object(instance):
            raise invalid(f"Expecting value/list but got object at item {index} of input list")
        with _element(index):
            arrays.append(_like(arrays, tensor(instance, dtype)))
    return {name: np.stack(arrays)}


def _named_rows(instances: Sequence[Any], types: Mapping[str, tf.DType]) -> dict[str, np.ndarray]:
    if all(is_object(instance) and instance.keys() == types.keys() for instance in instances):
        quick = {
            name: quickly([instance[name] for instance in instances], dtype)
            for name, dtype in types.items()
        }
        if all(array is not None for array in quick.values()):
            return {name: array for name, array in quick.items() if array is not None}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in types}
    for index, instance in enumerate(instances):
        if not is_object(instance):
            raise invalid(f"Expecting object but got list at item {index} of input list")
        for key, value in instance.items():
            with _element(index, f" key: {key}"):
                if key not in types:
                    raise invalid(f"JSON object: does not have named input: {key}")
                columns[key].append(_like(columns[key], tensor(value, types[key])))
        if instance.keys() != types.keys():
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{shown(instance)} keys must be equal to: {','.join(types)}"
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
    if not is_object(inputs):
        if len(types) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        return {name: tensor(inputs, dtype) for name, dtype in types.items()}
    for name in types:
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: tensor(inputs[name], dtype) for name, dtype in types.items()}


def _like(before: Sequence[np.ndarray], array: np.ndarray) -> np.ndarray:
    if before and before[0].size != array.size:
        raise invalid(f"Expecting tensor size: {before[0].size} but got: {array.size}")
    if before and before[0].shape != array.shape:
        raise invalid(f"Expecting shape {_listed(before[0].shape)} but got: {_listed(array.shape)}")
    return array


def _listed(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _example(value: Any) -> example_pb2.Example:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {kind_of(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        feature = example.features.feature[to_text(name)]
        for element in content if isinstance(content, list) else [content]:
            _add(feature, name, element)
    return example


def _add(feature: feature_pb2.Feature, name: str, value: Any) -> None:
    if value is None or isinstance(value, list) or is_object(value):
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {kind_of(value)}")
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
        content = to_bytes(value) if isinstance(value, str) else decoded(value)
        feature.bytes_list.value.append(content)
    elif kind == "float":
        feature.float_list.value.append(lossless(value, tf.float32))
    elif value >= 1 << 63:
        raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    else:
        feature.int64_list.value.append(int(value))
