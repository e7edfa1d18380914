"""Versions with a TFLite model, served in place of their SavedModel."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf

from model_servers import (
    ModelServer,
    linear_model,
    predict_request,
    prediction,
    refused,
    serving,
    until,
)

pytestmark = pytest.mark.end_to_end


class Several(tf.Module):
    """Three signatures, of which the first differs from the SavedModel's in what it adds."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def one(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x / 2 + 7}

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.float32, name=name) for name in ("a", "b")]
    )
    def two(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"sum": a + b, "difference": a - b}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def text(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"same": tf.gather(text, tf.range(tf.shape(text)[0]))}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tflite")
    module, exported = Several(), folder / "exported"
    signatures = {"serving_default": module.one, "two": module.two, "text": module.text}
    tf.saved_model.save(module, str(exported), signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(exported), signature_keys=[*signatures]
    )
    version = linear_model(folder / "default" / "1")
    (version / "model.tflite").write_bytes(converter.convert())
    return folder / "default"


@pytest.fixture(params=[(), ("--enable_batching",)], ids=["single", "batched"])
def server(base: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ModelServer]:
    flags = (f"--model_base_path={base}", "--prefer_tflite_model", *request.param)
    with serving(tmp_path, *flags) as made:
        yield made


def test_requests_of_any_length_are_answered_by_the_tflite_model(server):
    for x in ([2.0], [2.0, 4.0, 6.0], [8.0]):
        assert server.predict(*x) == [each / 2 + 7 for each in x]
        answer = prediction(server).Predict(predict_request(*x))
        assert list(answer.outputs["y"].float_val) == [each / 2 + 7 for each in x]


def test_every_signature_has_its_own_graph(server):
    two = {"signature_name": "two", "inputs": {"a": [1, 2], "b": [3, 4]}}
    assert server.post("default:predict", two) == (
        200,
        {"outputs": {"difference": [-2, -2], "sum": [4, 6]}},
    )
    text = {"signature_name": "text", "instances": ["ä", ""]}
    assert server.post("default:predict", text) == (200, {"predictions": ["ä", ""]})
    _, metadata = server.get("default/metadata")
    assert set(metadata["metadata"]["signature_def"]["signature_def"]) == {
        "serving_default",
        "two",
        "text",
    }


def test_clients_at_once_get_their_own_answers(server):
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda x: server.predict(x, x + 1), range(100)))
    assert answers == [[x / 2 + 7, (x + 1) / 2 + 7] for x in range(100)]


def test_what_does_not_fit_is_refused_and_the_next_request_answered(server):
    unequal = {"signature_name": "two", "inputs": {"a": [1, 2], "b": [3, 4, 5]}}
    assert server.post("default:predict", unequal)[0] == 400
    wrong = predict_request(1)
    wrong.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([1], np.int64)))
    code, _ = refused(prediction(server).Predict, wrong)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert server.predict(2) == [8]


def test_the_next_version_may_be_another_kind(base, tmp_path):
    own = tmp_path / "default"
    linear_model(own / "1", add=1)
    with serving(tmp_path, f"--model_base_path={own}", "--prefer_tflite_model") as server:
        assert server.predict(2) == [2]
        incoming = own / "2.tmp"
        incoming.mkdir()
        (incoming / "model.tflite").write_bytes((base / "1" / "model.tflite").read_bytes())
        incoming.rename(own / "2")
        until(lambda: server.predict(2) == [8], "version 2")
        damaged = own / "3.tmp"
        damaged.mkdir()
        (damaged / "model.tflite").write_bytes(b"damaged")
        damaged.rename(own / "3")
        server.until_states({3: "END", 2: "AVAILABLE", 1: "END"})
        assert server.predict(2) == [8]
