"""Replays a version's warm-up requests before it serves, so that its first client need not wait.

`assets.extra/tf_serving_warmup_requests` holds PredictionLog records, at most a thousand, as
`tensorflow_serving/servables/tensorflow/saved_model_warmup_util.cc` reads them. A request that
fails is a load that fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from graftline.serving.server import inference
from graftline.serving.server.servable import Servable
from graftline.serving.server.status import Code, Failure, invalid
from graftline.serving.server.tensors import to_array

WARMUP_REQUESTS = Path("assets.extra") / "tf_serving_warmup_requests"
MOST_RECORDS = 1000


def warm_up(servable: Servable, folder: Path, iterations: int = 1) -> int:
    """Replays the requests in a version's folder, if there are any.

    Args:
        servable: the version.
        folder: its folder.
        iterations: how often each request is replayed.

    Returns:
        How many requests there were.

    Raises:
        Failure: the file is damaged or too long, or a request failed.
    """
    path = folder / WARMUP_REQUESTS
    if not path.is_file():
        return 0
    count = 0
    for count, record in enumerate(_records(path), 1):
        if count > MOST_RECORDS:
            raise invalid(
                f"Number of warmup records exceeds the maximum ({MOST_RECORDS}) at {path}"
            )
        for _ in range(iterations):
            _replay(servable, record)
    return count


def _records(path: Path) -> Iterator[prediction_log_pb2.PredictionLog]:
    try:
        for record in tf.compat.v1.io.tf_record_iterator(str(path)):
            yield prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        raise invalid(f"Failed to parse warmup record from {path}") from None
    except tf.errors.DataLossError as error:
        raise Failure(
            Code.DATA_LOSS,
            f"{error.message}. Please verify your warmup data is in TFRecord format.",
        ) from None


def _replay(servable: Servable, record: prediction_log_pb2.PredictionLog) -> None:
    kind = record.WhichOneof("log_type")
    if kind == "predict_log":
        request = record.predict_log.request
        name = request.model_spec.signature_name or inference.DEFAULT_SIGNATURE
        if name not in servable.signatures:
            raise Failure(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        inputs = {alias: to_array(proto, alias) for alias, proto in request.inputs.items()}
        inference.predict(servable, servable.signatures[name], inputs, request.output_filter)
    elif kind == "classify_log":
        named = record.classify_log.request
        signature = inference.example_signature(servable, named.model_spec.signature_name)
        inference.classify(servable, signature, named.input)
    elif kind == "regress_log":
        named = record.regress_log.request
        signature = inference.example_signature(servable, named.model_spec.signature_name)
        inference.regress(servable, signature, named.input)
    elif kind == "multi_inference_log":
        inference.multi_inference(servable, record.multi_inference_log.request)
    else:
        raise Failure(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
