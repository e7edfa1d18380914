"""Looks at one image: header, limits, full decode, small numbers for statistics, fingerprint."""

from __future__ import annotations

import hashlib

import imagehash
import msgspec
import numpy as np
import tensorflow as tf
from PIL import Image

from graftline.serving.image_check import Limits, UnusableImage, check_header

# Side of the thumbnail with which a likely duplicate is confirmed.
THUMBNAIL = 24

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an image that can be used.

    Attributes:
        id: SHA-256 of the encoded bytes, hexadecimal.
        width: in pixels, upright.
        height: in pixels, upright.
        channels: as stored.
        byte_size: of the encoded image.
        luma_mean: mean luma (ITU-R 601) of the decoded image, 0 to 255.
        luma_std: its standard deviation.
        hash: 64-bit perceptual hash of the upright image.
        thumbnail: luma at THUMBNAIL by THUMBNAIL, one byte each, row by row.
    """

    id: str
    width: int
    height: int
    channels: int
    byte_size: int
    luma_mean: float
    luma_std: float
    hash: int
    thumbnail: bytes


def examine(data: bytes, limits: Limits) -> Finding:
    """Examines an encoded image with the decoder that training and serving use.

    Raises:
        UnusableImage: with the reason.
    """
    header = check_header(data, limits)
    try:
        pixels = tf.io.decode_image(data, channels=3, expand_animations=False).numpy()
    except tf.errors.OpError as error:
        if header.format == "WEBP":
            raise UnusableImage(
                "unsupported-format", f"TensorFlow {tf.__version__} does not decode WebP"
            ) from None
        raise UnusableImage("broken-pixels", error.message.split(" [Op:")[0]) from None
    luma = Image.fromarray(pixels).convert("L")
    values = np.asarray(luma)
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    # The fingerprint is of the upright image; shrunk first, for turning costs the same at any size.
    luma.thumbnail((256, 256), Image.Resampling.BOX)
    if header.orientation in _UPRIGHT:
        luma = luma.transpose(_UPRIGHT[header.orientation])
    thumbnail = luma.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return Finding(
        id=hashlib.sha256(data).hexdigest(),
        width=header.width,
        height=header.height,
        channels=header.channels,
        byte_size=len(data),
        luma_mean=mean,
        luma_std=std,
        hash=int(str(imagehash.phash(luma)), 16),
        thumbnail=thumbnail.tobytes(),
    )
