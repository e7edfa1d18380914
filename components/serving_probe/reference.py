"""What a server has to answer: real images, and what the exported model says to them without one.

The answers are computed here, from the very SavedModel that is to be published, by its signature,
and not taken from what the training saw: the model gate has judged this SavedModel already, so what
is left to find out is whether a server gives its answers. And a training may compute otherwise, on
a GPU or in 16 bits, which no bound of 1e-5 would let pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import tensorflow as tf
from tfx import types
from tfx.types import artifact_utils

from graftline.components.trainer.inputs import FEATURES, IMAGE
from graftline.serving.signature import INPUT, SIGNATURE

# The probe wants any real images; those that the training has not learnt from come first.
_SPLITS = ("eval", "test", "train")


def read_images(examples: Sequence[types.Artifact], count: int) -> list[bytes]:
    """Encoded images of the eval split, the newest span's first; of others where it has too few.

    Args:
        examples: artifacts of the window, the newest last.
        count: how many, at most.
    """
    return list(islice(_images(examples), count))


def _images(examples: Sequence[types.Artifact]) -> Iterator[bytes]:
    for split in _SPLITS:
        for artifact in reversed(examples):
            if split not in artifact_utils.decode_split_names(artifact.split_names):
                continue
            folder = artifact_utils.get_split_uri([artifact], split)
            files = sorted(tf.io.gfile.glob(f"{folder}/*"))
            for record in tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator():
                yield tf.io.parse_single_example(record, {IMAGE: FEATURES[IMAGE]})[IMAGE].numpy()


def answers(saved_model: Path, requests: Sequence[Sequence[bytes]]) -> list[list[dict[str, float]]]:
    """What a model says, on the processor.

    Args:
        saved_model: its folder.
        requests: batches of encoded images.

    Returns:
        For each batch, for each of its images, the probability of every class.
    """
    # As the server, which is given no GPU. A process that trained on one cannot hide it any more.
    with tf.device("/CPU:0"):
        model = tf.saved_model.load(str(saved_model))
        signature = model.signatures[SIGNATURE]
        return [_rows(signature(**{INPUT: tf.constant(list(images))})) for images in requests]


def _rows(outputs: dict[str, tf.Tensor]) -> list[dict[str, float]]:
    pairs = zip(outputs["classes"].numpy(), outputs["scores"].numpy(), strict=True)
    return [
        {name.decode(): float(score) for name, score in zip(classes, scores, strict=True)}
        for classes, scores in pairs
    ]
