"""Classifying images with a published version in this process."""

import io
from pathlib import Path

import pytest
import tensorflow as tf
from graftline.serving.errors import UserError
from graftline.serving.predictor import Predictor
from PIL import Image


class Reddest(tf.Module):
    """Names the strongest colour of an image, with the signature of every exported model."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes):
        def shares(encoded):
            image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
            return tf.nn.softmax(tf.reduce_mean(tf.cast(image, tf.float32), [0, 1]) / 255)

        scores = tf.map_fn(shares, image_bytes, fn_output_signature=tf.TensorSpec([3], tf.float32))
        classes = tf.tile([["red", "green", "größtes Blau"]], [tf.shape(scores)[0], 1])
        return {"classes": classes, "scores": scores}


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "1"
    module = Reddest()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    return folder


def image(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def test_classes_are_ranked_by_probability(saved_model):
    [blue, red] = Predictor(saved_model).predict(
        [image((0, 100, 255)), image((255, 0, 0), size=(30, 20))]
    )
    assert [name for name, _ in blue] == ["größtes Blau", "green", "red"]
    assert red[0][0] == "red"
    assert sum(probability for _, probability in blue) == pytest.approx(1)


def test_an_image_that_cannot_be_decoded_does_not_spoil_its_batch(saved_model):
    good = image((0, 255, 0))
    answers = Predictor(saved_model).predict([good, b"no image", good, b"", good[:40]])
    assert [answer and answer[0][0] for answer in answers] == ["green", None, "green", None, None]


def test_a_model_that_does_not_take_images_is_said(shared_data):
    model = shared_data / "tfserving" / "half_plus_two_2_versions" / "00000123"
    with pytest.raises(UserError, match=r"no signature serving_default that takes encoded images"):
        Predictor(model)


@pytest.mark.parametrize("content", [b"", b"\x00\xff garbage"])
def test_a_model_that_cannot_be_loaded_is_said(tmp_path, content):
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "saved_model.pb").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be loaded.*graftline verify 3"):
        Predictor(tmp_path / "3")
