"""The model as it is served: encoded images in, class names and probabilities out.

Both signatures run the graph that Transform saved, so that a client sends an image as it is. The
labels are constants of the model, and lie beside it as text; requests for a server to warm up with
lie there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf
import tensorflow_transform as tft
import tf_keras
from tensorflow_serving.apis import prediction_log_pb2

from graftline.components.trainer.inputs import FEATURES, IMAGE
from graftline.serving.signature import INPUT, SIGNATURE

LABELS = "assets.extra/labels.txt"
# Where TensorFlow Serving looks for them, and the embedded server.
WARM_UP = "assets.extra/tf_serving_warmup_requests"
# Below this name a version's checkpoint has the weights, numbered.
WEIGHTS = "weights"

_WARM_UP_BATCHES = (1, 4, 16)
_WARM_UP_SIZE = 64  # pixels


class ServedClassifier(tf.Module):
    """What is saved.

    Attributes:
        transform: Transform's graph. Tracked, for a signature may hold resources of it.
    """

    def __init__(
        self,
        network: Callable[[tf.Tensor], tf.Tensor],
        variables: Sequence[tf.Variable],
        transform: tft.TFTransformOutput,
        classes: Sequence[str],
    ) -> None:
        """Args as `export`; the network is from images (B, size, size, 3) to logits (B, C)."""
        super().__init__()
        self.transform = transform.transform_features_layer()
        # The variables and not the Keras model: saving that one traces every layer once more.
        self.weights = list(variables)
        self._network = network
        self._classes = list(classes)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name=INPUT)])
    def classify(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encoded images (B,) to `classes` string (B, C) and `scores` float32 (B, C)."""
        # Without images the network is not run: oneDNN's convolution gives an empty batch the shape
        # of its input, and the next layer fails (TF 2.16, where the processor has AVX-512).
        scores = tf.cond(
            tf.size(image_bytes) > 0,
            lambda: self._scores(image_bytes),
            lambda: tf.zeros((0, len(self._classes))),
        )
        classes = tf.repeat(tf.constant([self._classes]), tf.shape(scores)[0], axis=0)
        return {"classes": classes, "scores": scores}

    def _scores(self, image_bytes: tf.Tensor) -> tf.Tensor:
        """Encoded images (B,) to probabilities float32 (B, C)."""
        return tf.nn.softmax(self._network(self.transform({IMAGE: image_bytes})[IMAGE]))

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="inputs")])
    def classify_examples(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Serialized tf.Examples (B,), of which `image` is read, to the same."""
        return self.classify(tf.io.parse_example(inputs, {IMAGE: FEATURES[IMAGE]})[IMAGE])


def export(
    model: tf_keras.Model, transform: tft.TFTransformOutput, classes: Sequence[str], folder: str
) -> None:
    """Writes the SavedModel.

    Args:
        model: from images (B, size, size, 3), as Transform gives them, to logits (B, C).
        transform: what Transform wrote.
        classes: class names in the order of the logits.
        folder: where it goes.
    """
    served = ServedClassifier(
        lambda images: model(images, training=False), model.variables, transform, classes
    )
    signatures = {
        SIGNATURE: served.classify,
        "serving_examples": served.classify_examples,
    }
    tf.saved_model.save(served, folder, signatures=signatures)
    tf.io.gfile.makedirs(f"{folder}/assets.extra")
    with tf.io.gfile.GFile(f"{folder}/{LABELS}", "w") as file:
        file.write("".join(f"{name}\n" for name in classes))
    _write_warm_up(f"{folder}/{WARM_UP}")


def _write_warm_up(path: str) -> None:
    """Writes requests that a server replays before a version serves: a grey image, in batches.

    What a first request sets up, a server's first client need not wait for then; some of it is set
    up anew for another size of batch. As PredictionLog records, the real server's format
    (tensorflow_serving/servables/tensorflow/saved_model_warmup_util.cc).
    """
    image = tf.io.encode_jpeg(
        tf.fill((_WARM_UP_SIZE, _WARM_UP_SIZE, 3), tf.constant(128, tf.uint8))
    )
    with tf.io.TFRecordWriter(path) as writer:
        for count in _WARM_UP_BATCHES:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.signature_name = SIGNATURE
            request.inputs[INPUT].CopyFrom(tf.make_tensor_proto([image.numpy()] * count))
            writer.write(log.SerializeToString())
