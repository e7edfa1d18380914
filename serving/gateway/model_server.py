"""Asks the model server over gRPC.

gRPC rather than REST: it can be encrypted and mutual (REST has no TLS), carries deadlines, and an
image goes over as it is instead of as base64 in JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec

from graftline.serving.errors import UserError
from graftline.serving.gateway.config import GatewayConfig
from graftline.serving.gateway.refusals import Refusal, busy
from graftline.serving.prediction_messages import (
    AVAILABLE,
    MESSAGES,
    classes_and_scores,
    method,
    predict_request,
)

_STATUS_SECONDS = 2.0
# Asked again when a connection broke, for a classification changes nothing; but not when most
# requests fail, which would only add to the load.
_SERVICE = {
    "methodConfig": [
        {
            "name": [{"service": "tensorflow.serving.PredictionService"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.2},
}
_UNKNOWN_LABEL = "Unrecognized servable version label"


class LabelRefused(Exception):
    """The server does not know the label, or has just unloaded its version."""


class Classification(msgspec.Struct, frozen=True):
    """The model's answer for one image.

    Attributes:
        version: of the model that answered.
        classes: names.
        scores: probabilities, one for each class.
    """

    version: int
    classes: list[str]
    scores: list[float]


class ModelServer:
    """A client of one model. Made and used in an event loop."""

    def __init__(
        self, config: GatewayConfig, model: str, secured: grpc.ChannelCredentials | None
    ) -> None:
        """Opens no connection yet.

        Args:
            config: where the server is and how it is asked.
            model: its name there.
            secured: for TLS; None: in clear.
        """
        self._model = model
        self._seconds = config.model_seconds
        options = [
            ("grpc.service_config", json.dumps(_SERVICE)),
            ("grpc.lb_policy_name", "round_robin"),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", 64 << 20),
        ]
        if secured is not None:
            self._channel = grpc.aio.secure_channel(config.server, secured, options)
        else:
            self._channel = grpc.aio.insecure_channel(config.server, options)
        self._predict = method(
            self._channel, "PredictionService/Predict", "PredictRequest", "PredictResponse"
        )
        self._status = method(
            self._channel, "ModelService/GetModelStatus", "StatusRequest", "StatusResponse"
        )

    async def classify(self, image: bytes, label: str | None) -> Classification:
        """Asks for the classes of an image.

        Args:
            image: encoded.
            label: of the version; None: the server chooses.

        Raises:
            LabelRefused: another label may do.
            Refusal: there is no answer.
        """
        request = predict_request([image])
        request.model_spec.name = self._model
        if label is not None:
            request.model_spec.version_label = label
        try:
            response = await self._predict(request, timeout=self._seconds)
        except grpc.aio.AioRpcError as error:
            raise _explain(error, label) from error
        return _read(response)

    async def available(self) -> bool:
        """Whether the server has a version of the model to answer with."""
        request = MESSAGES["StatusRequest"]()
        request.model_spec.name = self._model
        try:
            response = await self._status(request, timeout=_STATUS_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return any(found.state == AVAILABLE for found in response.model_version_status)

    async def close(self) -> None:
        """Closes connections."""
        await self._channel.close()


def credentials(config: GatewayConfig) -> grpc.ChannelCredentials | None:
    """What the model server's certificate is checked with, and ours; None: it is asked in clear.

    Raises:
        UserError: a file cannot be read.
    """
    if not config.server_ca:
        return None
    files = (config.server_ca, config.client_key, config.client_certificate)
    try:
        ca, key, certificate = (Path(file).read_bytes() if file else None for file in files)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _explain(error: grpc.aio.AioRpcError, label: str | None) -> Exception:
    code, said = error.code(), error.details() or ""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        if label is not None and said.startswith(_UNKNOWN_LABEL):
            return LabelRefused(label)
        if "match signature" in said or "not found in signature" in said:
            return _unfit(said)
        return Refusal(
            422, "undecodable", "The header is that of an image, but the rest cannot be decoded."
        )
    if code is grpc.StatusCode.NOT_FOUND:
        if label is not None:
            return LabelRefused(label)
        return Refusal(
            503, "no-model", "The model server has no version to answer with.", {"Retry-After": "5"}
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Refusal(504, "timeout", "The model server did not answer in time.")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return busy("The model server has too much to do.")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return Refusal(
            503, "no-server", "The model server cannot be reached.", {"Retry-After": "1"}
        )
    return _unfit(f"{code.name}: {said}")


def _unfit(said: str) -> Refusal:
    """A server that answers, but not as a model of Graftline does: a fault of whoever runs it."""
    refusal = Refusal(502, "bad-model", "The model server does not answer as it should.")
    refusal.__cause__ = RuntimeError(said)
    return refusal


def _read(response: Any) -> Classification:
    try:
        names, scores = classes_and_scores(response, images=1)
    except ValueError as error:
        raise _unfit(str(error)) from error
    return Classification(response.model_spec.version.value, names, scores)
