"""Light checks of an encoded image: what its header says, before any pixel is decoded.

Shared by whatever takes images in. A 48 kB file can claim 400 megapixels; the decoder would
allocate them.
"""

from __future__ import annotations

import io
from typing import Any

import msgspec
from PIL import ExifTags, Image

# The limits are ours, see `Limits`; Pillow's own would only warn up to twice its bound.
Image.MAX_IMAGE_PIXELS = None

# Multi-picture files of cameras are JPEGs whose first picture every decoder reads.
_DECODABLE = {"JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP"}
_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "F": 1, "LA": 2, "P": 3, "RGB": 3}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an image may be.

    Attributes:
        max_bytes: size of the file.
        max_pixels: width times height.
        min_side: shorter side in pixels.
        max_aspect: longer side by shorter side.
    """

    max_bytes: int
    max_pixels: int
    min_side: int
    max_aspect: float


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the header says.

    Attributes:
        format: JPEG, PNG, GIF, BMP or WEBP, by content.
        width: in pixels, after the EXIF orientation is applied.
        height: in pixels, likewise.
        channels: 1 to 4, as stored.
        orientation: EXIF orientation, 1 to 8.
    """

    format: str
    width: int
    height: int
    channels: int
    orientation: int


class UnusableImage(Exception):
    """The image cannot be used.

    Attributes:
        reason: one of a few short names, for tables and folders.
        detail: in words, with the figures.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_header(data: bytes, limits: Limits) -> Header:
    """Reads the header of an encoded image and holds it against the limits.

    Raises:
        UnusableImage: it is no image, of a format that is not decoded, or outside the limits.
    """
    if not data:
        raise UnusableImage("empty-file", "the file has no content")
    if len(data) > limits.max_bytes:
        raise UnusableImage("too-many-bytes", f"{len(data)} bytes, at most {limits.max_bytes}")
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format or "unknown"
            width, height = image.size
            channels = _CHANNELS.get(image.mode, 4)
            if kind not in _DECODABLE:
                raise UnusableImage("unsupported-format", f"{kind} is not decoded")
            _check_size(width, height, limits)
            orientation = _orientation(image)
    except UnusableImage:
        raise
    except Image.UnidentifiedImageError:
        raise UnusableImage("not-an-image", _what_it_is(data)) from None
    except Exception as error:
        # Pillow's parsers raise whatever a malformed header leads them to.
        raise UnusableImage("broken-header", f"{type(error).__name__}: {error}") from error
    if orientation >= 5:
        width, height = height, width
    return Header(
        format="JPEG" if kind == "MPO" else kind,
        width=width,
        height=height,
        channels=channels,
        orientation=orientation,
    )


def _check_size(width: int, height: int, limits: Limits) -> None:
    size = f"{width}x{height} pixels"
    if min(width, height) < 1:
        raise UnusableImage("broken-header", f"{size} cannot be")
    if width * height > limits.max_pixels:
        raise UnusableImage("too-many-pixels", f"{size}, at most {limits.max_pixels} in all")
    if min(width, height) < limits.min_side:
        raise UnusableImage("too-small", f"{size}, at least {limits.min_side} on each side")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise UnusableImage("too-elongated", f"{size}, at most {limits.max_aspect:g} to 1")


def _orientation(image: Any) -> int:
    """EXIF orientation; upright where the EXIF block is missing or malformed."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001  # malformed EXIF: the image itself may be fine
        return 1
    return value if value in range(1, 9) else 1


def _what_it_is(data: bytes) -> str:
    try:
        text = data[:40].decode("ascii")
    except UnicodeDecodeError:
        return f"no image format begins with the bytes {data[:8].hex(' ')}"
    return f"no image format begins with {text!r}"
