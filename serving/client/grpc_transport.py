"""Asks over gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from graftline.serving.client.address import Address, Tls
from graftline.serving.client.transport import (
    MOST_BYTES,
    Answer,
    Asked,
    Description,
    strange,
)
from graftline.serving.prediction_messages import (
    MESSAGES,
    classes_and_scores,
    method,
    predict_request,
)
from graftline.serving.server.status import Code, Failure
from graftline.serving.signature import SIGNATURE

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
        self._predict = method(
            self._channel, "PredictionService/Predict", "PredictRequest", "PredictResponse"
        )
        self._metadata = method(
            self._channel,
            "PredictionService/GetModelMetadata",
            "MetadataRequest",
            "MetadataResponse",
        )

    def describe(self, asked: Asked, seconds: float) -> Description:
        """As Transport."""
        request = MESSAGES["MetadataRequest"](metadata_field=["signature_def"])
        _specify(request.model_spec, asked)
        response = _call(self._metadata, request, seconds)
        packed = {entry.key: entry.value.value for entry in response.metadata}
        try:
            signatures = MESSAGES["Signatures"].FromString(packed.get("signature_def", b""))
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
        request = predict_request(images)
        _specify(request.model_spec, asked)
        response = _call(self._predict, request, seconds)
        try:
            names, scores = classes_and_scores(response, len(images))
        except ValueError as error:
            raise strange(str(error)) from error
        pairs = list(zip(names, scores, strict=True))
        count = len(names) // len(images)
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
