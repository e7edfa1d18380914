"""From TFRecords to batches of images: what training and evaluation read.

The examples are read as they stand in the span; the graph that Transform saved is applied here, on
the way in, so that pixels are never written anywhere.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from graftline.components.trainer.augmentation import Augmenter
from graftline.components.trainer.balance import Balance

IMAGE = "image"
LABEL = "label"
ID = "id"
FEATURES = {name: tf.io.FixedLenFeature((), tf.string) for name in (IMAGE, LABEL, ID)}

# How many batches are prepared at once.
PARALLEL = len(os.sched_getaffinity(0))

# A seeded shuffle of encoded images, which are small: pixels are never held.
_SHUFFLED = 4096


@dataclass(frozen=True)
class Images:
    """The images of a split: where they are, who they are, what they show.

    Attributes:
        files: gzip-compressed TFRecords of tf.Examples, in the order of the two below.
        transform: what Transform wrote.
        ids: uint64 (N,), the first 8 bytes of each image's SHA-256.
        labels: int64 (N,), the index of its class, -1 where the label is none of the classes.
        part: which part of the records: (k, n) is each n-th from the k-th on.
    """

    files: Sequence[str]
    transform: tft.TFTransformOutput
    ids: np.ndarray
    labels: np.ndarray
    part: tuple[int, int] = (0, 1)

    @classmethod
    def find(cls, patterns: Sequence[str], transform: tft.TFTransformOutput) -> Images:
        """Those of all files that match, from one pass that decodes nothing.

        Args:
            patterns: of file names.
            transform: what Transform wrote.
        """
        files = sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern))
        layer = transform.transform_features_layer()
        wanted = {name: FEATURES[name] for name in (LABEL, ID)}

        def read(examples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            parsed = tf.io.parse_example(examples, wanted)
            return layer({LABEL: parsed[LABEL]})[LABEL], parsed[ID]

        labels, ids = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        for label, name in _records(files).batch(1024).map(read).as_numpy_iterator():
            labels.append(label)
            ids.append(np.array([int(one[:16], 16) for one in name], np.uint64))
        return cls(files, transform, np.concatenate(ids), np.concatenate(labels))

    def shard(self, number: int, count: int) -> Images:
        """One of several parts of about the same size."""
        mine = slice(number, None, count)
        return Images(
            self.files, self.transform, self.ids[mine], self.labels[mine], (number, count)
        )

    @property
    def digest(self) -> str:
        """SHA-256 of who they are and what they show, in hexadecimal."""
        return hashlib.sha256(self.ids.tobytes() + self.labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self,
        batch_size: int,
        *,
        wanted: np.ndarray | None = None,
        augmenter: Augmenter | None = None,
        view: int = 0,
    ) -> tf.data.Dataset:
        """Every image once, in order.

        Args:
            batch_size: images per batch; the last one may be smaller.
            wanted: bool (N,), leaves out the others; None: all.
            augmenter: makes the view of each image; None: as it is.
            view: which one.

        Returns:
            A dataset of (image float32 (B, size, size, 3), label int64 (B,)).
        """
        records = self._records()
        if wanted is not None:
            chosen = tf.data.Dataset.from_tensor_slices(wanted)
            records = tf.data.Dataset.zip(records, chosen).filter(lambda _, is_wanted: is_wanted)
            records = records.map(lambda record, _: record)
        views = tf.data.Dataset.from_tensors(tf.constant(view, tf.int64)).repeat()
        return self._read(tf.data.Dataset.zip(records.batch(batch_size), views), augmenter)

    def shuffled_batches(
        self,
        batch_size: int,
        seed: int,
        epoch: int = 0,
        *,
        augmenter: Augmenter | None = None,
        balance: Balance | None = None,
    ) -> tf.data.Dataset:
        """Shuffled anew in each epoch, and in each another view of every image.

        Args:
            batch_size: images per batch; the last one may be smaller.
            seed: of order, views and balance.
            epoch: the first one: the same seed and epoch bring the same order and views.
            augmenter: makes the views; None: the images as they are.
            balance: how often each image comes in an epoch; None: once.
        """

        def of_epoch(seed: tf.Tensor) -> tf.data.Dataset:
            records = self._records()
            if balance is not None:
                records = tf.data.Dataset.zip(records, _times(balance, seed)).flat_map(
                    lambda record, count: tf.data.Dataset.from_tensors(record).repeat(count)
                )
            shuffled = records.shuffle(_SHUFFLED, seed, reshuffle_each_iteration=False)
            return tf.data.Dataset.zip(shuffled.batch(batch_size), tf.data.Dataset.random(seed))

        return self._read(epoch_seeds(seed, epoch).flat_map(of_epoch), augmenter)

    def _records(self) -> tf.data.Dataset:
        number, count = self.part
        return _records(self.files).shard(count, number)

    def _read(self, batches: tf.data.Dataset, augmenter: Augmenter | None) -> tf.data.Dataset:
        """Decodes batches of (records, view)."""
        layer = self.transform.transform_features_layer()

        def read(examples: tf.Tensor, view: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            parsed = tf.io.parse_example(examples, FEATURES)
            features = layer({name: parsed[name] for name in (IMAGE, LABEL)})
            images = features[IMAGE]
            if augmenter is not None:
                images = augmenter(images, parsed[ID], view)
            return images, features[LABEL]

        return untuned(batches.map(read, PARALLEL).prefetch(2))


def untuned(batches: tf.data.Dataset) -> tf.data.Dataset:
    """A dataset whose parallel calls and buffers stay what they are.

    The thread with which tf.data would tune them keeps whoever has read a dataset to its end
    waiting for it, two to five seconds in every other epoch (TF 2.16).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def epoch_seeds(seed: int, epoch: int) -> tf.data.Dataset:
    """One seed, int64, that follows from another one and the epoch: the next each time it is read.

    Args:
        seed: as configured.
        epoch: the first one.
    """
    epochs = itertools.count(epoch)

    def draw() -> Iterator[int]:
        yield int(np.random.SeedSequence((seed, next(epochs))).generate_state(1)[0])

    return tf.data.Dataset.from_generator(draw, output_signature=tf.TensorSpec((), tf.int64))


def _times(balance: Balance, seed: tf.Tensor) -> tf.data.Dataset:
    """How often each image comes, int64."""

    def draw(seed: int) -> Iterator[np.ndarray]:
        yield balance.times(np.random.default_rng(seed))

    signature = tf.TensorSpec((None,), tf.int64)
    drawn = tf.data.Dataset.from_generator(draw, args=(seed,), output_signature=signature)
    return drawn.unbatch()


def _records(files: Sequence[str]) -> tf.data.Dataset:
    return tf.data.TFRecordDataset(list(files), compression_type="GZIP")
