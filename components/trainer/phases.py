"""One phase of training: fit, watch the eval split, keep the best weights.

Both phases compile with the same loss on the same labels, so that the first loss after unfreezing
goes on where the last before it ended, and share one notion of the best epoch so far.
"""

from __future__ import annotations

import math
import time

import numpy as np
import tensorflow as tf
import tf_keras

from graftline.components.progress import report
from graftline.components.trainer.config import PhaseConfig, TrainerConfig
from graftline.components.trainer.objective import make_brier, make_loss, make_optimizer
from graftline.components.trainer.record import Best, Epoch, Phase
from graftline.serving.errors import UserError

_PROGRESS_EVERY = 2.0  # seconds


class Watch(tf_keras.callbacks.Callback):
    """Records epochs, ends a phase that no longer improves, stops on a loss that is no number.

    Args:
        phase: its configuration.
        patience: epochs without a lower error on the eval split that end the phase.
        best: the best epoch of the phases before, to be improved on; None: there was none.
    """

    def __init__(self, phase: PhaseConfig, patience: int, best: Best | None) -> None:
        super().__init__()
        self.epochs: list[Epoch] = []
        self.best = best
        self._phase = phase
        self._patience = patience
        self._lowest = math.inf
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
                f"{len(self.epochs) + 1} of the phase {self._phase.name}, at a learning rate of "
                f"{self._phase.rate:g}. Lower trainer.phases.{self._phase.name}.rate."
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
            eval_brier=_optional(logs, "val_brier"),
            seconds=time.monotonic() - self._started,
        )
        self.epochs.append(done)
        shown = done.accuracy if done.eval_accuracy is None else done.eval_accuracy
        self._report(done.epoch, f"accuracy {shown:.3f}")
        if self._is_best(done):
            self.best = Best(
                phase=self._phase.name,
                epoch=done.epoch,
                eval_loss=done.eval_loss,
                eval_accuracy=done.eval_accuracy,
                eval_brier=done.eval_brier,
            )
            self._weights = self.model.get_weights()
        if done.eval_brier is not None:
            self._waited = 0 if done.eval_brier < self._lowest else self._waited + 1
            self._lowest = min(self._lowest, done.eval_brier)
            self.model.stop_training = self._waited >= self._patience

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Puts the best weights back."""
        self.model.set_weights(self._weights)

    def _report(self, epoch: int, text: str) -> None:
        report(f"{self._phase.name} {epoch}/{self.params['epochs']}  {text}")

    def _is_best(self, done: Epoch) -> bool:
        if self.best is None or self.best.eval_brier is None or done.eval_brier is None:
            return True
        return done.eval_brier < self.best.eval_brier


def _optional(logs: dict[str, float], name: str) -> float | None:
    return float(logs[name]) if name in logs else None


def run_phase(
    config: PhaseConfig,
    trainer: TrainerConfig,
    model: tf_keras.Model,
    train: tf.data.Dataset,
    evaluation: tf.data.Dataset | None,
    *,
    images: int,
    best: Best | None,
    logs: str,
) -> tuple[Phase, Best]:
    """Trains a model, which ends with the weights of the best epoch up to now.

    Args:
        config: the phase.
        trainer: the section `trainer`.
        model: to logits; the strategy's scope is entered.
        train: batches as `objective.to_train_on` gives them.
        evaluation: the same of the eval split, unmixed; None: nothing to watch, every epoch is run.
        images: how many an epoch has.
        best: the best epoch of the phases before.
        logs: folder of the TensorBoard logs.

    Returns:
        What happened, and the best epoch so far.

    Raises:
        UserError: the loss is no number.
    """
    started = time.monotonic()
    model.compile(
        make_optimizer(config, trainer, -(-images // trainer.batch_size)),
        make_loss(trainer.label_smoothing),
        metrics=["accuracy", make_brier()],
    )
    watch = Watch(config, trainer.patience, best)
    board = tf_keras.callbacks.TensorBoard(f"{logs}/{config.name}", write_graph=False)
    model.fit(
        train,
        validation_data=evaluation,
        epochs=config.epochs,
        verbose=0,
        callbacks=[watch, board],
    )
    seconds = time.monotonic() - started
    phase = Phase(
        name=config.name,
        rate=config.rate,
        trainable_parameters=sum(int(np.prod(w.shape)) for w in model.trainable_weights),
        epochs=tuple(watch.epochs),
        seconds=seconds,
        images_per_second=images * len(watch.epochs) / seconds,
    )
    assert watch.best is not None
    return phase, watch.best
