"""Small networks that start at random: for small images, and to see what pretraining is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tf_keras

_STAGES = ((16, 1), (32, 2), (64, 2))  # channels and stride
_BLOCKS_PER_STAGE = 3
_REDUCTION = 8


def lenet5(size: int) -> tf_keras.Model:
    """LeNet-5 (LeCun et al., Gradient-based learning applied to document recognition, 1998).

    In today's form, with rectifiers and maximum pooling, and without its last layer, which the head
    is.

    Args:
        size: width and height of its input in pixels.

    Returns:
        A Keras model from images (B, size, size, 3) to features (B, 84).
    """
    import tf_keras
    from tf_keras import layers

    image = tf_keras.Input((size, size, 3), name="image")
    x = layers.Conv2D(6, 5, padding="same", activation="relu", name="block1_conv")(image)
    x = layers.MaxPooling2D(2, name="block1_pool")(x)
    x = layers.Conv2D(16, 5, activation="relu", name="block2_conv")(x)
    x = layers.MaxPooling2D(2, name="block2_pool")(x)
    x = layers.Flatten(name="block3_flatten")(x)
    x = layers.Dense(120, activation="relu", name="block3_dense")(x)
    x = layers.Dense(84, activation="relu", name="block4_dense")(x)
    return tf_keras.Model(image, x, name="lenet5")


def residual(size: int) -> tf_keras.Model:
    """A residual network of 20 layers (He et al., 2015, arXiv:1512.03385, section 4.2).

    Args:
        size: width and height of its input in pixels.

    Returns:
        A Keras model from images (B, size, size, 3) to feature maps (B, size / 4, size / 4, 64).
    """
    return _residual(size, attention=False)


def residual_cbam(size: int) -> tf_keras.Model:
    """The same with attention to channels and places in every block.

    CBAM: Woo et al., 2018, arXiv:1807.06521.

    Args:
        size: width and height of its input in pixels.

    Returns:
        A Keras model from images (B, size, size, 3) to feature maps (B, size / 4, size / 4, 64).
    """
    return _residual(size, attention=True)


def _residual(size: int, attention: bool) -> tf_keras.Model:
    import tf_keras

    image = tf_keras.Input((size, size, 3), name="image")
    x = _normalised(image, _STAGES[0][0], 1, "block0_stem")
    number = 0
    for channels, first_stride in _STAGES:
        for repeat in range(_BLOCKS_PER_STAGE):
            number += 1
            stride = first_stride if repeat == 0 else 1
            x = _residual_block(x, channels, stride, f"block{number}", attention)
    name = "residual_cbam" if attention else "residual"
    return tf_keras.Model(image, x, name=name)


def _residual_block(x: Any, channels: int, stride: int, name: str, attention: bool) -> Any:
    from tf_keras import layers

    y = _normalised(x, channels, stride, f"{name}_a")
    y = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"{name}_b_conv")(y)
    y = layers.BatchNormalization(name=f"{name}_b_bn")(y)
    if attention:
        y = _spatial_attention(_channel_attention(y, name), name)
    if stride > 1 or x.shape[-1] != channels:
        x = layers.Conv2D(channels, 1, stride, use_bias=False, name=f"{name}_shortcut_conv")(x)
        x = layers.BatchNormalization(name=f"{name}_shortcut_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))


def _normalised(x: Any, channels: int, stride: int, name: str) -> Any:
    from tf_keras import layers

    x = layers.Conv2D(channels, 3, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _channel_attention(x: Any, name: str) -> Any:
    """Weighs channels by a small shared network on their means and their maxima."""
    from tf_keras import layers

    channels = x.shape[-1]
    hidden = layers.Dense(
        max(channels // _REDUCTION, 4), activation="relu", name=f"{name}_channel_hidden"
    )
    output = layers.Dense(channels, name=f"{name}_channel_output")
    mean = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_channel_mean")(x)
    largest = layers.GlobalMaxPooling2D(keepdims=True, name=f"{name}_channel_max")(x)
    summed = layers.Add(name=f"{name}_channel_sum")([output(hidden(mean)), output(hidden(largest))])
    weights = layers.Activation("sigmoid", name=f"{name}_channel_weights")(summed)
    return layers.Multiply(name=f"{name}_channel")([x, weights])


def _spatial_attention(x: Any, name: str) -> Any:
    """Weighs places by a convolution over the means and maxima of their channels."""
    import tensorflow as tf
    from tf_keras import layers

    described = layers.Concatenate(name=f"{name}_spatial_described")(
        [tf.reduce_mean(x, -1, keepdims=True), tf.reduce_max(x, -1, keepdims=True)]
    )
    weights = layers.Conv2D(
        1, 7, padding="same", activation="sigmoid", use_bias=False, name=f"{name}_spatial_weights"
    )(described)
    return layers.Multiply(name=f"{name}_spatial")([x, weights])
