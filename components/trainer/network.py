"""The network that trains: a backbone, or a part of one, with a new head."""

from __future__ import annotations

import tf_keras

from graftline.components.trainer.config import HeadConfig


def make_head(config: HeadConfig, features: int, classes: int) -> tf_keras.Model:
    """The layers between the backbone and the classes, with random weights.

    Returns:
        A Keras model from features (B, F) to logits (B, C).
    """
    layers = tf_keras.layers
    head = tf_keras.Sequential([tf_keras.Input((features,))], name="head")
    for units in config.hidden:
        head.add(layers.Dropout(config.dropout))
        head.add(layers.Dense(units, activation="relu"))
    head.add(layers.Dropout(config.dropout))
    head.add(layers.Dense(classes, dtype="float32"))
    return head


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
