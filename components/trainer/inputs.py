"""From TFRecords to batches of images: what training and evaluation read.

The examples are read as they stand in the span; the graph that Transform saved is applied here, on
the way in, so that pixels are never written anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

IMAGE = "image"
LABEL = "label"
FEATURES = {name: tf.io.FixedLenFeature((), tf.string) for name in (IMAGE, LABEL)}

# A seeded shuffle of encoded images, which are small: pixels are never held.
_SHUFFLED = 4096


def read_batches(
    patterns: Sequence[str],
    transform: tft.TFTransformOutput,
    batch_size: int,
    shuffle_seed: int | None = None,
) -> tf.data.Dataset:
    """Batches of images and labels of the files that match.

    Args:
        patterns: file patterns of gzip-compressed TFRecords of tf.Examples.
        transform: what Transform wrote.
        batch_size: images per batch; the last one may be smaller.
        shuffle_seed: shuffles anew in each epoch; None: in the order of the files.

    Returns:
        A dataset of (image float32 (B, size, size, 3), label int64 (B,)).
    """
    layer = transform.transform_features_layer()

    def read(examples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = layer(tf.io.parse_example(examples, FEATURES))
        return features[IMAGE], features[LABEL]

    records = _records(patterns)
    if shuffle_seed is not None:
        records = records.shuffle(_SHUFFLED, seed=shuffle_seed)
    return records.batch(batch_size).map(read, tf.data.AUTOTUNE).prefetch(2)


def read_labels(patterns: Sequence[str], transform: tft.TFTransformOutput) -> np.ndarray:
    """int64 (N,): the class index of every record, -1 where the label is none of the classes."""
    layer = transform.transform_features_layer()

    def read(examples: tf.Tensor) -> tf.Tensor:
        return layer(tf.io.parse_example(examples, {LABEL: FEATURES[LABEL]}))[LABEL]

    batches = _records(patterns).batch(1024).map(read)
    return np.concatenate([np.empty(0, np.int64), *batches.as_numpy_iterator()])


def _records(patterns: Sequence[str]) -> tf.data.Dataset:
    files = sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern))
    return tf.data.TFRecordDataset(files, compression_type="GZIP")
