"""The one preprocessing: from encoded images to what the backbone sees.

Transform saves the graph of `preprocessing_fn`; training, evaluation and both exported signatures
run that graph and no other. It has no analyzers, so that Transform reads no data: the classes are
constants of the graph.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import tensorflow as tf

from graftline.components.trainer.backbones import registry
from graftline.components.trainer.backbones.scaling import scale
from graftline.components.trainer.config import ImageConfig, TrainerConfig
from graftline.components.trainer.inputs import IMAGE, LABEL
from graftline.pipeline.exif import orientations

# By how much the JPEG decoder can shrink.
_RATIOS = (1, 2, 4, 8)
_LITTLE = 1.25


def preprocessing_config(
    image: ImageConfig, trainer: TrainerConfig, classes: Sequence[str]
) -> dict[str, Any]:
    """What `preprocessing_fn` has to know, as plain data."""
    return {
        "image": msgspec.to_builtins(image),
        "backbone": trainer.backbone,
        "classes": list(classes),
    }


def preprocessing_fn(
    inputs: Mapping[str, tf.Tensor], custom_config: Mapping[str, Any]
) -> dict[str, tf.Tensor]:
    """What Transform turns into a graph.

    Args:
        inputs: `image`, encoded images, string (B,); `label`, class names, string (B,).
        custom_config: `image`, the section of that name; `backbone`, a name of the registry;
            `classes`, the class names in the order of the model's outputs.

    Returns:
        `image`, float32 (B, size, size, 3), upright and scaled for the backbone; `label`, int64
        (B,), the index of the class, -1 where it is none of them.
    """
    config = msgspec.convert(custom_config["image"], ImageConfig)
    scaling = registry.find(custom_config["backbone"]).scaling
    return {
        IMAGE: scale(read_images(inputs[IMAGE], config), scaling),
        LABEL: _index(inputs[LABEL], custom_config["classes"]),
    }


def read_images(encoded: tf.Tensor, config: ImageConfig) -> tf.Tensor:
    """Decodes images, turns them upright and fits them into squares.

    Args:
        encoded: string (B,): JPEG, PNG, GIF (its first frame) or BMP, of any bit depth and number
            of channels.
        config: size and fit.

    Returns:
        float32 (B, size, size, 3), RGB, 0 to 255.
    """

    shape = (config.size, config.size, 3)
    images = tf.map_fn(
        lambda one: _fit(_decode(one, config.size), config),
        encoded,
        fn_output_signature=tf.TensorSpec(shape, tf.float32),
    )
    return _turn_upright(images, orientations(encoded))


def _decode(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """uint8 (height, width, 3): one image, not smaller than it was or than the size asked for."""

    def decode_jpeg() -> tf.Tensor:
        # A JPEG is decoded at half, a quarter or an eighth of its size in a fraction of the time,
        # each pixel the mean of those that it stands for.
        spare = tf.reduce_min(tf.io.extract_jpeg_shape(encoded)[:2]) // size
        return tf.switch_case(
            tf.reduce_sum(tf.cast(spare >= _RATIOS[1:], tf.int32)),
            [functools.partial(tf.io.decode_jpeg, encoded, 3, ratio) for ratio in _RATIOS],
        )

    def decode_other() -> tf.Tensor:
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    image = tf.cond(tf.io.is_jpeg(encoded), decode_jpeg, decode_other)
    image.set_shape((None, None, 3))
    return image


def _fit(image: tf.Tensor, config: ImageConfig) -> tf.Tensor:
    size = config.size
    if config.fit == "pad":
        return tf.image.resize_with_pad(image, size, size, antialias=True)
    if config.fit == "crop":
        height, width = tf.unstack(tf.shape(image)[:2])
        side = tf.minimum(height, width)
        image = tf.image.crop_to_bounding_box(
            image, (height - side) // 2, (width - side) // 2, side, side
        )
    # Antialiasing doubles the time and changes nothing where there is little to shrink.
    return tf.cond(
        tf.reduce_max(tf.shape(image)[:2]) > int(_LITTLE * size),
        lambda: tf.image.resize(image, (size, size), antialias=True),
        lambda: tf.image.resize(image, (size, size)),
    )


def _turn_upright(images: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undoes EXIF orientations 2 to 8, on the squares, which are smaller than the images."""

    def turn() -> tf.Tensor:
        transposed, mirrored, flipped = (
            tf.reduce_any(orientation[:, None] == values, axis=1)[:, None, None, None]
            for values in ([5, 6, 7, 8], [2, 3, 6, 7], [3, 4, 7, 8])
        )
        turned = tf.where(transposed, tf.transpose(images, (0, 2, 1, 3)), images)
        turned = tf.where(mirrored, tf.reverse(turned, [2]), turned)
        return tf.where(flipped, tf.reverse(turned, [1]), turned)

    return tf.cond(tf.reduce_any(orientation > 1), turn, lambda: images)


def _index(label: tf.Tensor, classes: Sequence[str]) -> tf.Tensor:
    same = label[:, None] == tf.constant(list(classes))
    return tf.where(tf.reduce_any(same, axis=1), tf.argmax(same, axis=1), -1)
