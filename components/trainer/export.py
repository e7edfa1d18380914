"""The model as it is served: encoded images in, class names and probabilities out.

Both signatures run the graph that Transform saved, so that a client sends an image as it is. The
labels are constants of the model, and lie beside it as text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf
import tensorflow_transform as tft
import tf_keras

from graftline.components.trainer.inputs import FEATURES, IMAGE

LABELS = "assets.extra/labels.txt"
# Below this name a version's checkpoint has the weights, numbered.
WEIGHTS = "weights"


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

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="image_bytes")])
    def classify(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encoded images (B,) to `classes` string (B, C) and `scores` float32 (B, C)."""
        images = self.transform({IMAGE: image_bytes})[IMAGE]
        scores = tf.nn.softmax(self._network(images))
        classes = tf.repeat(tf.constant([self._classes]), tf.shape(scores)[0], axis=0)
        return {"classes": classes, "scores": scores}

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
        "serving_default": served.classify,
        "serving_examples": served.classify_examples,
    }
    tf.saved_model.save(served, folder, signatures=signatures)
    tf.io.gfile.makedirs(f"{folder}/assets.extra")
    with tf.io.gfile.GFile(f"{folder}/{LABELS}", "w") as file:
        file.write("".join(f"{name}\n" for name in classes))
