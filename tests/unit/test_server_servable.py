"""One loaded version: feeding, limits on what comes in, signatures, warm-up, TFLite, batching."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import classification_pb2, inference_pb2, input_pb2, prediction_log_pb2

from graftline.serving.server import inference
from graftline.serving.server.flags import parse
from graftline.serving.server.inference import Options
from graftline.serving.server.loading import Loader
from graftline.serving.server.metrics import Metrics
from graftline.serving.server.servable import SavedModel, Servable
from graftline.serving.server.status import Code, Failure
from graftline.serving.server.tensors import to_array, to_proto
from graftline.serving.server.warmup import MOST_RECORDS, WARMUP_REQUESTS
from model_servers import linear_model


def load(folder: Path, *flags: str, metrics: Metrics | None = None) -> Servable:
    loader = Loader(parse(["--model_base_path=/m", *flags]), metrics or Metrics())
    return loader.load("m", 1, folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linear_model(tmp_path_factory.mktemp("model") / "1")


@pytest.fixture(scope="module")
def servable(model: Path) -> Servable:
    return load(model)


def predict(servable: Servable, *x: float, signature: str = "serving_default", **options) -> list:
    inputs = {"x": np.float32(x)}
    return inference.predict(servable, servable.signatures[signature], inputs, **options)[
        "y"
    ].tolist()


def examples(*values: float) -> input_pb2.Input:
    source = input_pb2.Input()
    for value in values:
        example = source.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(value)
    return source


def test_a_signature_is_run(servable):
    assert predict(servable, 1, 2, 5) == [2.5, 3, 4.5]


def test_a_shape_that_the_placeholder_does_not_have_is_fed_all_the_same(servable):
    assert predict(servable, [1, 2], [3, 4]) == [[2.5, 3], [3.5, 4]]


def test_only_wanted_outputs_are_returned(servable):
    inputs = {"a": np.float32([[1, 2]]), "b": np.int64([3])}
    signature = servable.signatures["two"]
    assert set(inference.predict(servable, signature, inputs)) == {"sum", "label_bytes"}
    filtered = inference.predict(servable, signature, inputs, ["sum"])
    assert filtered["sum"].tolist() == [6]
    assert set(filtered) == {"sum"}


@pytest.mark.parametrize(
    ("inputs", "output_filter", "said"),
    [
        (
            {"a": [1]},
            [],
            "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. "
            "Missing but required: {b}.",
        ),
        (
            {"a": [1], "b": [1], "c": [1]},
            [],
            "input size does not match signature: 3!=2 len({a,b,c}) != len({a,b}). Sent extra: "
            "{c}. Missing but required: {}.",
        ),
        (
            {"a": [1], "c": [1]},
            [],
            "input tensor alias not found in signature: b. Inputs expected to be in the set {a,b}.",
        ),
        (
            {"a": [1], "b": [1]},
            ["y"],
            "output tensor alias not found in signature: y Outputs expected to be in the set "
            "{label_bytes,sum}.",
        ),
        ({"a": [1], "b": [1]}, ["sum", "sum"], "duplicate output tensor alias: sum"),
    ],
)
def test_inputs_and_outputs_that_are_not_the_signatures_are_refused(
    servable, inputs, output_filter, said
):
    arrays = {name: np.float32(value) for name, value in inputs.items()}
    with pytest.raises(Failure) as failure:
        inference.predict(servable, servable.signatures["two"], arrays, output_filter)
    assert failure.value.code is Code.INVALID_ARGUMENT
    assert failure.value.message == said


def test_an_input_of_another_type_is_refused(servable):
    signature = servable.signatures["serving_default"]
    for array in (np.int32([1]), np.array([b"a"], object)):
        with pytest.raises(Failure) as failure:
            inference.predict(servable, signature, {"x": array})
        assert failure.value.code is Code.INVALID_ARGUMENT


def test_a_computation_that_takes_too_long_is_given_up(servable):
    with pytest.raises(Failure) as failure:
        predict(servable, 1000, signature="slow", options=Options(timeout_ms=100))
    assert failure.value.code is Code.DEADLINE_EXCEEDED


def test_ever_other_sets_of_outputs_are_refused_at_last(model):
    servable = load(model)
    assert predict(servable, 1) == [2.5]
    constants = [op for op in servable._graph.get_operations() if op.type == "Const"]
    names = [op.outputs[0].name for op in constants[:9]]
    with pytest.raises(Failure) as failure:
        for bits in range(1, 1 << 9):
            servable.run({}, [name for i, name in enumerate(names) if bits >> i & 1])
    assert failure.value.code is Code.RESOURCE_EXHAUSTED
    assert predict(servable, 1) == [2.5]


def test_examples_are_classified(servable):
    result = inference.classify(servable, servable.signatures["classify"], examples(2, 4))
    assert [[(c.label, c.score) for c in row.classes] for row in result.classifications] == [
        [("low", 2), ("high", 3)],
        [("low", 4), ("high", 4)],
    ]


def test_a_context_is_part_of_every_example(servable):
    source = input_pb2.Input()
    context = source.example_list_with_context.context
    context.features.feature["x"].float_list.value.append(4)
    source.example_list_with_context.examples.add()
    result = inference.regress(servable, servable.signatures["regress"], source)
    assert [each.value for each in result.regressions] == [4]


@pytest.mark.parametrize("call", [inference.classify, inference.regress])
def test_a_signature_of_another_kind_is_refused(servable, call):
    for name in ("serving_default", "two"):
        with pytest.raises(Failure) as failure:
            call(servable, servable.signatures[name], examples(1))
        assert failure.value.code is Code.INVALID_ARGUMENT


def test_a_signatures_method_is_checked_only_where_that_is_on(servable):
    signature = type(servable.signatures["classify"])()
    signature.CopyFrom(servable.signatures["classify"])
    signature.method_name = "tensorflow/serving/predict"
    assert inference.classify(servable, signature, examples(1)).classifications
    with pytest.raises(Failure, match="method_name to be tensorflow/serving/classify"):
        inference.classify(servable, signature, examples(1), Options(check_method=True))


def test_no_examples_are_refused(servable):
    with pytest.raises(Failure, match=r"Input is empty\."):
        inference.classify(servable, servable.signatures["classify"], input_pb2.Input())


def test_several_signatures_are_run_on_the_same_examples(servable):
    request = inference_pb2.MultiInferenceRequest(input=examples(2))
    for name in ("classify", "regress"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{name}")
        task.model_spec.name = "m"
        task.model_spec.signature_name = name
    classified, regressed = inference.multi_inference(servable, request)
    assert classified.classification_result.classifications[0].classes[1].score == 3
    assert regressed.regression_result.regressions[0].value == 3
    request.tasks[1].model_spec.signature_name = "classify"
    with pytest.raises(Failure, match="Duplicate evaluation of signature: classify"):
        inference.multi_inference(servable, request)


def tensor(dtype: int, *shape: int, **values: object) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto(dtype=dtype, **values)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize(
    ("array", "field"),
    [
        (np.float32([[1, 2]]), "float_val"),
        (np.float64([1]), "double_val"),
        (np.int8([-1]), "int_val"),
        (np.uint8([255]), "int_val"),
        (np.int32([1]), "int_val"),
        (np.int64([1]), "int64_val"),
        (np.uint32([1]), "uint32_val"),
        (np.uint64([1]), "uint64_val"),
        (np.bool_([True, False]), "bool_val"),
        (np.float16([1.5]), "half_val"),
        (np.complex64([1 + 2j]), "scomplex_val"),
        (np.array([b"a", b""], object), "string_val"),
        (np.float32([]), "float_val"),
        (np.float32(3), "float_val"),
    ],
)
def test_tensors_are_written_as_values_of_their_type_and_read_back(array, field):
    proto = to_proto(array)
    assert not proto.tensor_content
    assert len(getattr(proto, field)) == array.size * (2 if field == "scomplex_val" else 1)
    back = to_array(proto, "x")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    np.testing.assert_array_equal(to_array(to_proto(array, as_content=True), "x"), array)


@pytest.mark.parametrize(
    "proto",
    [
        tensor(types_pb2.DT_INVALID, 1),
        tensor(9999, 1),
        tensor(types_pb2.DT_FLOAT, -1),
        tensor(types_pb2.DT_FLOAT, 2, tensor_content=b"123"),
        tensor(types_pb2.DT_FLOAT, 1, float_val=[1, 2, 3]),
        tensor(types_pb2.DT_FLOAT, *([1] * 100), float_val=[1]),
        tensor(types_pb2.DT_RESOURCE, 1),
    ],
)
def test_a_tensor_that_is_none_is_refused(proto):
    with pytest.raises(Failure, match="tensor parsing error: x"):
        to_array(proto, "x")


def test_a_value_that_stands_for_a_huge_tensor_is_refused():
    with pytest.raises(Failure, match="more than 1024 MiB"):
        to_array(tensor(types_pb2.DT_FLOAT, 1 << 40, float_val=[1]), "x")


@pytest.mark.parametrize("content", [None, b"", b"garbage", "no variables"])
def test_a_folder_that_is_no_model_is_a_failure_in_words(model, tmp_path, content):
    if content == "no variables":
        exported = tf.Module()
        exported.variable = tf.Variable(1.0)
        tf.saved_model.save(exported, str(tmp_path))
        for part in (tmp_path / "variables").iterdir():
            part.unlink()
    elif content is not None:
        (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(Failure, match=f"Could not load the SavedModel in {tmp_path}"):
        load(tmp_path)


def test_a_graph_is_chosen_by_its_tags(model):
    with pytest.raises(Failure, match="MetaGraphDef associated with tags"):
        load(model, "--saved_model_tags=serve,gpu")


def warmup_requests(model: Path, folder: Path, *records: object) -> Path:
    """A copy of a model with warm-up requests."""
    import shutil

    shutil.copytree(model, folder)
    (folder / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(folder / WARMUP_REQUESTS)) as writer:
        for record in records:
            writer.write(record if isinstance(record, bytes) else record.SerializeToString())
    return folder


def predict_log(signature: str, *x: float) -> prediction_log_pb2.PredictionLog:
    record = prediction_log_pb2.PredictionLog()
    record.predict_log.request.model_spec.signature_name = signature
    record.predict_log.request.inputs["x"].CopyFrom(to_proto(np.float32(x)))
    return record


def test_warm_up_requests_are_replayed(model, tmp_path):
    classify = prediction_log_pb2.PredictionLog()
    classify.classify_log.request.CopyFrom(
        classification_pb2.ClassificationRequest(input=examples(1))
    )
    classify.classify_log.request.model_spec.signature_name = "classify"
    records = [predict_log("", 1), predict_log("check", 1), classify]
    folder = warmup_requests(model, tmp_path / "1", *records)
    metrics = Metrics()
    load(folder, "--num_request_iterations_for_warmup=2", metrics=metrics)
    counted = f'model_warmup_latency_count{{model_path="{folder}",status="OK"}} 1'
    assert counted in metrics.page().decode()


@pytest.mark.parametrize(
    ("record", "code"),
    [
        (predict_log("check", -1), Code.INVALID_ARGUMENT),
        (predict_log("unknown", 1), Code.FAILED_PRECONDITION),
        (prediction_log_pb2.PredictionLog(), Code.UNIMPLEMENTED),
        (b"\xff\xff no record", Code.INVALID_ARGUMENT),
    ],
)
def test_a_warm_up_request_that_fails_fails_the_load(model, tmp_path, record, code):
    folder = warmup_requests(model, tmp_path / "1", record)
    with pytest.raises(Failure) as failure:
        load(folder)
    assert failure.value.code is code
    assert load(folder, "--enable_model_warmup=false")


def test_a_damaged_warm_up_file_fails_the_load(model, tmp_path):
    folder = warmup_requests(model, tmp_path / "1")
    (folder / WARMUP_REQUESTS).write_bytes(b"not a TFRecord at all")
    with pytest.raises(Failure, match="verify your warmup data is in TFRecord format"):
        load(folder)


def test_too_many_warm_up_requests_fail_the_load(model, tmp_path):
    records = [predict_log("", 1)] * (MOST_RECORDS + 1)
    with pytest.raises(Failure, match="Number of warmup records exceeds the maximum"):
        load(warmup_requests(model, tmp_path / "1", *records))


@pytest.fixture(scope="module")
def tflite_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version with both kinds of model, which differ in what they add."""
    import shutil

    folder = tmp_path_factory.mktemp("tflite") / "1"
    shutil.copytree(model, folder)

    class Linear(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def serve(self, x):
            return {"y": x / 2 + 7}

    module = Linear()
    exported = folder.parent / "exported"
    tf.saved_model.save(module, str(exported), {"serving_default": module.serve})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(exported))
    (folder / "model.tflite").write_bytes(converter.convert())
    return folder


def test_a_tflite_model_is_run_where_that_is_preferred(tflite_model, model):
    assert predict(load(tflite_model, "--prefer_tflite_model"), 2, 4, 6) == [8, 9, 10]
    assert predict(load(tflite_model), 2) == [3]
    assert predict(load(model, "--prefer_tflite_model"), 2) == [3]


def test_a_tflite_model_without_signatures_gets_one_of_its_tensors(tmp_path):
    module = tf.Module()
    half = tf.function(lambda x: x / 2).get_concrete_function(
        tf.TensorSpec([1], tf.float32, name="x")
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([half], module)
    (tmp_path / "model.tflite").write_bytes(_without_signatures(converter.convert()))
    loaded = load(tmp_path, "--prefer_tflite_model")
    signature = loaded.signatures["serving_default"]
    [(alias, source)], [output] = signature.inputs.items(), signature.outputs.values()
    assert alias == source.name
    for x in ([2.0, 4.0], [6.0]):
        fed = {source.name: np.float32(x)}
        assert loaded.run(fed, [output.name])[output.name].tolist() == [each / 2 for each in x]
    with pytest.raises(Failure, match="No signature of the TFLite model has the inputs other"):
        loaded.run({"other": np.float32([1])}, [output.name])


def _without_signatures(content: bytes) -> bytes:
    """As converters of before signatures wrote it."""
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    model.signatureDefs = []
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def test_a_damaged_tflite_model_is_a_failure_in_words(tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"damaged")
    with pytest.raises(Failure, match="Could not load the TFLite model"):
        load(tmp_path, "--prefer_tflite_model")


def test_a_version_brings_batching_parameters_of_its_own(model, tmp_path):
    import shutil

    folder = tmp_path / "1"
    shutil.copytree(model, folder)
    flags = ("--enable_batching", "--enable_per_model_batching_parameters")
    assert predict(load(folder, *flags), 1, 2, 3) == [2.5, 3, 3.5]
    (folder / "batching_params.pbtxt").write_text("max_batch_size { value: 2 }")
    with pytest.raises(Failure, match="larger than maximum input batch size 2"):
        predict(load(folder, *flags), 1, 2, 3)


def test_a_version_with_broken_batching_parameters_is_closed_again(model, tmp_path, monkeypatch):
    import shutil

    closed: list[Servable] = []
    monkeypatch.setattr(SavedModel, "close", lambda servable: closed.append(servable))
    folder = shutil.copytree(model, tmp_path / "1")
    (folder / "batching_params.pbtxt").write_text("max_batch_size { value: 0 }")
    with pytest.raises(Failure, match="must be positive"):
        load(folder, "--enable_batching", "--enable_per_model_batching_parameters")
    assert len(closed) == 1
