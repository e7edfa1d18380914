"""Asking for classes over gRPC, with a handful of messages of TensorFlow Serving's interface.

tensorflow-serving-api has them too, and loads TensorFlow with them, which takes seconds. Names and
numbers are those of `tensorflow_serving/apis/*.proto` and `tensorflow/core/framework/*.proto`.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Sequence
from typing import Any

from graftline.serving.protos import declare
from graftline.serving.signature import INPUT, OUTPUTS, SIGNATURE

_STRING = 7  # tensorflow/core/framework/types.proto
AVAILABLE = 30  # tensorflow_serving/apis/get_model_status.proto
MESSAGES = declare(
    "graftline.serving",
    {
        "ModelSpec": {
            "name": (1, "string"),
            "version": (2, "Int64Value"),
            "signature_name": (3, "string"),
            "version_label": (4, "string"),
        },
        "Dimension": {"size": (1, "int64")},
        "TensorShape": {"dim": (2, "repeated Dimension")},
        "Tensor": {
            "dtype": (1, "int32"),
            "tensor_shape": (2, "TensorShape"),
            "tensor_content": (4, "bytes"),
            "float_val": (5, "repeated float"),
            "string_val": (8, "repeated bytes"),
        },
        "NamedTensor": {"key": (1, "string"), "value": (2, "Tensor")},
        "PredictRequest": {
            "model_spec": (1, "ModelSpec"),
            "inputs": (2, "repeated NamedTensor"),
            "output_filter": (3, "repeated string"),
        },
        "PredictResponse": {
            "outputs": (1, "repeated NamedTensor"),
            "model_spec": (2, "ModelSpec"),
        },
        "StatusRequest": {"model_spec": (1, "ModelSpec")},
        "VersionStatus": {"version": (1, "int64"), "state": (2, "int32")},
        "StatusResponse": {"model_version_status": (1, "repeated VersionStatus")},
        "MetadataRequest": {
            "model_spec": (1, "ModelSpec"),
            "metadata_field": (2, "repeated string"),
        },
        "Packed": {"type_url": (1, "string"), "value": (2, "bytes")},
        "NamedPacked": {"key": (1, "string"), "value": (2, "Packed")},
        "MetadataResponse": {
            "model_spec": (1, "ModelSpec"),
            "metadata": (2, "repeated NamedPacked"),
        },
        "NamedTensorInfo": {"key": (1, "string")},
        "Signature": {
            "inputs": (1, "repeated NamedTensorInfo"),
            "outputs": (2, "repeated NamedTensorInfo"),
        },
        "NamedSignature": {"key": (1, "string"), "value": (2, "Signature")},
        "Signatures": {"signature_def": (1, "repeated NamedSignature")},
    },
)


def method(channel: Any, name: str, request: str, response: str) -> Any:
    """A unary method of a channel, of grpc or grpc.aio.

    Args:
        channel: to the server.
        name: service and method below `tensorflow.serving`.
        request: name in MESSAGES.
        response: likewise.
    """
    return channel.unary_unary(
        f"/tensorflow.serving.{name}",
        request_serializer=MESSAGES[request].SerializeToString,
        response_deserializer=MESSAGES[response].FromString,
    )


def predict_request(images: Sequence[bytes]) -> Any:
    """A PredictRequest for encoded images; `model_spec` still lacks the model."""
    request = MESSAGES["PredictRequest"](output_filter=OUTPUTS)
    request.model_spec.signature_name = SIGNATURE
    tensor = request.inputs.add(key=INPUT).value
    tensor.dtype = _STRING
    tensor.tensor_shape.dim.add(size=len(images))
    tensor.string_val.extend(images)
    return request


def classes_and_scores(response: Any, images: int) -> tuple[list[str], list[float]]:
    """What a PredictResponse says: the classes of one image after the other, and their scores.

    Args:
        response: the answer.
        images: how many were asked for.

    Raises:
        ValueError: it is none for so many images; what it is instead.
    """
    outputs = {output.key: output.value for output in response.outputs}
    if not outputs.keys() >= set(OUTPUTS):
        raise ValueError(f"an answer with the outputs {sorted(outputs)}")
    classes, scores = (outputs[name] for name in OUTPUTS)
    names = [name.decode("utf-8", "replace") for name in classes.string_val]
    numbers = _floats(scores)
    if not names or len(names) % images or len(names) != len(numbers):
        raise ValueError(f"{len(names)} classes and {len(numbers)} scores for {images} images")
    return names, numbers


def _floats(tensor: Any) -> list[float]:
    """The numbers, also of a server started with --enable_serialization_as_tensor_content."""
    content = tensor.tensor_content
    if not content:
        return list(tensor.float_val)
    numbers = array.array("f", content[: len(content) // 4 * 4])
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
