"""REST bodies to tensors: grammar, types, and the words with which a body is refused."""

import base64
import json
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import meta_graph_pb2

from graftline.serving.server.json_requests import examples_input, predict_inputs, signature_name
from graftline.serving.server.json_values import parse
from graftline.serving.server.status import Code, Failure


def signature(**inputs: tf.DType) -> meta_graph_pb2.SignatureDef:
    made = meta_graph_pb2.SignatureDef()
    for name, dtype in inputs.items():
        made.inputs[name].name = f"{name}:0"
        made.inputs[name].dtype = dtype.as_datatype_enum
    return made


def inputs(body: str | bytes, **types: tf.DType) -> dict[str, np.ndarray]:
    body = body.encode() if isinstance(body, str) else body
    return predict_inputs(parse(body), signature(**(types or {"x": tf.float32})))[0]


def refused(body: str | bytes, **types: tf.DType) -> str:
    with pytest.raises(Failure) as failure:
        inputs(body, **types)
    assert failure.value.code is Code.INVALID_ARGUMENT
    return failure.value.message


def test_rows_get_an_outermost_dimension():
    assert inputs('{"instances": [1.0, 2, -3e2]}')["x"].tolist() == [1, 2, -300]
    assert inputs('{"instances": [[1, 2], [3, 4], [5, 6]]}')["x"].shape == (3, 2)
    assert inputs('{"instances": [{"x": 1}, {"x": 2}]}')["x"].tolist() == [1, 2]


def test_columns_are_taken_as_they_are():
    assert inputs('{"inputs": 1.5}')["x"].shape == ()
    assert inputs('{"inputs": [[1, 2]]}')["x"].shape == (1, 2)
    assert inputs('{"inputs": {"x": [1, 2], "more": 3}}')["x"].tolist() == [1, 2]
    assert inputs('{"inputs": []}')["x"].shape == (0,)


def test_several_inputs_are_named():
    types = {"a": tf.float32, "b": tf.int64}
    rows = inputs('{"instances": [{"a": [1, 2], "b": 3}, {"b": 4, "a": [5, 6]}]}', **types)
    columns = inputs('{"inputs": {"a": [[1, 2], [5, 6]], "b": [3, 4]}}', **types)
    for named in (rows, columns):
        assert named["a"].tolist() == [[1, 2], [5, 6]]
        assert named["b"].tolist() == [3, 4]
        assert (named["a"].dtype, named["b"].dtype) == (np.float32, np.int64)


@pytest.mark.parametrize(
    ("body", "shape"), [('{"instances": [1]}', True), ('{"inputs": [1]}', False)]
)
def test_the_answer_is_in_the_form_of_the_request(body, shape):
    assert predict_inputs(parse(body.encode()), signature(x=tf.float32))[1] is shape


def test_numbers_may_be_none_and_infinite():
    x = inputs('{"instances": [NaN, Infinity, -Infinity]}')["x"].tolist()
    assert math.isnan(x[0]) and x[1:] == [math.inf, -math.inf]


@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [
        (tf.float64, "0.1", 0.1),
        (tf.int8, "-128", -128),
        (tf.int16, "32767", 32767),
        (tf.int32, "-2147483648", -2147483648),
        (tf.uint8, "255", 255),
        (tf.int64, "9223372036854775807", 9223372036854775807),
        (tf.uint32, "4294967295", 4294967295),
        (tf.uint64, "18446744073709551615", 18446744073709551615),
        (tf.bool, "true", True),
        (tf.string, '"é"', "é".encode()),
        (tf.string, '{"b64": "/w=="}', b"\xff"),
    ],
)
def test_a_value_of_each_type(dtype, text, value):
    for body in (f'{{"instances": [{text}, {text}]}}', f'{{"inputs": [{text}, {text}]}}'):
        x = inputs(body, x=dtype)["x"]
        assert x.tolist() == [value, value]
        assert x.dtype == (object if dtype == tf.string else dtype.as_numpy_dtype)


@pytest.mark.parametrize(
    ("dtype", "text", "kind"),
    [
        (tf.float32, '"x"', "String"),
        (tf.float32, "true", "True"),
        (tf.float32, "null", "Null"),
        (tf.int32, "1.0", "Number"),
        (tf.int32, "2147483648", "Number"),
        (tf.int64, "9223372036854775808", "Number"),
        (tf.uint32, "-1", "Number"),
        (tf.bool, "1", "Number"),
        (tf.bool, "null", "Null"),
        (tf.string, "1", "Number"),
        (tf.string, "false", "False"),
    ],
)
def test_a_value_of_another_type_is_refused(dtype, text, kind):
    name = {tf.float32: "float"}.get(dtype, dtype.name)
    said = f"JSON Value: {text} Type: {kind} is not of expected type: {name}"
    assert refused(f'{{"inputs": [{text}]}}', x=dtype) == said
    assert refused(f'{{"instances": [{text}]}}', x=dtype) == (
        f"Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: {said}"
    )


def test_a_type_that_json_does_not_have_is_unimplemented():
    with pytest.raises(Failure) as failure:
        inputs('{"inputs": [1]}', x=tf.complex64)
    assert failure.value.code is Code.UNIMPLEMENTED
    assert failure.value.message == "Conversion of JSON Value: 1 to type: complex64"


def test_an_integer_that_a_float_does_not_hold_is_refused():
    assert refused('{"inputs": [16777216]}') == (
        "Cannot convert JSON value: 16777216 to float without loss of precision."
    )
    assert inputs('{"inputs": [16777215, 16777216.0]}')["x"].tolist() == [16777215, 16777216]
    assert "to float without" in refused('{"inputs": [1e39]}')


def test_base64_needs_no_padding_and_ignores_whitespace():
    for text in ("aGk=", "aGk", " aG k=\\n"):
        assert inputs(f'{{"inputs": [{{"b64": "{text}"}}]}}', x=tf.string)["x"].tolist() == [b"hi"]
    assert refused('{"inputs": [{"b64": "!"}]}', x=tf.string) == "Unable to base64 decode"
    assert refused('{"inputs": [{"b64": "a"}]}', x=tf.string) == "Unable to base64 decode"


def test_a_base64_object_has_that_key_alone():
    said = refused('{"inputs": [{"b64": "aGk=", "more": 1}]}', x=tf.string)
    assert said.endswith("not formatted correctly for base64 data")
    said = refused('{"instances": [{"b64": "aGk=", "x": "a"}]}', x=tf.string)
    assert said.endswith("JSON object: does not have named input: b64")


def test_bytes_that_are_no_utf8_come_through():
    assert inputs(b'{"inputs": ["\xff\xfe"]}', x=tf.string)["x"].tolist() == [b"\xff\xfe"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "JSON Parse error: The document is empty"),
        ("{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        ('{"instances"}', "JSON Parse error: Missing a colon after a name of object member. at"),
        ('{"instances": [1 2]}', "JSON Parse error: Missing a comma or ] after an array element."),
        ('{"a": 1 "b"}', "JSON Parse error: Missing a comma or } after an object member. at"),
        ('{"instances": [x]}', "JSON Parse error: Invalid value. at offset: 15"),
        ('{"instances": ["\\q"]}', "JSON Parse error: Invalid escape character in string."),
        ('{"instances": ["\n"]}', "JSON Parse error: Invalid encoding in string. at offset: 16"),
        ('{"instances": ["abc', "JSON Parse error: Missing a closing quotation mark in string."),
        ("[1]", "JSON Value: [\n    1\n] Is not object"),
        ('"text"', 'JSON Value: "text" Is not object'),
        ("{}", "Missing 'inputs' or 'instances' key"),
        ('{"instances": 1}', "Excepting 'instances' to be an list/array"),
        ('{"instances": []}', "No values in 'instances' array"),
        ('{"instances": [1], "inputs": [1]}', "only one of 'inputs' or 'instances' keys to exist "),
        ('{"instances": [1, [2]]}', "Expecting shape [] but got: [1]"),
        ('{"instances": [[1, 2], [3]]}', "Expecting tensor size: 2 but got: 1"),
        ('{"instances": [[[1, 2]], [[1], [2]]]}', "Expecting shape [1,2] but got: [2,1]"),
        ('{"instances": [[1, [2]]]}', "Encountered list at unexpected level: 1 expected < 1"),
        ('{"instances": [[[1], 2]]}', "found at incorrect level: 2 in the JSON DOM. Expected at"),
        ('{"inputs": [[1, 2], [3]]}', "list at unexpected size: 1 at level: 1 expected size: 2"),
        ('{"instances": [{"x": 1}, {"y": 1}]}', "key: y of 'instances' list. Error: "),
        ('{"instances": [{"x": 1}, {}]}', "JSON object: {} keys must be equal to: x"),
        ('{"instances": [{"x": 1}, 2]}', "Expecting object but got list at item 1 of input list"),
        ('{"instances": [1, {"x": 2}]}', "Expecting value/list but got object at item 1 of input"),
        ('{"inputs": {"y": 1}}', "Missing named input: x in 'inputs' object."),
    ],
)
def test_a_malformed_body_is_refused(body, said):
    assert said in refused(body)


def test_several_inputs_need_names():
    types = {"a": tf.float32, "b": tf.float32}
    assert "expecting list of objects" in refused('{"instances": [1]}', **types)
    assert "expecting an object" in refused('{"inputs": [1]}', **types)
    assert refused('{"instances": [{"a": 1}]}', **types).endswith("keys must be equal to: a,b")
    assert "not of expected type" in refused('{"instances": [{"b64": ""}]}', **types)


def test_what_follows_the_object_is_ignored():
    assert inputs('{"inputs": [1]} and more')["x"].tolist() == [1]


def test_of_two_equal_keys_the_first_counts():
    assert inputs('{"inputs": [1], "inputs": [2]}')["x"].tolist() == [1]


def test_a_body_nested_without_end_is_refused():
    assert "too deeply" in refused('{"inputs": ' + "[" * 100_000)
    assert "dimensions" in refused('{"inputs": ' + "[" * 40 + "1" + "]" * 40 + "}")


def test_a_number_of_thousands_of_digits_is_refused():
    assert "JSON Parse error" in refused('{"inputs": [' + "9" * 10_000 + "]}")


@pytest.mark.parametrize(
    ("number", "offset"),
    [
        ("1e400", 12),
        ("-1E+309", 12),
        ("0.5, 2e0400", 17),
        ("9" * 250 + "e99", 12),
        ("1" + "0" * 309 + ".0", 12),
    ],
)
def test_a_number_beyond_a_double_is_refused_where_it_stands(number, offset):
    said = f"JSON Parse error: Number too big to be stored in double. at offset: {offset}"
    assert refused(f'{{"inputs": [{number}]}}') == said
    assert refused(f'{{"inputs": [1], "more": [{number}]}}').startswith(said.partition(" at")[0])


def test_what_looks_like_a_number_beyond_a_double_and_is_none_is_taken():
    assert inputs('{"inputs": [1e-400, 1e+030, Infinity]} 1e400')["x"].tolist() == [
        0,
        pytest.approx(1e30),
        math.inf,
    ]
    text = 'e400 \\" 1e400 ' + "9" * 400
    assert inputs(f'{{"inputs": ["{text}"]}}', x=tf.string)["x"].tolist() == [
        text.replace("\\", "").encode()
    ]


def test_the_signature_is_named_by_a_string():
    assert signature_name(parse(b'{"signature_name": "two"}')) == "two"
    assert signature_name(parse(b"{}")) == ""
    with pytest.raises(Failure, match="'signature_name' key must be a string value"):
        signature_name(parse(b'{"signature_name": 1}'))


def test_examples_are_made_of_features():
    document = {
        "examples": [{"i": 1, "f": [2.0, 3.5], "s": "a", "b": {"b64": "/w=="}, "t": True}],
    }
    (example,) = examples_input(parse(json.dumps(document).encode())).example_list.examples
    features = example.features.feature
    assert list(features["i"].int64_list.value) == [1]
    assert list(features["f"].float_list.value) == [2.0, 3.5]
    assert list(features["s"].bytes_list.value) == [b"a"]
    assert list(features["b"].bytes_list.value) == [b"\xff"]
    assert list(features["t"].int64_list.value) == [1]


def test_a_context_goes_with_every_example():
    source = examples_input(parse(b'{"context": {"c": 1}, "examples": [{}, {}]}'))
    listed = source.example_list_with_context
    assert len(listed.examples) == 2
    assert list(listed.context.features.feature["c"].int64_list.value) == [1]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{}", "When method is classify, key 'examples' is expected and was not found"),
        ('{"examples": 1}', "Expecting 'examples' value to be an list/array"),
        ('{"examples": []}', "'examples' value is an empty array"),
        ('{"examples": [1]}', "Example must be JSON object but got JSON Number"),
        ('{"examples": [{"f": [1, 2.0]}]}', "element type in feature: f expecting type: int64"),
        ('{"examples": [{"f": [2.0, 1]}]}', "element type in feature: f expecting type: float"),
        ('{"examples": [{"f": ["a", 1]}]}', "element type in feature: f expecting type: bytes"),
        ('{"examples": [{"f": null}]}', "f has element with unexpected JSON type: Null"),
        ('{"examples": [{"f": [[1]]}]}', "f has element with unexpected JSON type: Array"),
        ('{"examples": [{"f": 9223372036854775808}]}', "Only int64 is supported."),
    ],
)
def test_malformed_examples_are_refused(body, said):
    with pytest.raises(Failure) as failure:
        examples_input(parse(body.encode()))
    assert said in failure.value.message


# Bodies near to well-formed ones reach further than noise does.
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary().map(lambda value: {"b64": base64.b64encode(value).decode()}),
)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["x", "y", "b64"]) | st.text(max_size=3), inner, max_size=3
        )
    ),
    max_leaves=12,
)
_documents = st.dictionaries(
    st.sampled_from(["instances", "inputs", "examples", "context", "signature_name"]), _values
)
_TYPES = [tf.float32, tf.float64, tf.int32, tf.uint64, tf.bool, tf.string, tf.complex64]


def survives(body: bytes, types: dict[str, tf.DType]) -> None:
    """Arrays or a refusal, never another exception."""
    try:
        document = parse(body)
        signature_name(document)
        for array in predict_inputs(document, signature(**types))[0].values():
            assert isinstance(array, np.ndarray)
    except Failure as failure:
        assert failure.message
    try:
        examples_input(parse(body))
    except Failure as failure:
        assert failure.message


@settings(max_examples=500, deadline=None)
@given(_documents, st.sampled_from(_TYPES), st.booleans())
def test_any_document_gives_tensors_or_a_refusal(document, dtype, several):
    types = {"x": dtype, "y": tf.float32} if several else {"x": dtype}
    survives(json.dumps(document).encode(), types)


@settings(max_examples=500, deadline=None)
@given(_documents, st.integers(0, 400), st.binary(max_size=3))
def test_any_damage_to_a_document_gives_tensors_or_a_refusal(document, position, damage):
    body = json.dumps(document).encode()
    survives(body[:position] + damage + body[position + len(damage) :], {"x": tf.string})


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), min_size=1, max_size=5))
def test_floats_come_through_as_they_are_in_rows_and_in_columns(rows):
    expected = np.array(rows, np.float32)
    for body in ({"inputs": rows}, {"instances": rows}, {"instances": [{"x": r} for r in rows]}):
        np.testing.assert_array_equal(inputs(json.dumps(body))["x"], expected)
