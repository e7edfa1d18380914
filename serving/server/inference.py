"""What the calls of PredictionService compute, shared by gRPC and REST.

In: a servable and a request, as arrays or as tf.Examples. Out: arrays, or result messages. Checks
and messages are those of `tensorflow_serving/servables/tensorflow/`: predict_util.cc,
classifier.cc, regressor.cc, multi_inference.cc.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, inference_pb2, regression_pb2

from graftline.serving.server.servable import Servable
from graftline.serving.server.status import Code, Failure, invalid
from graftline.serving.server.tensors import to_array

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
_PREDICT = "tensorflow/serving/predict"
_Arrays = Mapping[str, np.ndarray]


class Options(msgspec.Struct, frozen=True):
    """How to run a request.

    Attributes:
        timeout_ms: after which it is given up; 0 for never.
        check_method: whether a signature must have been exported for the call.
    """

    timeout_ms: int = 0
    check_method: bool = False


_DEFAULTS = Options()


def predict(
    servable: Servable,
    signature: Any,
    inputs: _Arrays,
    output_filter: Sequence[str] = (),
    options: Options = _DEFAULTS,
) -> dict[str, np.ndarray]:
    """Runs a signature.

    Args:
        servable: the version.
        signature: one of its SignatureDefs.
        inputs: arrays by the signature's names.
        output_filter: names of the outputs wanted; all when empty.
        options: how to run it.

    Returns:
        The outputs by the signature's names.

    Raises:
        Failure: inputs or outputs are not the signature's, or it cannot be run.
    """
    if options.check_method and signature.method_name not in (_PREDICT, CLASSIFY, REGRESS):
        raise Failure(
            Code.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{_PREDICT}, {CLASSIFY}, "
            f"{REGRESS}}}. Was: {signature.method_name}",
        )
    defaults = getattr(signature, "defaults", {})
    _check_inputs(signature, inputs, defaults)
    feeds = {}
    for alias, info in signature.inputs.items():
        given = inputs.get(alias)
        feeds[info.name] = to_array(defaults[alias], alias) if given is None else given
    names = _outputs(signature, output_filter)
    results = servable.run(feeds, list(names.values()), options.timeout_ms)
    return {alias: results[name] for alias, name in names.items()}


def classify(
    servable: Servable, signature: Any, examples: Any, options: Options = _DEFAULTS
) -> classification_pb2.ClassificationResult:
    """Runs a signature that takes tf.Examples and gives classes, scores or both.

    Args:
        servable: the version.
        signature: one of its SignatureDefs.
        examples: an Input message.
        options: how to run it.

    Raises:
        Failure: the signature or its results are not of that kind, or it cannot be run.
    """
    source, wanted = _classification(signature, options)
    serialized = _serialized(examples)
    results = servable.run({source: serialized}, wanted, options.timeout_ms)
    return _classes(signature, len(serialized), results)


def regress(
    servable: Servable, signature: Any, examples: Any, options: Options = _DEFAULTS
) -> regression_pb2.RegressionResult:
    """Runs a signature that takes tf.Examples and gives a number for each.

    Args:
        servable: the version.
        signature: one of its SignatureDefs.
        examples: an Input message.
        options: how to run it.

    Raises:
        Failure: the signature or its results are not of that kind, or it cannot be run.
    """
    source, wanted = _regression(signature, options)
    serialized = _serialized(examples)
    results = servable.run({source: serialized}, wanted, options.timeout_ms)
    return _values(signature, len(serialized), results)


def multi_inference(
    servable: Servable, request: Any, options: Options = _DEFAULTS
) -> list[inference_pb2.InferenceResult]:
    """Runs several classify and regress signatures on the same tf.Examples in one computation.

    Args:
        servable: the version.
        request: a MultiInferenceRequest.
        options: how to run it.

    Returns:
        A result for each task, without its model spec.

    Raises:
        Failure: the tasks do not go together, or cannot be run.
    """
    sources: set[str] = set()
    wanted: set[str] = set()
    signatures: dict[str, Any] = {}
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in signatures:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if name not in servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        signatures[name] = servable.signatures[name]
        if task.method_name not in (CLASSIFY, REGRESS):
            raise Failure(
                Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}"
            )
        prepare = _classification if task.method_name == CLASSIFY else _regression
        source, outputs = prepare(signatures[name], options)
        sources.add(source)
        wanted.update(outputs)
        if len(sources) > 1:
            raise invalid("Input tensor must be the same for all Signatures.")
    serialized = _serialized(request.input)
    if not sources:
        return []
    results = servable.run({sources.pop(): serialized}, sorted(wanted), options.timeout_ms)
    answers = []
    for task, signature in zip(request.tasks, signatures.values(), strict=True):
        answer = inference_pb2.InferenceResult()
        if task.method_name == CLASSIFY:
            answer.classification_result.CopyFrom(_classes(signature, len(serialized), results))
        else:
            answer.regression_result.CopyFrom(_values(signature, len(serialized), results))
        answers.append(answer)
    return answers


def example_signature(servable: Servable, name: str) -> Any:
    """The signature that a Classify or Regress call names.

    Raises:
        Failure: there is none of that name.
    """
    found = servable.signatures.get(name or DEFAULT_SIGNATURE)
    if found is None:
        raise invalid(f"No signature was found with the name: {name or DEFAULT_SIGNATURE}")
    return found


def example_count(examples: Any) -> int:
    """How many tf.Examples an Input message holds."""
    return len(examples.example_list.examples) + len(examples.example_list_with_context.examples)


def _check_inputs(signature: Any, inputs: Iterable[str], defaults: Any) -> None:
    sent, known = set(inputs), set(signature.inputs)
    if len(sent) > len(known) or (len(sent) < len(known) and not defaults):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(known)} "
            f"len({_listed(sent)}) != len({_listed(known)}). Sent extra: {_listed(sent - known)}. "
            f"Missing but required: {_listed(known - sent)}."
        )
    for alias in sorted((sent - known) | (known - sent - set(defaults))):
        raise invalid(
            f"input tensor alias not found in signature: {alias}. Inputs expected to be in the "
            f"set {_listed(known)}."
        )


def _outputs(signature: Any, output_filter: Sequence[str]) -> dict[str, str]:
    """Tensor names of the wanted outputs, by alias."""
    names: dict[str, str] = {}
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {_listed(signature.outputs)}."
            )
        if alias in names:
            raise invalid(f"duplicate output tensor alias: {alias}")
        names[alias] = signature.outputs[alias].name
    return names or {alias: info.name for alias, info in signature.outputs.items()}


def _classification(signature: Any, options: Options) -> tuple[str, list[str]]:
    """Names of the input tensor and the output tensors of a classification signature."""
    _check_method(signature, CLASSIFY, "classification", options)
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {_shown(signature)}")
    wanted = [
        signature.outputs[name].name for name in ("classes", "scores") if name in signature.outputs
    ]
    if not wanted:
        raise invalid(
            "Expected classification signature outputs to contain at least one of "
            f'"classes" or "scores". Signature was: {_shown(signature)}'
        )
    return signature.inputs["inputs"].name, wanted


def _regression(signature: Any, options: Options) -> tuple[str, list[str]]:
    """Names of the input tensor and the output tensor of a regression signature."""
    _check_method(signature, REGRESS, "regression", options)
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {_shown(signature)}")
    if "outputs" not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {_shown(signature)}")
    return signature.inputs["inputs"].name, [signature.outputs["outputs"].name]


def _check_method(signature: Any, method: str, kind: str, options: Options) -> None:
    if options.check_method and signature.method_name != method:
        raise invalid(
            f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}"
        )


def _classes(
    signature: Any, count: int, results: _Arrays
) -> classification_pb2.ClassificationResult:
    classes = _class_output(signature, "classes", tf.string, count, results)
    scores = _class_output(signature, "scores", tf.float32, count, results)
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid(
            "Tensors class and score should match in dim_size(1). Got "
            f"{classes.shape[1]} vs. {scores.shape[1]}"
        )
    result = classification_pb2.ClassificationResult()
    for row in range(count):
        answer = result.classifications.add()
        labels = [_text(label) for label in classes[row]] if classes is not None else None
        values = scores[row].tolist() if scores is not None else None
        for index in range(len(labels or values or ())):
            answer.classes.add(
                label=labels[index] if labels else None, score=values[index] if values else None
            )
    return result


def _class_output(
    signature: Any, name: str, dtype: tf.DType, count: int, results: _Arrays
) -> np.ndarray | None:
    if name not in signature.outputs:
        return None
    array = results[signature.outputs[name].name]
    if array.ndim != 2:
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
    if _dtype(array) != dtype:
        raise invalid(
            f"Expected {name} Tensor of {_type_name(dtype)}. Got: {_type_name(_dtype(array))}"
        )
    if len(array) != count:
        raise invalid(f"Expected {name} output batch size of {count}. Got: {len(array)}")
    return array


def _values(signature: Any, count: int, results: _Arrays) -> regression_pb2.RegressionResult:
    array = results[signature.outputs["outputs"].name]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape(array)}"
        )
    if len(array) != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {len(array)}")
    if _dtype(array) != tf.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_type_name(_dtype(array))}")
    result = regression_pb2.RegressionResult()
    for value in array.ravel().tolist():
        result.regressions.add(value=value)
    return result


def _serialized(examples: Any) -> np.ndarray:
    """The tf.Examples of an Input message, each serialized; a context is part of each.

    Raises:
        Failure: there are none.
    """
    kind = examples.WhichOneof("kind")
    if not example_count(examples):
        raise invalid("Input is empty.")
    context = b""
    if kind == "example_list_with_context":
        # Two serialized messages one after the other are their merger.
        context = examples.example_list_with_context.context.SerializeToString()
    listed = getattr(examples, kind).examples
    array = np.empty(len(listed), dtype=object)
    array[:] = [context + example.SerializeToString() for example in listed]
    return array


def _text(label: bytes) -> str:
    try:
        return label.decode()
    except UnicodeDecodeError:
        raise Failure(Code.INTERNAL, "A class label is not UTF-8") from None


def _dtype(array: np.ndarray) -> tf.DType:
    return tf.string if array.dtype == object else tf.dtypes.as_dtype(array.dtype)


def _type_name(dtype: tf.DType) -> str:
    from tensorflow.core.framework import types_pb2

    return types_pb2.DataType.Name(dtype.as_datatype_enum)


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _shown(message: Any) -> str:
    return str(message).strip()


def _listed(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
