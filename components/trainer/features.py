"""What a fixed network makes of each image, computed once and kept on disk.

A frozen backbone gives the same features for the same image in every epoch, and so does the lower
part of one whose upper part trains. Both are written, in one pass over the images, into files that
have no name: they vanish with the process however it ends. Memory does not grow with the images.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras


class FeatureFile:
    """Rows of one shape on disk, float32.

    Attributes:
        shape: shape of one row.
    """

    def __init__(self, shape: tuple[int, ...], folder: Path | None) -> None:
        self.shape = shape
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # lives as long as self
        self._row_bytes = int(np.prod(shape)) * 4

    def append(self, rows: np.ndarray) -> None:
        """Adds rows (N, *shape)."""
        self._file.write(np.ascontiguousarray(rows, np.float32).data)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Rows (len(indices), *shape) in the order asked for."""
        self._file.flush()
        rows = np.empty((len(indices), *self.shape), np.float32)
        for row, index in zip(rows, indices, strict=True):
            # Not a memory map: pages that were read would count as memory of this process.
            os.preadv(self._file.fileno(), [row.data], int(index) * self._row_bytes)
        return rows


@dataclass(frozen=True)
class Features:
    """What was computed of some images, in the same order everywhere.

    Attributes:
        files: one per output of the network, by its name.
        labels: int64 (N,), indices of the classes.
    """

    files: dict[str, FeatureFile]
    labels: np.ndarray

    def batches(self, output: str, batch_size: int, shuffle_seed: int | None) -> tf.data.Dataset:
        """A dataset of (rows of one output, labels), shuffled anew in each epoch where seeded."""
        file, labels = self.files[output], self.labels
        epochs = itertools.count()

        def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            order = np.arange(len(labels))
            if shuffle_seed is not None:
                order = np.random.default_rng((shuffle_seed, next(epochs))).permutation(order)
            for start in range(0, len(order), batch_size):
                indices = order[start : start + batch_size]
                yield file.read(indices), labels[indices]

        signature = (
            tf.TensorSpec((None, *file.shape), tf.float32),
            tf.TensorSpec((None,), tf.int64),
        )
        dataset = tf.data.Dataset.from_generator(read, output_signature=signature)
        count = -(-len(labels) // batch_size)
        return dataset.apply(tf.data.experimental.assert_cardinality(count)).prefetch(2)


def compute_features(
    network: tf_keras.Model,
    images: tf.data.Dataset,
    strategy: tf.distribute.Strategy,
    folder: Path | None,
    progress: Callable[[int], None],
) -> Features:
    """Runs a network over images once, at inference.

    Args:
        network: from images to outputs by name.
        images: batches of (image, label).
        strategy: where it runs; the network was made in its scope.
        folder: where the files go; None: the system's folder for temporary files.
        progress: told, after each batch, how many more images are done.
    """
    files = {
        name: FeatureFile(tuple(shape[1:]), folder) for name, shape in network.output_shape.items()
    }
    labels: list[np.ndarray] = []

    @tf.function
    def infer(batch: tuple[tf.Tensor, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        return strategy.run(lambda x, y: (network(x, training=False), y), args=batch)

    for batch in strategy.experimental_distribute_dataset(images):
        outputs, found = infer(batch)
        for name, output in outputs.items():
            for rows in strategy.experimental_local_results(output):
                files[name].append(rows.numpy())
        parts = [part.numpy() for part in strategy.experimental_local_results(found)]
        labels += parts
        progress(sum(map(len, parts)))
    return Features(files, np.concatenate(labels) if labels else np.empty(0, np.int64))
