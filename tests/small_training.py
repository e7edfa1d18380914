"""A network of two blocks and images that it tells apart in seconds."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras
from PIL import Image

from graftline.components.trainer.record import TrainingRecord

Train = Callable[..., TrainingRecord]  # of the fixture `train`
CLASSES = ["blå", "green", "never seen", "red"]
COLOURS = {"blå": (40, 40, 220), "green": (40, 220, 40), "red": (220, 40, 40)}
SIZE = 32
PHASES = [
    {"name": "frozen", "epochs": 2, "rate": 0.02},
    {"name": "fine_tune", "epochs": 1, "rate": 1e-4, "fraction": 0.5},
]


def make(size: int, alpha: float) -> tf_keras.Model:
    """A network of two blocks."""
    layers = tf_keras.layers
    image = tf_keras.Input((size, size, 3))
    x = layers.Conv2D(8, 3, 4, activation="relu", name="first_conv")(image)
    x = layers.BatchNormalization(name="first_bn")(x)
    x = layers.Conv2D(16, 3, 2, activation="relu", name="second_conv")(x)
    return tf_keras.Model(image, x)


def picture(label: str, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(-40, 40, (SIZE, SIZE, 3))
    stream = io.BytesIO()
    Image.fromarray((COLOURS[label] + noise).clip(0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def example(image: bytes, label: str) -> bytes:
    name = hashlib.sha256(image).hexdigest()
    features = {"image": image, "label": label.encode(), "id": name.encode()}
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                for name, value in features.items()
            }
        )
    ).SerializeToString()


def write_span(folder: Path, examples: list[bytes]) -> str:
    """Writes one shard and returns the pattern that finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    shard = str(folder / "data_tfrecord-00000-of-00001.gz")
    with tf.io.TFRecordWriter(shard, options) as writer:
        for one in examples:
            writer.write(one)
    return str(folder / "*")


def labelled(count: int, seed: int) -> list[bytes]:
    names = [list(COLOURS)[index % 3] for index in range(count)]
    return [example(picture(name, seed + index), name) for index, name in enumerate(names)]
