"""One phase of training: when it ends, which weights it ends with."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.autograph.core import config

from graftline.components.trainer.autograph import leave_libraries_unconverted
from graftline.components.trainer.checkpoint import State, get_weights
from graftline.components.trainer.config import PhaseConfig, TrainerConfig
from graftline.components.trainer.devices import Hardware
from graftline.components.trainer.phases import run_phase
from graftline.components.trainer.record import Best, Phase

FEATURES = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
LABELS = (FEATURES[:, 0] > 0).astype(np.int64)

leave_libraries_unconverted()


def linear() -> tf_keras.Model:
    tf_keras.utils.set_random_seed(1)
    return tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])


def error_of(model: tf_keras.Model, labels: np.ndarray) -> float:
    probabilities = tf.nn.softmax(model(FEATURES)).numpy()
    return float(np.mean(np.sum((probabilities - np.eye(2)[labels]) ** 2, axis=1)))


def run(
    model: tf_keras.Model, folder: Path, eval_labels: np.ndarray = LABELS, **settings
) -> tuple[Phase, Best]:
    batches, evaluation = (
        tf.data.Dataset.from_tensor_slices((FEATURES, np.eye(2)[labels])).batch(16)
        for labels in (LABELS, eval_labels)
    )
    phase = {"name": "frozen", "epochs": 6, "rate": 0.05}
    trainer = {"patience": 2, "batch_size": 16}
    state = State(best=settings.pop("best", None), best_weights=get_weights([model]))
    for key, value in settings.items():
        (phase if key in PhaseConfig.__struct_fields__ else trainer)[key] = value
    run_phase(
        PhaseConfig(**phase),
        TrainerConfig(**trainer),
        model,
        batches,
        evaluation,
        state,
        models=[model],
        images=len(LABELS),
        evaluation_images=len(eval_labels),
        hardware=Hardware(tf.distribute.get_strategy(), 0, 1, "float32"),
        logs=str(folder),
        save=lambda: None,
    )
    [phase] = state.phases
    return phase, state.best


@pytest.mark.parametrize("module", ["tf_keras.src.layers", "tensorflow_transform.output_wrapper"])
def test_libraries_are_left_unconverted_by_one_rule_however_often_one_asks(module):
    leave_libraries_unconverted()
    rules = [rule for rule in config.CONVERSION_RULES if rule.matches(module)]
    library = importlib.import_module(module)
    assert [rule.get_action(library).name for rule in rules] == ["DO_NOT_CONVERT"]


def test_a_phase_that_improves_runs_all_its_epochs(tmp_path):
    phase, best = run(linear(), tmp_path)
    assert len(phase.epochs) == best.epoch == 6
    assert phase.epochs[-1].loss < phase.epochs[0].loss
    assert phase.trainable_parameters == 10


def test_under_a_cosine_schedule_the_rate_falls_to_nothing_by_the_last_step(tmp_path):
    model = linear()
    run(model, tmp_path, schedule="cosine", epochs=5, patience=5)
    rate = model.optimizer.learning_rate
    rates = [float(rate(step)) for step in range(0, 21, 4)]
    assert rates[0] == pytest.approx(0.05)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0.0
    assert int(model.optimizer.iterations) == 20


def test_a_warm_up_raises_the_rate_from_nothing(tmp_path):
    model = linear()
    run(model, tmp_path, epochs=3, warmup=1.0)
    rates = [float(model.optimizer.learning_rate(step)) for step in (0, 2, 4, 8, 12)]
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.05, 0.05])


def test_a_phase_ends_when_patience_runs_out_with_the_weights_of_its_best_epoch(tmp_path):
    model = linear()
    phase, best = run(model, tmp_path, eval_labels=1 - LABELS, epochs=10, rate=0.5)
    assert best.epoch == 1
    assert len(phase.epochs) == 1 + 2
    assert error_of(model, 1 - LABELS) == pytest.approx(phase.epochs[0].eval_brier, rel=1e-4)


def test_a_phase_that_never_beats_the_one_before_leaves_the_weights_as_they_were(tmp_path):
    model = linear()
    before = [weight.copy() for weight in model.get_weights()]
    unbeaten = Best(phase="earlier", epoch=9, eval_loss=1e-6, eval_accuracy=1.0, eval_brier=1e-6)
    _, best = run(model, tmp_path, best=unbeaten)
    assert best == unbeaten
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)


def test_a_later_phase_has_patience_of_its_own(tmp_path):
    unbeaten = Best(phase="earlier", epoch=9, eval_loss=1e-6, eval_accuracy=1.0, eval_brier=1e-6)
    phase, _ = run(linear(), tmp_path, best=unbeaten, patience=1)
    assert len(phase.epochs) == 6


def test_the_same_seed_gives_the_same_epochs(tmp_path):
    losses = [
        [epoch.loss for epoch in run(linear(), tmp_path / name)[0].epochs] for name in ("a", "b")
    ]
    assert losses[0] == losses[1]
