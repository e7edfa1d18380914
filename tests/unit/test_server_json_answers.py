"""REST answers, byte by byte as the real server's rapidjson and protobuf write them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    regression_pb2,
)

from graftline.serving.server import json_answers
from graftline.serving.server.states import State, VersionState
from graftline.serving.server.status import Code, Failure


def objects(*values: bytes) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def test_rows_of_one_output_are_bare_and_the_bracket_closes_on_a_line_of_its_own():
    assert json_answers.predictions({"y": np.float32([2.5, 3, 4.5])}) == (
        b'{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'
    )
    assert json_answers.predictions({"y": np.float32([[1, 2], [3, 4]])}) == (
        b'{\n    "predictions": [[1.0, 2.0], [3.0, 4.0]\n    ]\n}'
    )


def test_rows_of_several_outputs_are_objects():
    outputs = {"scores": np.float32([[0.25, 0.75]]), "classes": objects(b"rose")}
    assert json_answers.predictions(outputs) == (
        b'{\n    "predictions": [\n        {\n            "classes": "rose",\n'
        b'            "scores": [0.25, 0.75]\n        }\n    ]\n}'
    )


def test_columns_stand_one_value_a_line():
    assert json_answers.outputs({"y": np.int64([[1], [2]])}) == (
        b'{\n    "outputs": [\n        [\n            1\n        ],\n        [\n            2\n'
        b"        ]\n    ]\n}"
    )
    assert json_answers.outputs({"y": np.float32(1)}) == b'{\n    "outputs": 1.0\n}'
    assert json_answers.outputs({"a": np.float32([]), "b": np.bool_([True])}) == (
        b'{\n    "outputs": {\n        "a": [],\n        "b": [\n            true\n        ]\n'
        b"    }\n}"
    )


def test_strings_are_plain_unless_their_name_ends_in_bytes():
    assert json_answers.predictions({"y": objects(b"a", b"b")}) == (
        b'{\n    "predictions": ["a", "b"\n    ]\n}'
    )
    assert json_answers.predictions({"y_bytes": objects(b"a")}) == (
        b'{\n    "predictions": [{\n            "b64": "YQ=="\n        }\n    ]\n}'
    )


def test_strings_are_escaped_as_rapidjson_does():
    assert json_answers.quoted(b'a"\\/\n\t\x1f\x7f\xc3\xa9\xff') == (
        b'"a\\"\\\\/\\n\\t\\u001F\x7f\xc3\xa9\xff"'
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1.0, b"1.0"),
        (0.1, b"0.1"),
        (0.2, b"0.2"),
        (-2.0, b"-2.0"),
        (1 / 3, b"0.333333343"),
        (9_000_000.0, b"9e+06"),
        (0.00003, b"3e-05"),
        (123456.0, b"123456.0"),
        (16777216.0, b"16777216.0"),
        (3.4028235e38, b"3.40282347e+38"),
        (float("nan"), b"NaN"),
        (float("inf"), b"Infinity"),
        (float("-inf"), b"-Infinity"),
    ],
)
def test_floats_have_six_digits_or_all(number, text):
    assert json_answers.decimals(np.float32([number])) == [text]


def test_doubles_have_six_digits_or_seventeen():
    assert json_answers.decimals(np.float64([0.1, 1 / 3])) == [b"0.1", b"0.33333333333333331"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), max_size=5))
def test_floats_come_back_as_they_were(values):
    array = np.array(values, np.float32)
    back = [float(text) for text in json_answers.decimals(array)]
    np.testing.assert_array_equal(np.array(back, np.float32), array)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"y": np.float32(1)}, "Tensor name: y has no shape information "),
        (
            {"a": np.float32([1]), "b": np.float32([1, 2])},
            "Tensor name: b has inconsistent batch size: 2 expecting: 1",
        ),
        ({"y": np.complex64([1])}, "Failed to write JSON value for tensor type: complex64"),
    ],
)
def test_outputs_that_cannot_be_written_in_rows_are_refused(outputs, said):
    with pytest.raises(Failure) as failure:
        json_answers.predictions(outputs)
    assert failure.value.message == said


def test_classifications_are_pairs():
    result = classification_pb2.ClassificationResult()
    for scores in ((0.25, 0.75), (1, 0)):
        row = result.classifications.add()
        for label, score in zip("ab", scores, strict=True):
            row.classes.add(label=label, score=score)
    assert json_answers.classifications(result) == (
        b'{\n    "results": [[["a", 0.25], ["b", 0.75]], [["a", 1.0], ["b", 0.0]]\n    ]\n}'
    )


def test_regressions_are_numbers_on_one_line():
    result = regression_pb2.RegressionResult()
    for value in (2.5, 3):
        result.regressions.add(value=value)
    assert json_answers.regressions(result) == b'{\n    "results": [2.5, 3.0]\n}'


def test_an_error_is_an_object_with_that_key():
    assert json_answers.error('no "x"') == b'{\n    "error": "no \\"x\\""\n}'


def test_status_is_written_as_protobuf_does():
    versions = {
        2: VersionState(State.END, Failure(Code.NOT_FOUND, "gone"), 1),
        1: VersionState(State.AVAILABLE, None, 2),
    }
    assert json_answers.status(versions).startswith(
        b'{\n "model_version_status": [\n  {\n   "version": "2",\n   "state": "END",\n'
        b'   "status": {\n    "error_code": "NOT_FOUND",\n    "error_message": "gone"\n   }\n  },'
    )


def test_metadata_prints_fields_of_their_default_value():
    signatures = get_model_metadata_pb2.SignatureDefMap()
    signature = signatures.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    signature.inputs["x"].name = "x:0"
    signature.inputs["x"].tensor_shape.dim.add(size=-1)
    body = json_answers.metadata("m", 123, signatures)
    assert body.startswith(b'{\n"model_spec":{\n "name": "m",\n "version": "123",\n')
    document = json.loads(body)
    assert document["model_spec"] == {"name": "m", "signature_name": "", "version": "123"}
    found = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert found["inputs"]["x"] == {
        "dtype": "DT_INVALID",
        "name": "x:0",
        "tensor_shape": {"dim": [{"name": "", "size": "-1"}], "unknown_rank": False},
    }
    assert found["outputs"] == {}
