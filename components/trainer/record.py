"""What happened in a training: `training.json` beside the TensorBoard logs of a run."""

from __future__ import annotations

import msgspec

FILE_NAME = "training.json"


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """One pass over the training images.

    Attributes:
        epoch: counted from 1 within its phase.
        loss: mean cross-entropy over the training images, while they train.
        accuracy: share of the training images that were right, while they train.
        eval_loss: mean cross-entropy over the eval split afterwards; None where it is empty.
        eval_accuracy: share of the eval split that is right; None where it is empty.
        eval_brier: mean squared error of the probabilities there; None where it is empty.
        seconds: wall clock, evaluation included.
    """

    epoch: int
    loss: float
    accuracy: float
    eval_loss: float | None
    eval_accuracy: float | None
    eval_brier: float | None
    seconds: float


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of training.

    Attributes:
        name: as configured.
        rate: learning rate.
        trainable_parameters: how many numbers it changes.
        epochs: its epochs in order.
        seconds: wall clock of the phase.
        images_per_second: training images times epochs over seconds.
    """

    name: str
    rate: float
    trainable_parameters: int
    epochs: tuple[Epoch, ...]
    seconds: float
    images_per_second: float


class Best(msgspec.Struct, frozen=True, kw_only=True):
    """The epoch whose weights were exported: the one with the lowest error on the eval split."""

    phase: str
    epoch: int
    eval_loss: float | None
    eval_accuracy: float | None
    eval_brier: float | None


class TrainingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The whole training.

    Attributes:
        backbone, weights, alpha, image_size, seed: as configured.
        classes: number of classes.
        parameters: of the exported model.
        train_images, eval_images: sizes of the splits.
        replicas, workers, precision: devices and processes that trained, and what they computed in.
        warm_start: whether it started from the version in service.
        features_computed: how many images went through what does not train, each view for itself;
            those of earlier runs are not computed again.
        features_seconds: wall clock of that, decoding included.
        features_derived: of how many features were computed from stored activations, in place of
            the image: the blocks above had been trained since.
        derived_seconds: wall clock of that.
        phases: in order.
        exported: where the exported weights come from.
        seconds: wall clock of the whole training, export included.
    """

    backbone: str
    weights: str
    alpha: float
    image_size: int
    seed: int
    classes: int
    parameters: int
    train_images: int
    eval_images: int
    replicas: int
    workers: int
    precision: str
    warm_start: bool
    features_computed: int
    features_seconds: float
    features_derived: int = 0
    derived_seconds: float = 0.0
    phases: tuple[Phase, ...]
    exported: Best
    seconds: float

    def write(self, folder: str) -> None:
        """Writes it as JSON into a folder, which may be on an object store."""
        import tensorflow as tf

        tf.io.gfile.makedirs(folder)
        with tf.io.gfile.GFile(f"{folder}/{FILE_NAME}", "w") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self), indent=2).decode())

    @staticmethod
    def read(folder: str) -> TrainingRecord:
        """Reads what `write` wrote."""
        import tensorflow as tf

        with tf.io.gfile.GFile(f"{folder}/{FILE_NAME}", "rb") as file:
            return msgspec.json.decode(file.read(), type=TrainingRecord)
