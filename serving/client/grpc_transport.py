"""Asks over gRPC, with a handful of messages of TensorFlow Serving's interface.

tensorflow-serving-api has them too, and loads TensorFlow with them, which takes seconds. Names and
numbers are those of `tensorflow_serving/apis/*.proto` and `tensorflow/core/framework/*.proto`.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from graftline.serving.client.address import Address, Tls
from graftline.serving.client.transport import (
    MOST_BYTES,
    OUTPUTS,
    Answer,
    Asked,
    Description,
    strange,
)
from graftline.serving.predictor import INPUT, SIGNATURE
from graftline.serving.protos import declare
from graftline.serving.server.status import Code, Failure

_STRING = 7  # tensorflow/core/framework/types.proto
_MESSAGES = declare(
    "graftline.client",
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
_OPTIONS = [
    # Servers are in one's own network, where the environment's proxy does not lead to.
    ("grpc.enable_http_proxy", 0),
    # Whoever asks decides what is tried again.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MOST_BYTES),
]


class GrpcTransport:
    """One gRPC channel."""

    tells_version = True

    def __init__(self, address: Address, tls: Tls) -> None:
        """Opens no connection yet."""
        if address.encrypted:
            credentials = grpc.ssl_channel_credentials(*tls.read())
            self._channel = grpc.secure_channel(address.grpc, credentials, _OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address.grpc, _OPTIONS)
        self._predict = self._method("Predict", "PredictRequest", "PredictResponse")
        self._metadata = self._method("GetModelMetadata", "MetadataRequest", "MetadataResponse")

    def _method(self, name: str, request: str, response: str) -> Any:
        return self._channel.unary_unary(
            f"/tensorflow.serving.PredictionService/{name}",
            request_serializer=_MESSAGES[request].SerializeToString,
            response_deserializer=_MESSAGES[response].FromString,
        )

    def describe(self, asked: Asked, seconds: float) -> Description:
        """As Transport."""
        request = _MESSAGES["MetadataRequest"](metadata_field=["signature_def"])
        _specify(request.model_spec, asked)
        response = _call(self._metadata, request, seconds)
        packed = {entry.key: entry.value.value for entry in response.metadata}
        try:
            signatures = _MESSAGES["Signatures"].FromString(packed.get("signature_def", b""))
        except DecodeError as error:
            raise strange("signatures that cannot be read") from error
        found = [entry.value for entry in signatures.signature_def if entry.key == SIGNATURE]
        return Description(
            response.model_spec.version.value,
            frozenset(entry.key for one in found for entry in one.inputs),
            frozenset(entry.key for one in found for entry in one.outputs),
        )

    def classify(self, asked: Asked, images: Sequence[bytes], seconds: float) -> Answer:
        """As Transport."""
        request = _MESSAGES["PredictRequest"](output_filter=OUTPUTS)
        _specify(request.model_spec, asked)
        request.model_spec.signature_name = SIGNATURE
        tensor = request.inputs.add(key=INPUT).value
        tensor.dtype = _STRING
        tensor.tensor_shape.dim.add(size=len(images))
        tensor.string_val.extend(images)
        response = _call(self._predict, request, seconds)
        outputs = {output.key: output.value for output in response.outputs}
        if not outputs.keys() >= set(OUTPUTS):
            raise strange(f"an answer with the outputs {sorted(outputs)}")
        names = [name.decode("utf-8", "replace") for name in outputs["classes"].string_val]
        scores = _floats(outputs["scores"])
        count, odd = divmod(len(names), len(images))
        if odd or not count or len(scores) != len(names):
            raise strange(f"{len(names)} classes and {len(scores)} scores for {len(images)} images")
        pairs = list(zip(names, scores, strict=True))
        rows = [pairs[i : i + count] for i in range(0, len(pairs), count)]
        return Answer(response.model_spec.version.value, rows)

    def close(self) -> None:
        """As Transport."""
        self._channel.close()


def _specify(spec: Any, asked: Asked) -> None:
    spec.name = asked.model
    if asked.version is not None:
        spec.version.value = asked.version
    elif asked.label:
        spec.version_label = asked.label


def _call(method: Any, request: Any, seconds: float) -> Any:
    try:
        return method(request, timeout=seconds)
    except grpc.RpcError as error:
        raise Failure(Code(error.code().value[0]), error.details() or "") from error


def _floats(tensor: Any) -> list[float]:
    """The numbers, also of a server started with --enable_serialization_as_tensor_content."""
    content = tensor.tensor_content
    if not content:
        return list(tensor.float_val)
    numbers = array.array("f", content[: len(content) // 4 * 4])
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
