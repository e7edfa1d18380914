"""Light checks of encoded images, before any pixel is decoded: shared by drops and the gateway.

A few bytes can claim, or unpack to, gigabytes. What an image would cost is read from its header,
and the format from its content: a name proves nothing. Only Pillow and the standard library are
needed, no TensorFlow.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

# The formats that TensorFlow's decode_image knows; WebP from 2.21 on.
DECODABLE = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
_ORIENTATION_TAG = 0x0112


class ImageLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an image may be at most and must be at least, read from its header."""

    max_bytes: Annotated[
        int, Meta(ge=1, description="Largest file in bytes; a larger one is not read.")
    ] = 50_000_000
    max_pixels: Annotated[
        int,
        Meta(
            ge=1,
            description="Most pixels, all frames of an animation together. Decoding takes 3 to 9 "
            "bytes of memory for each.",
        ),
    ] = 32_000_000
    min_side: Annotated[
        int, Meta(ge=1, description="Least width and height in pixels; below, nothing is seen.")
    ] = 8
    max_aspect: Annotated[
        float, Meta(ge=1, description="Largest ratio of the longer side to the shorter.")
    ] = 20.0


class ImageHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What the header of an image says.

    Attributes:
        format: one of DECODABLE.
        width: pixels as stored.
        height: pixels as stored.
        channels: 1 grey, 2 grey and alpha, 3 colours or a palette, 4 with alpha or CMYK.
        pixels: what is decoded at most, over all frames.
        orientation: EXIF's, 1 to 8; 1 where there is none.
    """

    format: str
    width: int
    height: int
    channels: int
    pixels: int
    orientation: int = 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height once the EXIF orientation is applied."""
        if self.orientation >= 5:
            return self.height, self.width
        return self.width, self.height


class BadImage(Exception):
    """An image that cannot be used.

    Attributes:
        reason: one of a few names, in words joined by hyphens.
        detail: what was found in this image, in words.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_image(content: bytes, limits: ImageLimits) -> ImageHeader:
    """Reads the header of an encoded image and holds it against the limits.

    Args:
        content: the whole encoded image.
        limits: what is allowed.

    Raises:
        BadImage: it is no image, of a format that cannot be decoded, damaged in its header, or
            beyond a limit.
    """
    check_size(len(content), limits)
    name = identify(content)
    if name is None:
        raise BadImage("not-an-image", f"the content starts with {content[:8]!r}")
    if name not in _READERS:
        raise BadImage("unsupported-format", f"{name}; supported are {', '.join(DECODABLE)}")
    try:
        header = _READERS[name](content)
    except (struct.error, IndexError) as error:
        raise BadImage("damaged", f"the {name} header is cut short") from error
    # Pillow raises all of these for malformed headers; ValueError for text that unpacks to too
    # much, which is an attack rather than damage.
    except ValueError as error:
        raise BadImage("bomb", f"{name}: {error}") from error
    except (SyntaxError, OSError, KeyError, TypeError, EOFError, OverflowError) as error:
        raise BadImage("damaged", f"the {name} header: {error}") from error
    _check_dimensions(header, limits)
    return header


def check_size(size: int, limits: ImageLimits) -> None:
    """Holds the size of an encoded image, in bytes, against the limits.

    Raises:
        BadImage: it is empty or too large.
    """
    if size == 0:
        raise BadImage("empty", "0 bytes")
    if size > limits.max_bytes:
        raise BadImage("too-large", f"{size:,} bytes; max_bytes is {limits.max_bytes:,}")


def identify(content: bytes) -> str | None:
    """Name of the image format that the first bytes tell, None where they tell none."""
    head = content[:16]
    for start, name in _SIGNATURES:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "AVIF" if brand in (b"avif", b"avis") else "HEIC or a video"
    return None


_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\1\0", "ICO"),
    (b"%PDF", "PDF"),
)


def _check_dimensions(header: ImageHeader, limits: ImageLimits) -> None:
    width, height = header.width, header.height
    if min(width, height) < 1:
        raise BadImage("damaged", f"the header claims {width}x{height} pixels")
    if header.pixels > limits.max_pixels:
        raise BadImage(
            "too-many-pixels",
            f"the header claims {width}x{height}, {header.pixels:,} pixels in all; max_pixels is "
            f"{limits.max_pixels:,}",
        )
    if min(width, height) < limits.min_side:
        raise BadImage("too-small", f"{width}x{height} pixels; min_side is {limits.min_side}")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise BadImage("too-long", f"{width}x{height} pixels; max_aspect is {limits.max_aspect:g}")


def _jpeg(content: bytes) -> ImageHeader:
    from PIL.JpegImagePlugin import JpegImageFile

    # The plugin itself rather than Image.open, which tells no reason when it refuses.
    with JpegImageFile(io.BytesIO(content)) as image:
        width, height = image.size
        try:
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        except (SyntaxError, ValueError, OSError, KeyError, TypeError, struct.error):
            orientation = 1
        return ImageHeader(
            format="JPEG",
            width=width,
            height=height,
            channels=len(image.getbands()),
            pixels=width * height,
            orientation=orientation if orientation in range(1, 9) else 1,
        )


def _png(content: bytes) -> ImageHeader:
    from PIL.PngImagePlugin import PngImageFile

    # Reads every chunk before the pixels, and refuses text that unpacks to more than 1 MB.
    with PngImageFile(io.BytesIO(content)) as image:
        width, height = image.size
    colour_type = content[25]
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour_type, 3)
    return ImageHeader(
        format="PNG", width=width, height=height, channels=channels, pixels=width * height
    )


def _bmp(content: bytes) -> ImageHeader:
    (size,) = struct.unpack_from("<I", content, 14)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", content, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", content, 18)
    # A negative height means rows from top to bottom; a negative width means nothing.
    height = abs(height)
    channels = {32: 4, 24: 3}.get(bits, 3)
    return ImageHeader(
        format="BMP", width=width, height=height, channels=channels, pixels=max(width, 0) * height
    )


def _gif(content: bytes) -> ImageHeader:
    """Adds up all frames: the decoder unpacks each of them, whatever the canvas claims."""
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    position = 13 + _palette_size(flags)
    pixels = 0
    while content[position] != 0x3B:
        if content[position] == 0x2C:
            frame_width, frame_height, flags = struct.unpack_from("<HHB", content, position + 5)
            pixels += frame_width * frame_height
            position += 11 + _palette_size(flags)
        elif content[position] == 0x21:
            position += 2
        else:
            raise SyntaxError(f"unknown block {content[position]:#04x} at byte {position}")
        while content[position]:
            position += content[position] + 1
        position += 1
        if position >= len(content):
            # Cut short or without a trailer: how much of it can be read is for the decoder to say.
            break
    return ImageHeader(
        format="GIF", width=width, height=height, channels=3, pixels=max(pixels, width * height)
    )


def _palette_size(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(content: bytes) -> ImageHeader:
    """After RFC 9649; Pillow would allocate the whole canvas."""
    kind = content[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(content[24:27], "little")
        height = 1 + int.from_bytes(content[27:30], "little")
        channels = 4 if content[20] & 0x10 else 3
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        channels = 4 if bits >> 28 & 1 else 3
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", content, 26))
        channels = 3
    else:
        raise SyntaxError(f"unknown chunk {kind!r}")
    return ImageHeader(
        format="WEBP", width=width, height=height, channels=channels, pixels=width * height
    )


_READERS: dict[str, Callable[[bytes], ImageHeader]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "BMP": _bmp,
    "WEBP": _webp,
}
