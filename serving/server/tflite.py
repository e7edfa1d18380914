"""One loaded version: a TFLite model, `model.tflite`, run by interpreters that take turns.

Experimental in the real server, too, which runs a model's main graph only: here every signature
has its own. Without signatures the model gets one, `serving_default`, with its tensors' names, as
`tflite_session.cc` makes it.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        runners = [_runners(interpreter) for interpreter in made]
        self._signed = {key: _names(runner) for key, runner in runners[0].items()}
        self.signatures: Mapping[str, Any] = {
            key: _signature(runner.get_input_details(), runner.get_output_details())
            for key, runner in runners[0].items()
        }
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for each in runners:
            self._free.put(each)

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> dict[str, np.ndarray]:
        """See `Servable`; a TFLite computation cannot be given up half-way."""
        key, inputs, outputs = self._signature_of(feeds, fetches)
        with self._runners() as runners:
            try:
                results = runners[key](**{inputs[name]: array for name, array in feeds.items()})
            except (ValueError, RuntimeError, KeyError) as error:
                raise invalid(str(error)) from error
        return {name: results[outputs[name]] for name in fetches}

    def close(self) -> None:
        """See `Servable`."""
        while not self._free.empty():
            self._free.get()

    @contextlib.contextmanager
    def _runners(self) -> Iterator[Mapping[str, Any]]:
        runners = self._free.get()
        try:
            yield runners
        finally:
            self._free.put(runners)

    def _signature_of(self, feeds: Iterable[str], fetches: Iterable[str]) -> tuple[str, Any, Any]:
        """The signature with these tensors, each of which has a graph of its own.

        Returns:
            Its key, and its aliases by the names of input and output tensors.

        Raises:
            Failure: there is none.
        """
        fed, fetched = set(feeds), set(fetches)
        for key, (inputs, outputs) in self._signed.items():
            if fed == inputs.keys() and fetched <= outputs.keys():
                return key, inputs, outputs
        raise invalid(f"No signature of the TFLite model has the inputs {', '.join(sorted(fed))}")


class _WholeModel:
    """Stands for the signature of a model without one: its tensors' names are the aliases."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._inputs = {tensor["name"]: tensor for tensor in interpreter.get_input_details()}
        self._outputs = {tensor["name"]: tensor for tensor in interpreter.get_output_details()}

    def get_input_details(self) -> Mapping[str, Any]:
        return self._inputs

    def get_output_details(self) -> Mapping[str, Any]:
        return self._outputs

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        for name, array in arrays.items():
            self._interpreter.resize_tensor_input(self._inputs[name]["index"], array.shape)
        self._interpreter.allocate_tensors()
        for name, array in arrays.items():
            self._interpreter.set_tensor(self._inputs[name]["index"], array)
        self._interpreter.invoke()
        # Copies: the interpreter's memory is reused by the next request.
        return {
            name: self._interpreter.get_tensor(tensor["index"])
            for name, tensor in self._outputs.items()
        }


def _runners(interpreter: Any) -> dict[str, Any]:
    keys = interpreter.get_signature_list()
    if not keys:
        return {DEFAULT_SIGNATURE: _WholeModel(interpreter)}
    return {key: interpreter.get_signature_runner(key) for key in keys}


def _names(runner: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Aliases by the names of input and output tensors."""
    inputs, outputs = (
        {tensor["name"]: alias for alias, tensor in details.items()}
        for details in (runner.get_input_details(), runner.get_output_details())
    )
    return inputs, outputs


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
