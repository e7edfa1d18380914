"""What training minimises and by which steps: loss, class weights, optimiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from graftline.components.trainer.augmentation import mix
from graftline.components.trainer.config import PhaseConfig, TrainerConfig
from graftline.components.trainer.inputs import PARALLEL, epoch_seeds, untuned


def make_loss(label_smoothing: float) -> tf_keras.losses.Loss:
    """Cross-entropy of logits (B, C) with labels (B, C).

    Args:
        label_smoothing: share of each label that is spread over all classes (Szegedy et al., 2015,
            arXiv:1512.00567, section 7).
    """
    return tf_keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=label_smoothing
    )


def make_brier() -> tf_keras.metrics.Metric:
    """Squared error of the probabilities (Brier, 1950), of logits (B, C) and labels (B, C).

    It tells which epoch is best: like cross-entropy it is least for the true probabilities, but a
    few confident mistakes do not outweigh many right answers.
    """

    def brier(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.square(tf.nn.softmax(logits) - labels), axis=-1)

    return tf_keras.metrics.MeanMetricWrapper(brier, name="brier")


def to_train_on(
    batches: tf.data.Dataset,
    classes: int,
    trainer: TrainerConfig,
    weights: np.ndarray | None,
    epoch: int = 0,
) -> tf.data.Dataset:
    """Batches as training takes them.

    Args:
        batches: of (input, label int64 (B,)), in random order.
        classes: their number, C.
        trainer: the section `trainer`; says whether inputs are mixed.
        weights: float32 (C,), how much an image of each class counts; None: all the same.
        epoch: the first one.

    Returns:
        A dataset of (input, label float32 (B, C)), or of (input, label, weight float32 (B,)).
    """
    augmentation = trainer.augmentation

    def prepare(inputs: tf.Tensor, labels: tf.Tensor, *seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        dense = tf.one_hot(labels, classes)
        if seed:
            inputs, dense = mix(augmentation, inputs, dense, tf.stack([seed[0], 0]))
        if weights is None:
            return inputs, dense
        return inputs, dense, tf.linalg.matvec(dense, weights)

    if augmentation.mixes:
        seeds = epoch_seeds(trainer.seed, epoch).flat_map(tf.data.Dataset.random)
        batches = tf.data.Dataset.zip(batches, seeds).map(lambda batch, seed: (*batch, seed))
    return untuned(batches.map(prepare, PARALLEL))


def make_optimizer(
    phase: PhaseConfig, trainer: TrainerConfig, steps_per_epoch: int, replicas: int = 1
) -> tf_keras.optimizers.legacy.Optimizer:
    """Adam (Kingma and Ba, 2014, arXiv:1412.6980), with decoupled weight decay where configured.

    Args:
        phase: rate and schedule.
        trainer: weight decay, and how the rate grows with the devices.
        steps_per_epoch: batches of an epoch.
        replicas: how many devices train, each on a batch of its own.
    """
    rate = make_rate(phase, steps_per_epoch, replicas ** _POWER[trainer.rate_scaling])
    if trainer.weight_decay:
        return _DecayingAdam(rate, trainer.weight_decay)
    # The newer Adam has ten small operations per variable instead of one, and takes twice as long
    # to trace.
    return tf_keras.optimizers.legacy.Adam(rate)


# Square root: Malladi et al., 2022, arXiv:2205.10287, for optimisers like Adam. Linear: Goyal et
# al., 2017, arXiv:1706.02677, for plain gradient descent.
_POWER = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}


def make_rate(phase: PhaseConfig, steps_per_epoch: int, factor: float) -> Any:
    """The learning rate of a phase times a factor, or its schedule.

    Cosine: from the rate down to 0 (Loshchilov and Hutter, SGDR, 2017, without restarts).
    """
    rate = phase.rate * factor
    warmup = round(phase.warmup * steps_per_epoch)
    if phase.schedule == "constant" and not warmup:
        return rate
    return tf_keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else rate,
        phase.epochs * steps_per_epoch - warmup,
        alpha=1.0 if phase.schedule == "constant" else 0.0,
        warmup_target=rate if warmup else None,
        warmup_steps=warmup,
    )


class _DecayingAdam(tf_keras.optimizers.legacy.Adam):
    """Adam that takes a share of every weight in each step (Loshchilov and Hutter, 2017, AdamW)."""

    def __init__(self, rate: Any, decay: float) -> None:
        super().__init__(rate)
        self._decay = decay

    def _resource_apply_dense(
        self, grad: tf.Tensor, var: tf.Variable, apply_state: Any = None
    ) -> tf.Operation:
        if len(var.shape) < 2:  # biases and normalisations
            return super()._resource_apply_dense(grad, var, apply_state)
        rate = self._decayed_lr(var.dtype.base_dtype)
        with tf.control_dependencies([var.assign_sub(rate * self._decay * var)]):
            return super()._resource_apply_dense(grad, var, apply_state)
