"""Looks at one image: header, limits, full decode, small numbers for statistics, fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator

import imagehash
import msgspec
import numpy as np
import tensorflow as tf
from PIL import Image

from graftline.components.ingest.likeness import THUMBNAIL
from graftline.serving.image_check import Header, Limits, UnusableImage, check_header

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What imagehash.phash makes its hash from.
_HASHED = 32
_LEVELS = np.arange(256, dtype=np.float64)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an image that can be used.

    Attributes:
        id: SHA-256 of the encoded bytes, hexadecimal.
        format: of the encoded bytes.
        width: in pixels, upright.
        height: in pixels, upright.
        channels: as stored.
        byte_size: of the encoded image.
        luma_mean: mean luma (ITU-R 601) of the decoded image, 0 to 255.
        luma_std: its standard deviation.
        hash: 64-bit perceptual hash of the upright image (imagehash.phash).
        thumbnail: luma at THUMBNAIL by THUMBNAIL, one byte each, row by row.
    """

    id: str
    format: str
    width: int
    height: int
    channels: int
    byte_size: int
    luma_mean: float
    luma_std: float
    hash: int
    thumbnail: bytes


class PixelBudget:
    """Lets several threads decode as long as their images have at most so many pixels together."""

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def spend(self, pixels: int) -> Iterator[None]:
        """Waits until an image of this size may be decoded; none is larger than the budget."""
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._free)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


def examine(data: bytes, limits: Limits, budget: PixelBudget) -> Finding:
    """Examines an encoded image with the decoder that training and serving use.

    Args:
        data: the encoded image.
        limits: what it may be.
        budget: of at least `limits.max_pixels`, shared by all threads.

    Raises:
        UnusableImage: with the reason.
    """
    header = check_header(data, limits)
    with budget.spend(header.pixels):
        luma = _decode_luma(data, header)
        counts = np.asarray(luma.histogram(), np.float64)
        hashed, thumbnail = _shrink(luma, _HASHED), _shrink(luma, THUMBNAIL)
    mean = float(counts @ _LEVELS / counts.sum())
    variance = float(counts @ (_LEVELS - mean) ** 2 / counts.sum())
    if header.orientation in _UPRIGHT:
        hashed = hashed.transpose(_UPRIGHT[header.orientation])
        thumbnail = thumbnail.transpose(_UPRIGHT[header.orientation])
    return Finding(
        id=hashlib.sha256(data).hexdigest(),
        format=header.format,
        width=header.width,
        height=header.height,
        channels=header.channels,
        byte_size=len(data),
        luma_mean=mean,
        luma_std=variance**0.5,
        hash=int.from_bytes(np.packbits(imagehash.phash(hashed).hash).tobytes(), "big"),
        thumbnail=thumbnail.tobytes(),
    )


def in_words(error: tf.errors.OpError) -> str:
    """TensorFlow's message without the graph around it."""
    return re.sub(r"^\{\{.*?\}\} | \[Op:.*", "", error.message, flags=re.DOTALL).strip()


def _decode_luma(data: bytes, header: Header) -> Image.Image:
    try:
        pixels = tf.io.decode_image(data, channels=3, expand_animations=False)
    except tf.errors.OpError as error:
        if header.format == "WEBP" and "Unknown image file format" in error.message:
            raise UnusableImage(
                "unsupported-format", f"TensorFlow {tf.__version__} does not decode WebP"
            ) from None
        raise UnusableImage("broken-pixels", in_words(error)) from None
    # The tensor's own memory; numpy() would copy it.
    return Image.fromarray(np.asarray(memoryview(pixels))).convert("L")


def _shrink(luma: Image.Image, side: int) -> Image.Image:
    return luma.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)
