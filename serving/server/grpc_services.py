"""The gRPC interface: PredictionService and ModelService of TensorFlow Serving, and health."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from graftline.serving.server.core import Core
from graftline.serving.server.metrics import Metrics
from graftline.serving.server.requests import Requests
from graftline.serving.server.status import Code, Failure, explain, invalid

# What gRPC says where there is none.
_LONGEST_DEADLINE_SECONDS = 1e6

_log = logging.getLogger(__name__)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference, GetModelMetadata."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Tensors in, tensors out."""
        return _answered(context, lambda: self._requests.predict(request, _left(context)))

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:
        """tf.Examples in, classes and scores out."""
        response = classification_pb2.ClassificationResponse()
        return _answered(
            context, lambda: self._requests.classify(request, response, _left(context))
        )

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:
        """tf.Examples in, numbers out."""
        response = regression_pb2.RegressionResponse()
        return _answered(context, lambda: self._requests.regress(request, response, _left(context)))

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Several classifications and regressions of the same tf.Examples."""
        return _answered(context, lambda: self._requests.multi_inference(request, _left(context)))

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        """The signatures of a version."""
        return _answered(context, lambda: self._requests.metadata(request))


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus, HandleReloadConfigRequest."""

    def __init__(self, core: Core, metrics: Metrics) -> None:
        self._core = core
        self._metrics = metrics

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        """The states of a model's versions."""
        return _answered(context, lambda: self._status(request))

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Replaces the configuration."""
        return _answered(context, lambda: self._reload(request, context))

    def _status(self, request: Any) -> get_model_status_pb2.GetModelStatusResponse:
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, state in self._core.status(request.model_spec).items():
            version = response.model_version_status.add(version=number, state=state.state.value)
            # Also where all is well: clients read the field without asking whether it is there.
            version.status.error_code = state.error.code.value if state.error else Code.OK.value
            version.status.error_message = state.error.message if state.error else ""
        return response

    def _reload(
        self, request: Any, context: grpc.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
                "ModelConfigList is currently supported"
            )
        self._core.check_paths(request.config)
        before = {name: self._metrics.first(name) for name in request.metric_names}
        # A client that has left no longer holds up the next one.
        self._core.reload(request.config, context.is_active)
        if not context.is_active():
            raise Failure(Code.CANCELLED, "The client has left")
        _log.info("Took a new configuration from %s", context.peer())
        response = model_management_pb2.ReloadConfigResponse()
        response.status.error_code = Code.OK.value
        for name in request.metric_names:
            increase = self._metrics.first(name) - before[name]
            response.metric.add(name=name, int64_value_increase=increase)
        return response


def add_health(server: grpc.Server) -> health.HealthServicer:
    """Adds grpc.health.v1 to a server; the services' names are unqualified, as the real one's."""
    servicer = health.HealthServicer()
    for service in ("", "PredictionService", "ModelService"):
        servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


def _left(context: grpc.ServicerContext) -> int:
    """Milliseconds until the client's deadline; 0 where it has none.

    Raises:
        Failure: it has passed.
    """
    seconds = context.time_remaining()
    if seconds is None or seconds > _LONGEST_DEADLINE_SECONDS:
        return 0
    if seconds <= 0:
        raise Failure(Code.DEADLINE_EXCEEDED, "The deadline had passed before the request began")
    return max(1, round(seconds * 1e3))


def _answered(context: grpc.ServicerContext, answer: Callable[[], Any]) -> Any:
    """The answer, or the call's end with the status that stands for the failure."""
    try:
        if not context.is_active():
            raise Failure(Code.CANCELLED, "The client has left")
        return answer()
    except Exception as error:
        failure = explain(error)
        if failure.code is Code.INTERNAL and failure is not error:
            _log.exception("A gRPC request crashed")
    context.abort(getattr(grpc.StatusCode, failure.code.name), failure.grpc_message)
    raise AssertionError("abort raises")
