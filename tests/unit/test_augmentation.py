"""Augmentation: each operation as Pillow has it, views that follow from the image, mixing."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from graftline.components.trainer import augmentation
from graftline.components.trainer.augmentation import OPERATIONS, Augmenter, mix
from graftline.components.trainer.backbones.scaling import CAFFE, PLAIN, scale, unscale
from graftline.components.trainer.config import AugmentationConfig

SIZE = 24


def photograph() -> np.ndarray:
    """uint8 (SIZE, SIZE, 3), smooth, coloured, neither black nor white."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    noise = np.random.default_rng(0).normal(0, 8, (SIZE, SIZE, 3))
    channels = [60 + 140 * x, 200 - 120 * y, 90 + 60 * np.sin(6 * x * y)]
    return (np.stack(channels, axis=-1) + noise).clip(20, 230).astype(np.uint8)


PHOTOGRAPH = photograph()


def augmented(config: AugmentationConfig, view: int = 0, name: str = "a") -> np.ndarray:
    """The view of the photograph, in pixels."""
    images = scale(tf.constant(PHOTOGRAPH[None], tf.float32), PLAIN)
    made = Augmenter(config, PLAIN)(images, tf.constant([name]), tf.constant(view, tf.int64))
    return unscale(made, PLAIN).numpy()[0]


@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (lambda i: augmentation.contrast(i, 1.6), lambda p: ImageEnhance.Contrast(p).enhance(1.6)),
        (lambda i: augmentation.contrast(i, 0.3), lambda p: ImageEnhance.Contrast(p).enhance(0.3)),
        (
            lambda i: augmentation.brightness(i, 1.5),
            lambda p: ImageEnhance.Brightness(p).enhance(1.5),
        ),
        (lambda i: augmentation.colour(i, 1.7), lambda p: ImageEnhance.Color(p).enhance(1.7)),
        (lambda i: augmentation.colour(i, 0.0), lambda p: ImageEnhance.Color(p).enhance(0.0)),
        (
            lambda i: augmentation.sharpness(i, 1.8),
            lambda p: ImageEnhance.Sharpness(p).enhance(1.8),
        ),
        (
            lambda i: augmentation.sharpness(i, 0.1),
            lambda p: ImageEnhance.Sharpness(p).enhance(0.1),
        ),
        (augmentation.autocontrast, ImageOps.autocontrast),
        (augmentation.equalize, ImageOps.equalize),
        (lambda i: augmentation.posterize(i, tf.constant(4.0)), lambda p: ImageOps.posterize(p, 4)),
        (lambda i: augmentation.solarize(i, 128.0), lambda p: ImageOps.solarize(p, 128)),
    ],
)
def test_an_operation_does_what_pillow_does(ours, pillows):
    expected = np.asarray(pillows(Image.fromarray(PHOTOGRAPH)), np.float32)
    np.testing.assert_allclose(ours(tf.constant(PHOTOGRAPH, tf.float32)), expected, atol=2)


def test_an_image_of_one_colour_survives_what_stretches_values():
    grey = tf.fill((SIZE, SIZE, 3), 90.0)
    for operation in (augmentation.autocontrast, augmentation.equalize):
        np.testing.assert_array_equal(operation(grey), grey)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_every_operation_keeps_shape_and_range(name, strength):
    made = OPERATIONS[name](tf.constant(PHOTOGRAPH, tf.float32), tf.constant(strength), 1.0)
    assert made.shape == PHOTOGRAPH.shape
    assert 0 <= float(tf.reduce_min(made)) <= float(tf.reduce_max(made)) <= 255


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shift_y", "colour", "contrast"])
def test_at_no_strength_an_operation_changes_nothing(name):
    image = tf.constant(PHOTOGRAPH, tf.float32)
    np.testing.assert_allclose(OPERATIONS[name](image, tf.constant(0.0), -1.0), image, atol=1e-3)


def test_every_other_view_is_mirrored():
    views = [augmented(AugmentationConfig(flip="horizontal"), view) for view in range(20)]
    mirrored = [np.allclose(view, PHOTOGRAPH[:, ::-1], atol=1e-2) for view in views]
    same = [np.allclose(view, PHOTOGRAPH, atol=1e-2) for view in views]
    assert all(one != other for one, other in zip(mirrored, same, strict=True))
    assert 4 <= sum(mirrored) <= 16


def test_both_flips_give_all_four():
    expected = [PHOTOGRAPH[::a, ::b] for a in (1, -1) for b in (1, -1)]
    seen = set()
    for view in range(30):
        made = augmented(AugmentationConfig(flip="both"), view)
        seen |= {i for i, one in enumerate(expected) if np.allclose(made, one, atol=1e-2)}
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "settings",
    [
        {"rotation": 30},
        {"shift": 0.2},
        {"zoom": 0.3},
        {"contrast": 0.5},
        {"policy": "randaugment"},
        {"policy": "autoaugment"},
    ],
)
def test_a_view_follows_from_image_and_number_and_differs_from_the_next(settings):
    config = AugmentationConfig(**settings)
    views = [augmented(config, view) for view in range(6)]
    np.testing.assert_array_equal(augmented(config, 3), views[3])
    assert len({view.tobytes() for view in views}) >= 3
    assert augmented(config, 3, "another").tobytes() != views[3].tobytes()


def test_the_stronger_the_setting_the_further_from_the_image():
    def distance(degrees: float) -> float:
        config = AugmentationConfig(rotation=degrees)
        return float(np.mean([np.abs(augmented(config, v) - PHOTOGRAPH).mean() for v in range(8)]))

    assert 0 < distance(5) < distance(40)


def test_pixels_that_were_scaled_come_back():
    pixels = tf.constant(PHOTOGRAPH[None], tf.float32)
    for scaling in (PLAIN, CAFFE):
        np.testing.assert_allclose(unscale(scale(pixels, scaling), scaling), pixels, atol=1e-3)


LABELS = tf.eye(4)
SEED = tf.constant([5, 0], tf.int64)


def test_mixup_gives_means_of_inputs_and_labels_with_the_same_share():
    config = AugmentationConfig(mixup=0.8)
    inputs, labels = mix(config, tf.reshape(LABELS, (4, 1, 1, 4)), LABELS, SEED)
    np.testing.assert_allclose(tf.reshape(inputs, (4, 4)), labels)
    np.testing.assert_allclose(tf.reduce_sum(labels, axis=1), 1, atol=1e-6)
    assert 0 < float(labels[0, 0]) < 1


def test_cutmix_puts_in_a_rectangle_and_shares_the_labels_by_its_area():
    inputs = tf.tile(tf.reshape(tf.range(4.0), (4, 1, 1, 1)), (1, 16, 16, 2))
    for number in range(8):
        seed = tf.constant([number, 0], tf.int64)
        mixed, labels = mix(AugmentationConfig(cutmix=1.0), inputs, LABELS, seed)
        own = tf.reduce_mean(tf.cast(mixed == inputs, tf.float32), axis=(1, 2, 3))
        np.testing.assert_allclose(tf.linalg.diag_part(labels), own, atol=1e-6)
        places = np.argwhere(mixed[0, :, :, 0].numpy() != 0)
        if len(places):
            assert len(places) == np.prod(places.max(axis=0) - places.min(axis=0) + 1)


def test_features_are_mixed_as_a_whole_also_by_cutmix():
    mixed, labels = mix(AugmentationConfig(cutmix=1.0), LABELS, LABELS, SEED)
    np.testing.assert_allclose(mixed, labels)


def test_a_single_image_is_mixed_with_itself():
    mixed, labels = mix(AugmentationConfig(mixup=1.0, cutmix=1.0), LABELS[:1], LABELS[:1], SEED)
    np.testing.assert_allclose(mixed, LABELS[:1], atol=1e-6)
    np.testing.assert_allclose(labels, LABELS[:1], atol=1e-6)
