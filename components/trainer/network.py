"""The network that trains: a backbone, or a part of one, with a new head."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from graftline.components.trainer.config import HeadConfig


class Dropout(tf_keras.layers.Layer):
    """Dropout (Srivastava et al., JMLR 2014) whose masks follow from a seed and the epoch.

    Keras's own draws them from a state that no checkpoint holds: a training that goes on after a
    kill would see others.
    """

    def __init__(self, rate: float, **settings: Any) -> None:
        """Drops this share of the values."""
        super().__init__(**settings)
        self._rate = rate

    def build(self, shape: tf.TensorShape) -> None:
        """Makes the source of masks, on each replica another."""
        self._masks = tf.random.Generator.from_seed(0)
        super().build(shape)

    def begin(self, *seed: int) -> None:
        """From here on the masks are those of this seed."""
        self._masks.reset_from_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Values of the same shape; as they are where the network does not train."""
        if not training or not self._rate:
            return inputs
        kept = self._masks.uniform(tf.shape(inputs)) >= self._rate
        return tf.where(kept, inputs / (1 - self._rate), tf.zeros_like(inputs))


def make_head(config: HeadConfig, features: int, classes: int) -> tf_keras.Model:
    """The layers between the backbone and the classes, with random weights.

    Returns:
        A Keras model from features (B, F) to logits (B, C).
    """
    layers = tf_keras.layers
    head = tf_keras.Sequential([tf_keras.Input((features,))], name="head")
    for units in config.hidden:
        head.add(Dropout(config.dropout))
        head.add(layers.Dense(units, activation="relu"))
    head.add(Dropout(config.dropout))
    head.add(layers.Dense(classes, dtype="float32"))
    return head


def begin_epoch(head: tf_keras.Model, seed: int, epoch: int) -> None:
    """Has a head of `make_head` drop what is dropped in this epoch."""
    for number, layer in enumerate(head.layers):
        if isinstance(layer, Dropout):
            layer.begin(seed, epoch, number)


def pooled(backbone: tf_keras.Model, pooling: str) -> tf_keras.Model:
    """A backbone that gives one vector per image; the layers are shared, not copied.

    Args:
        backbone: from images to feature maps (B, h, w, F) or features (B, F).
        pooling: `mean` or `max` over the places of a map.
    """
    if len(backbone.output_shape) == 2:
        return backbone
    layers = tf_keras.layers
    pool = layers.GlobalMaxPooling2D if pooling == "max" else layers.GlobalAveragePooling2D
    return tf_keras.Model(backbone.input, pool(name="pool")(backbone.output))


def join(backbone: tf_keras.Model, head: tf_keras.Model, pretrained: bool) -> tf_keras.Model:
    """A backbone, or its upper part, followed by a head; the layers are shared, not copied.

    Args:
        backbone: from its input to features (B, F).
        head: from features to logits.
        pretrained: batch normalisation then stays in inference mode, for its statistics are those
            of many more images than a batch has; one that starts at random has none to keep.
    """
    inputs = tf_keras.Input(backbone.input_shape[1:])
    features = backbone(inputs, training=False if pretrained else None)
    return tf_keras.Model(inputs, head(features))
