"""What TensorBoard shows beside the curves: resources, histograms, eval images as an embedding."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from PIL import Image

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MB = 1e6


class Resources(tf_keras.callbacks.Callback):
    """Writes per epoch: images per second, processors in use, memory of this process and the GPUs.

    Args:
        writer: where to.
        images: how many an epoch has.
    """

    def __init__(self, writer: tf.summary.SummaryWriter, images: int) -> None:
        super().__init__()
        self._writer = writer
        self._images = images
        self._wall = self._processor = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the clocks."""
        self._wall, self._processor = time.monotonic(), time.process_time()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Writes the figures of the epoch."""
        seconds = time.monotonic() - self._wall
        figures = {
            "images per second": self._images / seconds,
            "processors in use": (time.process_time() - self._processor) / seconds,
            "memory in MB": _resident_bytes() / _MB,
        }
        for gpu in tf.config.list_logical_devices("GPU"):
            used = tf.config.experimental.get_memory_info(gpu.name)["peak"]
            figures[f"memory of {gpu.name} in MB"] = used / _MB
        with self._writer.as_default(step=epoch):
            for name, value in figures.items():
                tf.summary.scalar(f"resources/{name}", value)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


class Histograms(tf_keras.callbacks.Callback):
    """Writes per epoch: weights, their gradients, and activations, for one batch of eval images.

    Args:
        writer: where to.
        loss: of labels and logits.
        batch: what the model takes, and labels (B, C).
    """

    def __init__(
        self,
        writer: tf.summary.SummaryWriter,
        loss: tf_keras.losses.Loss,
        batch: tuple[tf.Tensor, tf.Tensor],
    ) -> None:
        super().__init__()
        self._writer = writer
        self._loss = loss
        self._batch = batch

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Writes the histograms of the epoch."""
        inputs, labels = self._batch
        with tf.GradientTape() as tape, _recorded(self.model) as activations:
            loss = self._loss(labels, self.model(inputs, training=False))
        weights = self.model.trainable_weights
        gradients = tape.gradient(loss, weights)
        with self._writer.as_default(step=epoch):
            for weight, gradient in zip(weights, gradients, strict=True):
                tf.summary.histogram(f"weights/{weight.name}", weight)
                if gradient is not None:
                    tf.summary.histogram(f"gradients/{weight.name}", gradient)
            for name, values in activations.items():
                tf.summary.histogram(f"activations/{name}", values)


@contextlib.contextmanager
def _recorded(model: tf_keras.Model) -> Iterator[dict[str, tf.Tensor]]:
    """What every layer with weights gives, by its name, while a model is called eagerly."""
    outputs: dict[str, tf.Tensor] = {}
    layers = [
        layer
        for layer in model._flatten_layers()
        if layer.trainable_weights and not isinstance(layer, tf_keras.Model)
    ]

    def recording(layer: tf_keras.layers.Layer) -> Callable[..., tf.Tensor]:
        call = layer.call

        def record(*arguments: Any, **named: Any) -> tf.Tensor:
            outputs[layer.name] = call(*arguments, **named)
            return outputs[layer.name]

        return record

    for layer in layers:
        layer.call = recording(layer)
    try:
        yield outputs
    finally:
        for layer in layers:
            del layer.call


def write_embedding(
    folder: str, features: np.ndarray, labels: Sequence[str], thumbnails: np.ndarray
) -> None:
    """Writes what TensorBoard's projector shows as points with pictures.

    Args:
        folder: of the TensorBoard logs; may be on an object store.
        features: (N, F).
        labels: N names of classes.
        thumbnails: uint8 (N, side, side, 3).
    """
    # TensorBoard shows a folder only where there is a file of events.
    tf.summary.create_file_writer(folder).close()
    side = thumbnails.shape[1]
    # Square, for TensorBoard finds the line of a picture by the number of lines.
    columns = math.ceil(math.sqrt(len(thumbnails)))
    sheet = Image.new("RGB", (columns * side, columns * side))
    for number, pixels in enumerate(thumbnails):
        place = (number % columns * side, number // columns * side)
        sheet.paste(Image.fromarray(pixels), place)
    with tf.io.gfile.GFile(f"{folder}/thumbnails.png", "wb") as file:
        sheet.save(file, "PNG")
    with tf.io.gfile.GFile(f"{folder}/features.tsv", "w") as file:
        for row in features:
            file.write("\t".join(f"{value:.5g}" for value in row) + "\n")
    with tf.io.gfile.GFile(f"{folder}/labels.tsv", "w") as file:
        # A single column has no heading, and a tab would begin another one.
        file.write("".join(" ".join(label.split()) + "\n" for label in labels))
    with tf.io.gfile.GFile(f"{folder}/projector_config.pbtxt", "w") as file:
        file.write(
            'embeddings {\n  tensor_name: "eval images"\n  tensor_path: "features.tsv"\n'
            '  metadata_path: "labels.tsv"\n  sprite {\n    image_path: "thumbnails.png"\n'
            f"    single_image_dim: {side}\n    single_image_dim: {side}\n  }}\n}}\n"
        )
