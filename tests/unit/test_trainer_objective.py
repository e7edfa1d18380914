"""Loss, class weights, rate and optimiser."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from graftline.components.trainer.balance import Balance, class_weights
from graftline.components.trainer.config import AugmentationConfig, PhaseConfig, TrainerConfig
from graftline.components.trainer.objective import make_loss, make_optimizer, to_train_on

PHASE = PhaseConfig(name="a", epochs=4, rate=0.1)


def test_a_smoothed_label_asks_for_less_than_certainty():
    labels, certain = tf.eye(3)[:2], tf.constant([[40.0, 0.0, 0.0], [0.0, 40.0, 0.0]])
    assert float(make_loss(0.0)(labels, certain)) == pytest.approx(0.0, abs=1e-6)
    # Two of three classes get a tenth of a third each, and are 40 nats away.
    assert float(make_loss(0.1)(labels, certain)) == pytest.approx(8 / 3)


def test_every_class_with_images_counts_the_same():
    labels = np.array([0] * 6 + [2] * 2)
    weights = class_weights(labels, 3)
    np.testing.assert_allclose(weights, [8 / 12, 0.0, 2.0], rtol=1e-6)
    assert weights[labels].sum() == pytest.approx(len(labels))


def test_resampled_images_of_a_rare_class_come_as_often_as_all_others_together():
    labels = np.array([0] * 90 + [1] * 10)
    balance = Balance.of(labels, 2)
    times = np.mean([balance.times(np.random.default_rng(seed)) for seed in range(200)], axis=0)
    assert times[labels == 0].sum() == pytest.approx(50, abs=1)
    assert times[labels == 1].sum() == 50
    assert balance.times(np.random.default_rng(0)).sum() == pytest.approx(100, abs=20)


def test_a_weight_comes_with_each_image_of_its_class():
    batches = tf.data.Dataset.from_tensors((np.zeros((3, 2), np.float32), np.array([0, 1, 0])))
    weights = np.array([0.5, 2.0], np.float32)
    [(_, labels, counted)] = to_train_on(batches, 2, TrainerConfig(), weights).as_numpy_iterator()
    assert labels.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert counted.tolist() == [0.5, 2.0, 0.5]


def test_what_an_epoch_reads_does_not_tune_itself_for_that_ends_with_a_wait():
    batches = tf.data.Dataset.from_tensors((np.eye(4, dtype=np.float32), np.arange(4)))
    mixing = TrainerConfig(augmentation=AugmentationConfig(mixup=1.0))
    for config in (TrainerConfig(), mixing):
        assert to_train_on(batches, 4, config, None).options().autotune.enabled is False


def test_mixed_batches_differ_from_epoch_to_epoch_and_follow_from_the_seed():
    batches = tf.data.Dataset.from_tensors((np.eye(4, dtype=np.float32), np.arange(4)))

    def epochs() -> list[np.ndarray]:
        config = TrainerConfig(augmentation=AugmentationConfig(mixup=1.0), seed=3)
        mixed = to_train_on(batches, 4, config, None)
        return [next(mixed.as_numpy_iterator())[0] for _ in range(2)]

    one, other = epochs()
    assert not np.allclose(one, other)
    np.testing.assert_array_equal((one, other), epochs())


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_weight_decay_takes_its_share_of_kernels_and_of_nothing_else(decay):
    kernel, bias = tf.Variable([[2.0]]), tf.Variable([2.0])
    optimizer = make_optimizer(PHASE, TrainerConfig(weight_decay=decay), steps_per_epoch=1)
    nothing = [(tf.zeros_like(kernel), kernel), (tf.zeros_like(bias), bias)]
    optimizer.apply_gradients(nothing)
    assert float(kernel[0, 0]) == pytest.approx(2.0 * (1 - 0.1 * decay))
    assert float(bias[0]) == 2.0


def test_class_weights_make_a_rare_class_be_seen():
    random = np.random.default_rng(0)
    features = np.concatenate([random.normal(0, 1, (190, 2)), random.normal(1.5, 1, (10, 2))])
    labels = np.array([0] * 190 + [1] * 10)
    batches = tf.data.Dataset.from_tensor_slices((features, labels)).batch(32)

    def recall_of_the_rare(weights: np.ndarray | None) -> float:
        tf_keras.utils.set_random_seed(0)
        model = tf_keras.Sequential([tf_keras.Input((2,)), tf_keras.layers.Dense(2)])
        model.compile(make_optimizer(PHASE, TrainerConfig(), 7), make_loss(0.0))
        model.fit(to_train_on(batches, 2, TrainerConfig(), weights), epochs=30, verbose=0)
        return float((model.predict(features, verbose=0).argmax(1)[labels == 1] == 1).mean())

    assert recall_of_the_rare(class_weights(labels, 2)) > recall_of_the_rare(None)
