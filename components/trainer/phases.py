"""One phase of training: fit, watch the eval split, keep the best weights.

Both phases compile with the same loss on the same labels, so that the first loss after unfreezing
goes on where the last before it ended, and share one notion of the best epoch so far.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from graftline.components.progress import report
from graftline.components.trainer.record import Best, Epoch, Phase
from graftline.serving.errors import UserError

_TITLES = {"frozen": "training the head", "fine_tune": "fine-tuning"}
_PROGRESS_EVERY = 2.0  # seconds


class Watch(tf_keras.callbacks.Callback):
    """Records epochs, ends a phase that no longer improves, stops on a loss that is no number.

    Args:
        phase: `frozen` or `fine_tune`.
        rate: learning rate that it begins with.
        patience: epochs without a lower loss on the eval split that end the phase.
        best: the best epoch of the phases before, to be improved on; None: there was none.
    """

    def __init__(self, phase: str, rate: float, patience: int, best: Best | None) -> None:
        super().__init__()
        self.epochs: list[Epoch] = []
        self.best = best
        self._phase = phase
        self._rate = rate
        self._patience = patience
        self._waited = 0
        self._weights: list[np.ndarray] = []
        self._started = 0.0
        self._shown = 0.0

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Takes the weights that the phase begins with as the best so far."""
        self._weights = self.model.get_weights()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the clock."""
        self._started = self._shown = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Stops at once where the loss is no number; shows within a long epoch that it goes on.

        Raises:
            UserError: the loss is none; says when, and which rate to lower.
        """
        loss = (logs or {})["loss"]
        if not math.isfinite(loss):
            raise UserError(
                f"Training diverged: the loss became {loss} in step {batch + 1} of epoch "
                f"{len(self.epochs) + 1} of the phase {self._phase}, at a learning rate of "
                f"{self._rate:g}. Lower trainer.{self._phase}.rate."
            )
        if time.monotonic() - self._shown > _PROGRESS_EVERY:
            self._shown = time.monotonic()
            self._report(len(self.epochs) + 1, f"step {batch + 1}  loss {loss:.3f}")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Records the epoch, keeps its weights if they are the best, ends the phase if due."""
        logs = logs or {}
        done = Epoch(
            epoch=epoch + 1,
            loss=float(logs["loss"]),
            accuracy=float(logs["accuracy"]),
            eval_loss=_optional(logs, "val_loss"),
            eval_accuracy=_optional(logs, "val_accuracy"),
            seconds=time.monotonic() - self._started,
        )
        self.epochs.append(done)
        shown = done.accuracy if done.eval_accuracy is None else done.eval_accuracy
        self._report(done.epoch, f"accuracy {shown:.3f}")
        if self._improves(done):
            self.best = Best(
                phase=self._phase,
                epoch=done.epoch,
                eval_loss=done.eval_loss,
                eval_accuracy=done.eval_accuracy,
            )
            self._weights = self.model.get_weights()
            self._waited = 0
            return
        self._waited += 1
        self.model.stop_training = self._waited >= self._patience

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Puts the best weights back."""
        self.model.set_weights(self._weights)

    def _report(self, epoch: int, text: str) -> None:
        report(f"{_TITLES[self._phase]} {epoch}/{self.params['epochs']}  {text}")

    def _improves(self, done: Epoch) -> bool:
        if self.best is None or self.best.eval_loss is None or done.eval_loss is None:
            return True
        return done.eval_loss < self.best.eval_loss


def _optional(logs: dict[str, float], name: str) -> float | None:
    return float(logs[name]) if name in logs else None


def run_phase(
    name: str,
    model: tf_keras.Model,
    train: tf.data.Dataset,
    evaluation: tf.data.Dataset | None,
    *,
    images: int,
    epochs: int,
    batch_size: int,
    rate: float,
    schedule: str,
    patience: int,
    best: Best | None,
    logs: str,
) -> tuple[Phase, Best]:
    """Trains a model, which ends with the weights of the best epoch up to now.

    Args:
        name: `frozen` or `fine_tune`.
        model: to logits; the strategy's scope is entered.
        train: batches of (input, label).
        evaluation: the same of the eval split; None: nothing to watch, every epoch is run.
        images: number of training images.
        epochs: most epochs.
        batch_size: images per step.
        rate: learning rate of Adam.
        schedule: `constant`, or `cosine`: from `rate` down to 0 over all epochs
            (Loshchilov and Hutter, SGDR, 2017, without restarts).
        patience: epochs without a lower loss on the eval split that end the phase.
        best: the best epoch of the phases before.
        logs: folder of the TensorBoard logs.

    Returns:
        What happened, and the best epoch so far.

    Raises:
        UserError: the loss is no number.
    """
    started = time.monotonic()
    steps = epochs * -(-images // batch_size)
    falling = tf_keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(
        # The newer Adam has ten small operations per variable instead of one, and takes twice as
        # long to trace.
        tf_keras.optimizers.legacy.Adam(falling if schedule == "cosine" else rate),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    watch = Watch(name, rate, patience, best)
    board = tf_keras.callbacks.TensorBoard(f"{logs}/{name}", write_graph=False)
    fit: dict[str, Any] = {"validation_data": evaluation} if evaluation is not None else {}
    model.fit(train, epochs=epochs, verbose=0, callbacks=[watch, board], **fit)
    seconds = time.monotonic() - started
    phase = Phase(
        name=name,
        rate=rate,
        trainable_parameters=sum(int(np.prod(w.shape)) for w in model.trainable_weights),
        epochs=tuple(watch.epochs),
        seconds=seconds,
        images_per_second=images * len(watch.epochs) / seconds,
    )
    assert watch.best is not None
    return phase, watch.best
