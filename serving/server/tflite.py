"""One loaded version: a TFLite model, `model.tflite`, run by interpreters that take turns.

Experimental in the real server, too. Without signatures of its own the model gets one,
`serving_default`, with its tensors' names, as `tflite_session.cc` makes it.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from graftline.serving.server.inference import DEFAULT_SIGNATURE
from graftline.serving.server.status import invalid


class TFLiteModel:
    """A TFLite model; see `Servable`."""

    def __init__(self, file: Path, interpreters: int = 0) -> None:
        """Loads it.

        Args:
            file: the model.
            interpreters: requests worked on at once; 0 for one for each core.

        Raises:
            Failure: it is none.
        """
        try:
            content = file.read_bytes()
            made = [
                tf.lite.Interpreter(model_content=content, num_threads=1)
                for _ in range(interpreters or len(os.sched_getaffinity(0)))
            ]
            for interpreter in made:
                interpreter.allocate_tensors()
        except (OSError, ValueError, RuntimeError) as error:
            raise invalid(f"Could not load the TFLite model in {file}: {error}") from error
        self._inputs = {tensor["name"]: tensor for tensor in made[0].get_input_details()}
        self._outputs = {tensor["name"]: tensor for tensor in made[0].get_output_details()}
        self.signatures: Mapping[str, Any] = self._read_signatures(made[0])
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for interpreter in made:
            self._free.put(interpreter)

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> dict[str, np.ndarray]:
        """See `Servable`; a TFLite computation cannot be given up half-way."""
        for name in feeds:
            if name not in self._inputs:
                raise invalid(f"Tensor {name} is no input of the TFLite model")
        with self._interpreter() as interpreter:
            try:
                for name, array in feeds.items():
                    index = self._inputs[name]["index"]
                    interpreter.resize_tensor_input(index, array.shape)
                interpreter.allocate_tensors()
                for name, array in feeds.items():
                    interpreter.set_tensor(self._inputs[name]["index"], array)
                interpreter.invoke()
                # Copies: the interpreter's memory is reused by the next request.
                return {
                    name: interpreter.get_tensor(self._outputs[name]["index"]) for name in fetches
                }
            except (ValueError, RuntimeError, KeyError) as error:
                raise invalid(str(error)) from error

    def close(self) -> None:
        """See `Servable`."""
        while not self._free.empty():
            self._free.get()

    @contextlib.contextmanager
    def _interpreter(self) -> Iterator[Any]:
        interpreter = self._free.get()
        try:
            yield interpreter
        finally:
            self._free.put(interpreter)

    def _read_signatures(self, interpreter: Any) -> dict[str, Any]:
        signatures = {}
        for key in interpreter.get_signature_list():
            runner = interpreter.get_signature_runner(key)
            signatures[key] = _signature(runner.get_input_details(), runner.get_output_details())
        return signatures or {DEFAULT_SIGNATURE: _signature(self._inputs, self._outputs)}


def _signature(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
    signature = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
    for side, tensors in ((signature.inputs, inputs), (signature.outputs, outputs)):
        for alias, tensor in tensors.items():
            info = side[alias]
            info.name = tensor["name"]
            info.dtype = tf.dtypes.as_dtype(tensor["dtype"]).as_datatype_enum
            for size in tensor.get("shape_signature", tensor["shape"]):
                info.tensor_shape.dim.add(size=int(size))
    return signature
