"""Whether the activations below a cut are worth keeping: reading them against making them anew.

On a processor reading is faster, whatever the network (benchmarks/training.py). A GPU may make wide
activations faster than a disk gives them back: there it is measured, on images of the training.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import tf_keras

from graftline.components.trainer.devices import Hardware
from graftline.components.trainer.feature_computer import infer
from graftline.components.trainer.inputs import Images

# Batches that are timed, after one that warms up.
_TIMED = 8


def rates(
    lower: tf_keras.Model,
    images: Images,
    batch_size: int,
    hardware: Hardware,
    scratch: Path | None,
) -> tuple[float, float]:
    """Images per second of making activations, from TFRecords on, and of reading them from disk.

    Args:
        lower: from images to activations; made in the hardware's scope.
        images: what is read; a few batches of it are.
        batch_size: images per batch.
        hardware: where activations are made.
        scratch: where they are written for the time of this.
    """
    network = tf_keras.Model(lower.input, {"activations": lower.output})
    batches = images.batches(batch_size).take(_TIMED + 1)
    made = []
    started = time.monotonic()
    for number, results in enumerate(infer(network, batches, hardware)):
        if number:
            made.append(results["activations"])
        else:
            started = time.monotonic()
    count = sum(map(len, made))
    making = count / (time.monotonic() - started) if made else 0.0
    return making, _reading(np.concatenate(made), scratch) if made else float("inf")


def _reading(rows: np.ndarray, scratch: Path | None) -> float:
    """Rows per second, in random order, from the disk and not from the system's memory of it."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        file.write(rows.data)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        row = np.empty(rows.shape[1:], rows.dtype)
        started = time.monotonic()
        for position in np.random.default_rng(0).permutation(len(rows)):
            os.preadv(file.fileno(), [row.data], int(position) * row.nbytes)
        return len(rows) / (time.monotonic() - started)
