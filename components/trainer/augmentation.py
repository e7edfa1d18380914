"""Training images as they might as well have looked: turned, shifted, in another light, mixed.

All of it is TensorFlow operations between the preprocessing and the network, in training only: the
exported model never sees them. An image's view follows from its id and the number of the view, so
that what was computed of a view holds as long as the settings do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from graftline.components.trainer.backbones.scaling import Scaling, scale, unscale
from graftline.components.trainer.config import AugmentationConfig

_GREY = 128.0


@dataclass(frozen=True)
class Augmenter:
    """Makes views of images.

    Attributes:
        config: the section `trainer.augmentation`.
        scaling: how the images were scaled for the backbone; views are made of pixels.
    """

    config: AugmentationConfig
    scaling: Scaling

    def __call__(self, images: tf.Tensor, ids: tf.Tensor, view: tf.Tensor) -> tf.Tensor:
        """One view of each image.

        Args:
            images: float32 (B, height, width, 3), scaled for the backbone.
            ids: string (B,): who they are.
            view: int64 (): which view.

        Returns:
            the same shape and scale.
        """
        hashes = tf.strings.to_hash_bucket_fast(ids, 2**62)
        seeds = tf.stack([hashes, tf.fill(tf.shape(hashes), view)], axis=1)
        pixels = tf.map_fn(
            lambda one: self._view(*one),
            (unscale(images, self.scaling), seeds),
            fn_output_signature=tf.TensorSpec(images.shape[1:], tf.float32),
        )
        return scale(pixels, self.scaling)

    def _view(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """float32 (height, width, 3) of 0 to 255, from the same."""
        draw = Draw(seed)
        if _moves(self.config):
            image = _moved(image, self.config, draw)
        if self.config.contrast:
            factor = draw.uniform(1 - self.config.contrast, 1 + self.config.contrast)
            image = contrast(image, factor)
        if self.config.policy == "randaugment":
            image = _rand_augment(image, self.config, draw)
        elif self.config.policy == "autoaugment":
            image = _auto_augment(image, draw)
        return image


class Draw:
    """Random numbers that follow from a seed: int64 (2,)."""

    def __init__(self, seed: tf.Tensor) -> None:
        self._seed = seed
        self._drawn = 0

    def uniform(self, low: float, high: float) -> tf.Tensor:
        """float32 () in [low, high)."""
        return tf.random.stateless_uniform((), self._next(), low, high)

    def index(self, count: int) -> tf.Tensor:
        """int32 () in [0, count)."""
        return tf.random.stateless_uniform((), self._next(), 0, count, tf.int32)

    def sign(self) -> tf.Tensor:
        """float32 (): 1 or -1."""
        return tf.where(self.uniform(0, 1) < 0.5, -1.0, 1.0)

    def beta(self, alpha: float) -> tf.Tensor:
        """float32 () of the beta distribution with both parameters alpha."""
        one, other = (tf.random.stateless_gamma((), self._next(), alpha) for _ in range(2))
        return one / tf.maximum(one + other, 1e-12)

    def _next(self) -> tf.Tensor:
        self._drawn += 1
        return tf.random.experimental.stateless_fold_in(self._seed, self._drawn)


def _moves(config: AugmentationConfig) -> bool:
    return config.flip != "none" or any((config.rotation, config.shift, config.zoom))


def _moved(image: tf.Tensor, config: AugmentationConfig, draw: Draw) -> tf.Tensor:
    """Flip, rotation, zoom and shift in one resampling; what comes in from outside is mirrored."""
    across = draw.sign() if config.flip in ("horizontal", "both") else 1.0
    upright = draw.sign() if config.flip in ("vertical", "both") else 1.0
    angle = draw.uniform(-1, 1) * math.radians(config.rotation)
    zoom = 1 + draw.uniform(-1, 1) * config.zoom
    height, width = image.shape[:2]
    return _resampled(
        image,
        [
            [across * zoom * tf.cos(angle), -across * zoom * tf.sin(angle)],
            [upright * zoom * tf.sin(angle), upright * zoom * tf.cos(angle)],
        ],
        [draw.uniform(-1, 1) * config.shift * side for side in (width, height)],
        "REFLECT",
    )


def _resampled(
    image: tf.Tensor, matrix: list[list], shift: list, fill: str = "CONSTANT"
) -> tf.Tensor:
    """An image seen through a linear map about its centre.

    Args:
        image: float32 (height, width, 3).
        matrix: from a place (x, y) of the result, counted from the centre, to one of the image.
        shift: (x, y) added to it, in pixels.
        fill: what is seen beyond the edges: `REFLECT`, or `CONSTANT`, grey.
    """
    height, width = image.shape[:2]
    centre = ((width - 1) / 2, (height - 1) / 2)
    rows = [
        [a, b, place + moved - (a * centre[0] + b * centre[1])]
        for (a, b), place, moved in zip(matrix, centre, shift, strict=True)
    ]
    transform = [tf.cast(value, tf.float32) for value in (*rows[0], *rows[1], 0.0, 0.0)]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.stack(transform)[None],
        output_shape=(height, width),
        interpolation="BILINEAR",
        fill_mode=fill,
        fill_value=_GREY,
    )[0]


def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Away from the image's mean grey (factor above 1), or towards it."""
    return _blend(tf.round(tf.reduce_mean(_grey(image))), image, factor)


def brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Away from black, or towards it."""
    return _blend(0.0, image, factor)


def colour(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Away from the grey image, or towards it."""
    return _blend(_grey(image), image, factor)


def sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Away from the smoothed image, or towards it; the outermost pixels stay."""
    kernel = tf.constant([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13
    kernel = tf.tile(kernel[:, :, None, None], (1, 1, 3, 1))
    inner = tf.nn.depthwise_conv2d(image[None], kernel, (1, 1, 1, 1), "VALID")[0]
    inside = tf.pad(tf.ones_like(inner), ((1, 1), (1, 1), (0, 0)))
    smooth = tf.where(inside > 0, tf.pad(inner, ((1, 1), (1, 1), (0, 0))), image)
    return _blend(smooth, image, factor)


def _grey(image: tf.Tensor) -> tf.Tensor:
    """float32 (height, width, 1)."""
    return tf.reduce_sum(image * tf.constant([0.299, 0.587, 0.114]), axis=-1, keepdims=True)


def _blend(base: tf.Tensor, image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(base + factor * (image - base), 0.0, 255.0)


def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps so many of the 8 bits of each pixel."""
    step = tf.cast(2 ** (8 - tf.cast(bits, tf.int32)), tf.float32)
    return tf.floor(image / step) * step


def solarize(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Inverts pixels from a threshold on."""
    return tf.where(image < threshold, image, 255.0 - image)


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel from 0 to 255."""
    low = tf.reduce_min(image, axis=(0, 1))
    high = tf.reduce_max(image, axis=(0, 1))
    stretched = (image - low) * 255.0 / tf.maximum(high - low, 1.0)
    return tf.where(high > low, stretched, image)


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Spreads the values of each channel so that all are about equally frequent."""
    values = tf.cast(tf.transpose(image, (2, 0, 1)), tf.int32)
    flat = tf.reshape(values, (3, -1))
    counts = tf.math.bincount(flat, minlength=256, maxlength=256, axis=-1)
    brightest = tf.gather(counts, tf.reduce_max(flat, axis=1), batch_dims=1)
    step = (tf.shape(flat)[1] - brightest) // 255
    before = tf.cumsum(counts, axis=1, exclusive=True)
    table = tf.minimum((before + step[:, None] // 2) // tf.maximum(step, 1)[:, None], 255)
    table = tf.where(step[:, None] > 0, table, tf.range(256)[None])
    return tf.cast(tf.transpose(tf.gather(table, values, batch_dims=1), (1, 2, 0)), tf.float32)


def _turned(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    angle = degrees * (math.pi / 180)
    matrix = [[tf.cos(angle), -tf.sin(angle)], [tf.sin(angle), tf.cos(angle)]]
    return _resampled(image, matrix, [0.0, 0.0])


def _sheared(image: tf.Tensor, x: tf.Tensor | float, y: tf.Tensor | float) -> tf.Tensor:
    return _resampled(image, [[1.0, x], [y, 1.0]], [0.0, 0.0])


def _shifted(image: tf.Tensor, x: tf.Tensor | float, y: tf.Tensor | float) -> tf.Tensor:
    height, width = image.shape[:2]
    return _resampled(image, [[1.0, 0.0], [0.0, 1.0]], [x * width, y * height])


# By name, as the papers have them: an operation on an image, its strength of 0 to 1, and a sign.
OPERATIONS: dict[str, Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "identity": lambda image, strength, sign: image,
    "autocontrast": lambda image, strength, sign: autocontrast(image),
    "equalize": lambda image, strength, sign: equalize(image),
    "invert": lambda image, strength, sign: 255.0 - image,
    "rotate": lambda image, strength, sign: _turned(image, sign * strength * 30.0),
    "shear_x": lambda image, strength, sign: _sheared(image, sign * strength * 0.3, 0.0),
    "shear_y": lambda image, strength, sign: _sheared(image, 0.0, sign * strength * 0.3),
    "shift_x": lambda image, strength, sign: _shifted(image, sign * strength * 0.45, 0.0),
    "shift_y": lambda image, strength, sign: _shifted(image, 0.0, sign * strength * 0.45),
    "posterize": lambda image, strength, sign: posterize(image, tf.round(8 - 4 * strength)),
    "solarize": lambda image, strength, sign: solarize(image, 256.0 * (1 - strength)),
    "colour": lambda image, strength, sign: colour(image, 1 + sign * 0.9 * strength),
    "contrast": lambda image, strength, sign: contrast(image, 1 + sign * 0.9 * strength),
    "brightness": lambda image, strength, sign: brightness(image, 1 + sign * 0.9 * strength),
    "sharpness": lambda image, strength, sign: sharpness(image, 1 + sign * 0.9 * strength),
}

# RandAugment inverts nothing.
_RANDOM = tuple(name for name in OPERATIONS if name != "invert")


def _rand_augment(image: tf.Tensor, config: AugmentationConfig, draw: Draw) -> tf.Tensor:
    """Two operations, drawn at random (Cubuk et al., 2019, arXiv:1909.13719)."""
    strength = tf.constant(config.magnitude / 10)
    for _ in range(2):
        image = _one_of(_RANDOM, draw.index(len(_RANDOM)), image, strength, draw.sign())
    return image


def _one_of(
    names: tuple[str, ...],
    index: tf.Tensor,
    image: tf.Tensor,
    strength: tf.Tensor,
    sign: tf.Tensor,
) -> tf.Tensor:
    def apply(name: str) -> Callable[[], tf.Tensor]:
        return lambda: OPERATIONS[name](image, strength, sign)

    result = tf.switch_case(index, [apply(name) for name in names])
    return tf.ensure_shape(result, image.shape)


# The policy found on ImageNet (Cubuk et al., 2018, arXiv:1805.09501, table 9): pairs of an
# operation, its probability, and its strength in tenths.
_POLICY = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("colour", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("colour", 1.0, 2)),
    (("colour", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("colour", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)


def _auto_augment(image: tf.Tensor, draw: Draw) -> tf.Tensor:
    """One pair of the policy, drawn at random."""
    names = tuple(OPERATIONS)
    steps = tf.constant(
        [[[names.index(n), chance, level / 10] for n, chance, level in pair] for pair in _POLICY]
    )
    for step in tf.unstack(steps[draw.index(len(_POLICY))]):
        index = tf.where(draw.uniform(0, 1) < step[1], tf.cast(step[0], tf.int32), 0)
        image = _one_of(names, index, image, step[2], draw.sign())
    return image


def mix(
    config: AugmentationConfig, inputs: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes every input of a batch with another one, and their labels likewise.

    MixUp (Zhang et al., 2017, arXiv:1710.09412) takes a mean of both, CutMix (Yun et al., 2019,
    arXiv:1905.04899) puts a rectangle of the one into the other; where both are configured, one of
    them is drawn for each batch. What is mixed is what trains: images, the activations of a layer
    (as in Verma et al., 2018, arXiv:1806.05236), or features, for which the two are the same.

    Args:
        config: the section `trainer.augmentation`.
        inputs: float32 (B, height, width, channels) or (B, features), in random order.
        labels: float32 (B, C).
        seed: int64 (2,).

    Returns:
        the same shapes.
    """
    draw = Draw(seed)

    def mixed_up() -> tuple[tf.Tensor, tf.Tensor]:
        share = draw.beta(config.mixup)
        return _mean(inputs, share), _mean(labels, share)

    def cut() -> tuple[tf.Tensor, tf.Tensor]:
        share = draw.beta(config.cutmix)
        if len(inputs.shape) == 2:
            return _mean(inputs, share), _mean(labels, share)
        inside = _rectangle(inputs, share, draw)
        shown = 1 - tf.reduce_mean(tf.cast(inside, tf.float32))
        mixed = tf.where(inside[None, :, :, None], tf.roll(inputs, 1, axis=0), inputs)
        return mixed, _mean(labels, shown)

    if config.mixup and config.cutmix:
        return tf.cond(draw.uniform(0, 1) < 0.5, mixed_up, cut)
    return mixed_up() if config.mixup else cut()


def _mean(values: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    return share * values + (1 - share) * tf.roll(values, 1, axis=0)


def _rectangle(inputs: tf.Tensor, share: tf.Tensor, draw: Draw) -> tf.Tensor:
    """bool (height, width): about 1 - share of the places, in one rectangle."""
    inside = []
    for axis in (1, 2):
        length = tf.shape(inputs)[axis]
        half = tf.sqrt(1 - share) * tf.cast(length, tf.float32) / 2
        centre = draw.uniform(0, 1) * tf.cast(length, tf.float32)
        places = tf.cast(tf.range(length), tf.float32) + 0.5
        inside.append(tf.abs(places - centre) < half)
    return inside[0][:, None] & inside[1][None, :]
