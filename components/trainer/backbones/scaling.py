"""How pixels become what a network was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Scaling:
    """How pixels of 0 to 255 become the backbone's input: (pixel - mean) / deviation.

    Attributes:
        mean: per channel, in the order in which the backbone takes them.
        deviation: per channel, likewise.
        bgr: whether the backbone takes blue first.
    """

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    bgr: bool = False


# From -1 to 1.
PLAIN = Scaling(mean=(127.5, 127.5, 127.5), deviation=(127.5, 127.5, 127.5))
# Mean and deviation of ImageNet's photographs.
IMAGENET = Scaling(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), deviation=(0.229 * 255, 0.224 * 255, 0.225 * 255)
)
# As the first ResNets were trained, in Caffe.
CAFFE = Scaling(mean=(103.939, 116.779, 123.68), deviation=(1.0, 1.0, 1.0), bgr=True)


def scale(pixels: tf.Tensor, scaling: Scaling) -> tf.Tensor:
    """Pixels of 0 to 255, float32 (B, height, width, 3), RGB, as the backbone takes them."""
    import tensorflow as tf

    if scaling.bgr:
        pixels = tf.reverse(pixels, [3])
    mean, deviation = _rows(scaling, pixels.shape[2])
    return (pixels - mean) / deviation


def unscale(images: tf.Tensor, scaling: Scaling) -> tf.Tensor:
    """The pixels that `scale` was given."""
    import tensorflow as tf

    mean, deviation = _rows(scaling, images.shape[2])
    pixels = images * deviation + mean
    return tf.reverse(pixels, [3]) if scaling.bgr else pixels


def _rows(scaling: Scaling, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Constants as long as a row: broadcasting over three channels alone is ten times slower."""
    import tensorflow as tf

    mean, deviation = (
        tf.tile(tf.constant([channels]), (width, 1))
        for channels in (scaling.mean, scaling.deviation)
    )
    return mean, deviation
