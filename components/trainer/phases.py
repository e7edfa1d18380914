"""One phase of training: fit, watch the eval split, keep the best weights, write where it stands.

All phases compile with the same loss on the same labels, so that the first loss after unfreezing
goes on where the last before it ended, and share one notion of the best epoch so far.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from graftline.components.progress import report
from graftline.components.trainer.board import Histograms, Resources
from graftline.components.trainer.checkpoint import State, get_weights, set_weights
from graftline.components.trainer.config import PhaseConfig, TrainerConfig
from graftline.components.trainer.devices import Hardware
from graftline.components.trainer.network import begin_epoch
from graftline.components.trainer.objective import make_brier, make_loss, make_optimizer
from graftline.components.trainer.record import Best, Epoch, Phase
from graftline.serving.errors import UserError

_PROGRESS_EVERY = 2.0  # seconds


class Diverged(UserError):
    """The loss is no number; `state.best_weights` are those of the last good epoch."""


class Watch(tf_keras.callbacks.Callback):
    """Records epochs, ends a phase that no longer improves, stops on a loss that is no number.

    Args:
        phase: its configuration.
        patience: epochs without a lower error on the eval split that end the phase.
        state: where the training stands, kept up to date.
        models: backbone and head, whose weights are kept.
        seed: of what the head drops.
        save: is called after every epoch.
    """

    def __init__(
        self,
        phase: PhaseConfig,
        patience: int,
        state: State,
        models: Sequence[tf_keras.Model],
        seed: int,
        save: Callable[[], None],
    ) -> None:
        super().__init__()
        self.state = state
        self._phase = phase
        self._patience = patience
        self._models = models
        self._seed = seed
        self._save = save
        self._started = 0.0
        self._shown = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the phase is done: all its epochs, or none better for long."""
        epochs = self.state.epochs
        errors = [epoch.eval_brier for epoch in epochs if epoch.eval_brier is not None]
        if len(epochs) >= self._phase.epochs:
            return True
        return bool(errors) and len(errors) - 1 - int(np.argmin(errors)) >= self._patience

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the clock, and the masks of this epoch."""
        begin_epoch(self._models[-1], self._seed, epoch)
        self._started = self._shown = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Stops at once where the loss is no number; shows within a long epoch that it goes on.

        Raises:
            Diverged: the loss is none; says when, and which rate to lower.
        """
        loss = (logs or {})["loss"]
        number = len(self.state.epochs) + 1
        if not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss} in step {batch + 1} of epoch {number}")
        if time.monotonic() - self._shown > _PROGRESS_EVERY:
            self._shown = time.monotonic()
            self._report(number, f"step {batch + 1}  loss {loss:.3f}")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Records the epoch, keeps its weights if they are the best, ends the phase if due.

        Raises:
            Diverged: its last step, whose loss nobody has seen yet, left weights that are no
                numbers, or that give none for the eval split.
        """
        logs, state = logs or {}, self.state
        done = Epoch(
            epoch=epoch + 1,
            loss=float(logs["loss"]),
            accuracy=float(logs["accuracy"]),
            eval_loss=_optional(logs, "val_loss"),
            eval_accuracy=_optional(logs, "val_accuracy"),
            eval_brier=_optional(logs, "val_brier"),
            seconds=time.monotonic() - self._started,
        )
        weights = get_weights(self._models)
        usable = done.eval_brier is None or math.isfinite(done.eval_brier)
        if not usable or not all(np.isfinite(weight).all() for weight in weights):
            raise self._diverged(f"no usable weights are left after epoch {done.epoch}")
        state.epochs.append(done)
        shown = done.accuracy if done.eval_accuracy is None else done.eval_accuracy
        self._report(done.epoch, f"accuracy {shown:.3f}")
        state.weights = weights
        state.optimizer = self.model.optimizer.get_weights()
        if self._is_best(done):
            state.best_weights = state.weights
            state.best = Best(
                phase=self._phase.name,
                epoch=done.epoch,
                eval_loss=done.eval_loss,
                eval_accuracy=done.eval_accuracy,
                eval_brier=done.eval_brier,
            )
        self.model.stop_training = self.is_over
        self._save()

    def _diverged(self, what: str) -> Diverged:
        return Diverged(
            f"Training diverged: {what} of the phase {self._phase.name}, whose rate is "
            f"{self._phase.rate:g}. Lower trainer.phases.{self._phase.name}.rate."
        )

    def _report(self, epoch: int, text: str) -> None:
        report(f"{self._phase.name} {epoch}/{self.params['epochs']}  {text}")

    def _is_best(self, done: Epoch) -> bool:
        best = self.state.best
        if best is None or best.eval_brier is None or done.eval_brier is None:
            return True
        return done.eval_brier < best.eval_brier


def _optional(logs: dict[str, float], name: str) -> float | None:
    return float(logs[name]) if name in logs else None


def _of_each_worker(
    strategy: tf.distribute.Strategy, batches: tf.data.Dataset
) -> tf.distribute.DistributedDataset:
    """Lets each worker take its own batches as they are, where Keras would divide them again."""
    return strategy.distribute_datasets_from_function(lambda context: batches)


def run_phase(
    config: PhaseConfig,
    trainer: TrainerConfig,
    model: tf_keras.Model,
    train: tf.data.Dataset,
    evaluation: tf.data.Dataset | None,
    state: State,
    *,
    models: Sequence[tf_keras.Model],
    images: int,
    evaluation_images: int,
    hardware: Hardware,
    logs: str,
    save: Callable[[], None],
) -> None:
    """Trains a model, which ends with the weights of the best epoch up to now.

    Args:
        config: the phase.
        trainer: the section `trainer`.
        model: to logits; the hardware's scope is entered.
        train: batches as `objective.to_train_on` gives them, from the epoch on that is next; for
            all devices together, of several workers for each device.
        evaluation: the same of the eval split, unmixed; None: nothing to watch, every epoch is run.
        state: where the training stands; goes on from there and is kept up to date.
        models: backbone and head, of which the model is a part, and whose weights are kept.
        images: how many an epoch has, on all workers together.
        evaluation_images: how many each worker is watched by.
        hardware: what it runs on.
        logs: folder of the TensorBoard logs.
        save: is called after every epoch.

    Raises:
        Diverged: the loss is no number.
    """
    steps = -(-images // (trainer.batch_size * hardware.replicas))
    model.compile(
        make_optimizer(config, trainer, steps, hardware.replicas),
        make_loss(trainer.label_smoothing),
        metrics=["accuracy", make_brier()],
    )
    watch = Watch(config, trainer.patience, state, models, trainer.seed, save)
    if state.epochs:
        report(f"{config.name} goes on after epoch {len(state.epochs)}")
        model.optimizer._create_all_weights(model.trainable_variables)
        model.optimizer.set_weights(state.optimizer)
    if not watch.is_over:
        folder = f"{logs}/{config.name}"
        board = tf_keras.callbacks.TensorBoard(folder, write_graph=False)
        writer = tf.summary.create_file_writer(f"{folder}/train", filename_suffix=".more")
        callbacks = [watch, board, Resources(writer, images)]
        if trainer.tensorboard.histograms and evaluation is not None:
            [batch] = evaluation.take(1)
            callbacks.append(Histograms(writer, model.loss, batch))
        fit = {}
        if hardware.workers > 1:
            # Each has images of its own, and all must take as many steps.
            train = _of_each_worker(hardware.strategy, train.repeat())
            if evaluation is not None:
                evaluation = _of_each_worker(hardware.strategy, evaluation)
                fit["validation_steps"] = -(-evaluation_images // trainer.batch_size)
            fit["steps_per_epoch"] = steps
        model.fit(
            train,
            validation_data=evaluation,
            epochs=config.epochs,
            initial_epoch=len(state.epochs),
            verbose=0,
            callbacks=callbacks,
            **fit,
        )
        writer.close()
    set_weights(models, state.best_weights)
    seconds = sum(epoch.seconds for epoch in state.epochs)
    phase = Phase(
        name=config.name,
        rate=config.rate,
        trainable_parameters=sum(int(np.prod(w.shape)) for w in model.trainable_weights),
        epochs=tuple(state.epochs),
        seconds=seconds,
        images_per_second=images * len(state.epochs) / seconds,
    )
    state.phases.append(phase)
    state.epochs, state.optimizer = [], []
