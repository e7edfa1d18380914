"""One request from its model to its answer, by gRPC or REST: lookup, computation, metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    inference_pb2,
    model_pb2,
    predict_pb2,
)

from graftline.serving.server import inference
from graftline.serving.server.core import Core
from graftline.serving.server.flags import Flags
from graftline.serving.server.inference import DEFAULT_SIGNATURE, Options
from graftline.serving.server.metrics import Metrics
from graftline.serving.server.servable import Servable
from graftline.serving.server.status import Code, Failure, explain, invalid
from graftline.serving.server.tensors import to_array, to_proto

_SIGNATURES = "signature_def"
_UNKNOWN_MODEL = "unknown"


class Requests:
    """Answers the calls of PredictionService; safe to use from any thread.

    A computation is given up after `timeout_ms` milliseconds, where that is not 0.
    """

    def __init__(self, core: Core, metrics: Metrics, flags: Flags, entrypoint: str) -> None:
        """Takes what requests need.

        Args:
            core: the models.
            metrics: where requests are counted.
            flags: how the server was started.
            entrypoint: `GRPC` or `REST`.
        """
        self._core = core
        self._metrics = metrics
        self._entrypoint = entrypoint
        self._as_content = flags.enable_serialization_as_tensor_content
        self._check_method = flags.enable_signature_method_name_check

    def predict(self, request: Any, timeout_ms: int = 0) -> predict_pb2.PredictResponse:
        """Answers a PredictRequest.

        Raises:
            Failure: it cannot be answered.
        """
        spec = _spec(request)
        with self._counted(spec.name, "Predict"), self._core.use(spec) as (number, servable):
            name = spec.signature_name or DEFAULT_SIGNATURE
            if name not in servable.signatures:
                raise Failure(
                    Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
                )
            inputs = {alias: to_array(proto, alias) for alias, proto in request.inputs.items()}
            outputs = self._predict(
                spec.name,
                servable,
                name,
                inputs,
                request.output_filter,
                self._options(timeout_ms),
            )
            response = predict_pb2.PredictResponse(model_spec=_resolved(spec.name, number, name))
            for alias, array in outputs.items():
                response.outputs[alias].CopyFrom(to_proto(array, self._as_content))
            return response

    def predict_json(
        self,
        spec: Any,
        read: Callable[[Any], tuple[dict[str, np.ndarray], bool]],
        timeout_ms: int = 0,
    ) -> tuple[dict[str, np.ndarray], bool]:
        """Answers a predict request whose inputs can only be read with the signature at hand.

        Args:
            spec: the ModelSpec that it is for.
            read: reads the inputs for a SignatureDef, and whether they are in rows.
            timeout_ms: see above.

        Returns:
            The outputs, and whether the answer is in rows.

        Raises:
            Failure: it cannot be answered.
        """
        with self._counted(spec.name, "Predict"), self._core.use(spec) as (_, servable):
            name = spec.signature_name or DEFAULT_SIGNATURE
            if name not in servable.signatures:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            inputs, rows = read(servable.signatures[name])
            options = self._options(timeout_ms)
            return self._predict(spec.name, servable, name, inputs, (), options), rows

    def classify(self, request: Any, response: Any, timeout_ms: int = 0) -> Any:
        """Answers a ClassificationRequest into an empty ClassificationResponse, and returns that.

        Raises:
            Failure: it cannot be answered.
        """
        return self._on_examples("Classify", inference.classify, request, response, timeout_ms)

    def regress(self, request: Any, response: Any, timeout_ms: int = 0) -> Any:
        """Answers a RegressionRequest into an empty RegressionResponse, and returns that.

        Raises:
            Failure: it cannot be answered.
        """
        return self._on_examples("Regress", inference.regress, request, response, timeout_ms)

    def multi_inference(
        self, request: Any, timeout_ms: int = 0
    ) -> inference_pb2.MultiInferenceResponse:
        """Answers a MultiInferenceRequest.

        Raises:
            Failure: it cannot be answered.
        """
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        with (
            self._counted(spec.name, "MultiInference", request.input),
            self._core.use(spec) as (number, servable),
        ):
            answers = self._timed(
                spec.name,
                "MultiInference",
                lambda: inference.multi_inference(servable, request, self._options(timeout_ms)),
            )
            for task, answer in zip(request.tasks, answers, strict=True):
                name = task.model_spec.signature_name or DEFAULT_SIGNATURE
                answer.model_spec.CopyFrom(_resolved(spec.name, number, name))
            return inference_pb2.MultiInferenceResponse(results=answers)

    def metadata(self, request: Any) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Answers a GetModelMetadataRequest.

        Raises:
            Failure: it cannot be answered.
        """
        spec = _spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != _SIGNATURES:
                raise invalid(f"Metadata field {field} is not supported")
        with self._core.use(spec) as (number, servable):
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = spec.name
            response.model_spec.version.value = number
            response.metadata[_SIGNATURES].Pack(signature_map(servable))
            return response

    def _predict(
        self,
        model: str,
        servable: Servable,
        name: str,
        inputs: dict[str, np.ndarray],
        output_filter: Any,
        options: Options,
    ) -> dict[str, np.ndarray]:
        signature = servable.signatures[name]
        return self._timed(
            model,
            "Predict",
            lambda: inference.predict(servable, signature, inputs, output_filter, options),
        )

    def _options(self, timeout_ms: int) -> Options:
        return Options(timeout_ms, self._check_method)

    def _on_examples(
        self, api: str, compute: Any, request: Any, response: Any, timeout_ms: int
    ) -> Any:
        spec = _spec(request)
        with (
            self._counted(spec.name, api, request.input),
            self._core.use(spec) as (number, servable),
        ):
            signature = inference.example_signature(servable, spec.signature_name)
            result = self._timed(
                spec.name,
                api,
                lambda: compute(servable, signature, request.input, self._options(timeout_ms)),
            )
            response.result.CopyFrom(result)
            name = spec.signature_name or DEFAULT_SIGNATURE
            response.model_spec.CopyFrom(_resolved(spec.name, number, name))
            return response

    def _timed(self, model: str, api: str, compute: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = compute()
        self._metrics.computed(model, api, time.perf_counter() - began)
        return result

    @contextlib.contextmanager
    def _counted(self, model: str, api: str, examples: Any = None) -> Iterator[None]:
        began = time.perf_counter()
        code = Code.OK
        # A name that anybody can make up must not become a time series each.
        known = model if self._core.serves(model) else _UNKNOWN_MODEL
        try:
            yield
        except Exception as error:
            code = explain(error).code
            raise
        else:
            if examples is not None:
                self._metrics.examples(known, inference.example_count(examples))
        finally:
            seconds = time.perf_counter() - began
            self._metrics.request(known, api, self._entrypoint, code, seconds)


def signature_map(servable: Servable) -> get_model_metadata_pb2.SignatureDefMap:
    """A version's signatures as a message."""
    made = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in servable.signatures.items():
        made.signature_def[name].CopyFrom(signature)
    return made


def _spec(request: Any) -> Any:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return request.model_spec


def _resolved(model: str, number: int, signature: str) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=model, signature_name=signature)
    spec.version.value = number
    return spec
