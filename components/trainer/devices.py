"""Where training runs."""

from __future__ import annotations

import contextlib

import tensorflow as tf


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The distribution strategy.

    Args:
        name: `one_device`; `mirrored`, over all GPUs of this machine; `auto`, mirrored where there
            is more than one GPU.
    """
    gpus = tf.config.list_physical_devices("GPU")
    # TensorFlow would take all memory of each GPU, and other processes may want some. Too late, and
    # refused, where an earlier node in this process has used one.
    with contextlib.suppress(RuntimeError):
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()
