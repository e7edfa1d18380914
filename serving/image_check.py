"""Light checks of an encoded image: what its header says, before any pixel is decoded.

Shared by whatever takes images in. A few bytes can claim, or unpack to, gigabytes, and a name
proves nothing: the format is told by the content, and what decoding would cost by the header. Needs
Pillow and the standard library, no TensorFlow.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import msgspec

# What TensorFlow's decode_image reads; WebP from 2.21 on.
DECODABLE = ("JPEG", "PNG", "GIF", "BMP", "WEBP")

_ORIENTATION = 0x0112
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
_BMP_PLAIN, _BMP_MASKS = 0, 3
_GIF_END, _GIF_FRAME, _GIF_EXTENSION = 0x3B, 0x2C, 0x21
# A real header takes some dozen reads, in a JPEG with a colour profile in pieces some hundred; a
# part of a PNG may unpack to a megabyte.
_JPEG_READS, _PNG_READS = 4_000, 1_000
# Blocks of a GIF: so many, and one more for so many bytes; encoders fill a block with 255.
_MOST_BLOCKS, _BYTES_PER_BLOCK = 10_000, 32


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an image may be.

    Attributes:
        max_bytes: size of the file.
        max_pixels: width times height, all frames of an animation together.
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
        format: one of DECODABLE, by content.
        width: in pixels, after the EXIF orientation is applied.
        height: in pixels, likewise.
        channels: 1 to 4, as stored; a palette counts as 3.
        pixels: what a decoder unpacks at most, over all frames.
        orientation: EXIF orientation, 1 to 8; only of JPEG, as the preprocessing reads it.
    """

    format: str
    width: int
    height: int
    channels: int
    pixels: int
    orientation: int = 1


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

    Args:
        data: the whole encoded image.
        limits: what is allowed.

    Raises:
        UnusableImage: it is no image, of a format that is not decoded, damaged in its header, or
            outside the limits.
    """
    check_size(len(data), limits)
    kind = identify(data)
    if kind is None:
        raise UnusableImage("not-an-image", _what_it_is(data))
    if kind not in _READERS:
        raise UnusableImage(
            "unsupported-format", f"{kind} is not decoded, only {', '.join(DECODABLE)}"
        )
    try:
        header = _READERS[kind](data)
    except UnusableImage:
        raise
    except (struct.error, IndexError):
        raise UnusableImage("broken-header", f"the {kind} is cut short") from None
    except Exception as error:
        # Pillow's parsers raise whatever a malformed header leads them to; of text in a PNG that
        # unpacks to more than any text would, they name the limit.
        reason = "bomb" if "MAX_TEXT" in str(error) else "broken-header"
        raise UnusableImage(reason, f"{kind}: {error or type(error).__name__}") from error
    _check_dimensions(header, limits)
    return header


def check_size(size: int, limits: Limits) -> None:
    """Holds the size of an encoded image, in bytes, against the limits.

    Raises:
        UnusableImage: it is empty or too large.
    """
    if size == 0:
        raise UnusableImage("empty-file", "the file has no content")
    if size > limits.max_bytes:
        raise UnusableImage("too-many-bytes", f"{size:,} bytes, at most {limits.max_bytes:,}")


def identify(data: bytes) -> str | None:
    """The image format that the first bytes tell, None where they tell none."""
    for start, kind in _SIGNATURES:
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return "AVIF" if data[8:12] in (b"avif", b"avis") else "HEIC or a video"
    return None


def _check_dimensions(header: Header, limits: Limits) -> None:
    width, height = header.width, header.height
    size = f"{width}x{height} pixels"
    if min(width, height) < 1:
        raise UnusableImage("broken-header", f"it claims {size}")
    if header.pixels > limits.max_pixels:
        raise UnusableImage(
            "too-many-pixels",
            f"it claims {size}, {header.pixels:,} in all, at most {limits.max_pixels:,}",
        )
    if min(width, height) < limits.min_side:
        raise UnusableImage("too-small", f"{size}, at least {limits.min_side} on each side")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise UnusableImage("too-elongated", f"{size}, at most {limits.max_aspect:g} to 1")


def _what_it_is(data: bytes) -> str:
    start = data[:32].decode("ascii", errors="replace").strip()
    shown = repr(start) if start.isprintable() and start.isascii() else data[:8].hex(" ")
    return f"no image format begins with {shown}"


class _Bounded(io.BytesIO):
    """Ends the reading of a header of millions of tiny parts, which would take many seconds."""

    def __init__(self, data: bytes, reads: int) -> None:
        super().__init__(data)
        self._left = reads

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise UnusableImage("bomb", "its header has more parts than any image needs")
        return super().read(size)


def _jpeg(data: bytes) -> Header:
    from PIL.JpegImagePlugin import JpegImageFile

    # The plugin itself rather than Image.open, which keeps the reason of a refusal to itself.
    with JpegImageFile(_Bounded(data, _JPEG_READS)) as image:
        width, height = image.size
        try:
            orientation = image.getexif().get(_ORIENTATION, 1)
        except Exception:  # Malformed EXIF: the image itself may be fine.
            orientation = 1
        channels = len(image.getbands())
    if orientation not in range(1, 9):
        orientation = 1
    pixels = width * height
    if orientation >= 5:
        width, height = height, width
    return Header(
        format="JPEG",
        width=width,
        height=height,
        channels=channels,
        pixels=pixels,
        orientation=orientation,
    )


def _png(data: bytes) -> Header:
    from PIL.PngImagePlugin import PngImageFile

    with PngImageFile(_Bounded(data, _PNG_READS)) as image:
        width, height = image.size
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}[data[25]]
    return Header(
        format="PNG", width=width, height=height, channels=channels, pixels=width * height
    )


def _bmp(data: bytes) -> Header:
    """Knows what TensorFlow makes of a BMP: eight bits are grey, whatever the palette says."""
    (size,) = struct.unpack_from("<I", data, 14)
    width, height, _, bits = struct.unpack_from("<HHHH" if size == 12 else "<iiHH", data, 18)
    # A negative height stands for rows from top to bottom; a negative width for nothing.
    height = abs(height)
    (compression,) = struct.unpack_from("<I", data, 30) if size >= 40 else (0,)
    if bits not in (8, 24, 32) or compression not in (_BMP_PLAIN, _BMP_MASKS):
        raise UnusableImage(
            "unsupported-format",
            f"BMP of {bits} bits per pixel, compression {compression}; only plain ones of 8, 24 "
            "and 32 bits are decoded",
        )
    palette = data[14 + size : 14 + size + 1024]
    if bits == 8 and any(palette[i : i + 3] != bytes([i // 4] * 3) for i in range(0, 1024, 4)):
        raise UnusableImage("unsupported-format", "BMP with a palette of other than 256 greys")
    return Header(
        format="BMP",
        width=width,
        height=height,
        channels=bits // 8,
        pixels=max(width, 0) * height,
    )


def _gif(data: bytes) -> Header:
    """Walks over the blocks: the decoder unpacks every frame, whatever the canvas claims."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + _palette_size(flags)
    pixels = width * height
    frames = 0
    blocks = _MOST_BLOCKS + len(data) // _BYTES_PER_BLOCK
    while position < len(data) and data[position] != _GIF_END:
        if data[position] == _GIF_FRAME:
            frame_width, frame_height, flags = struct.unpack_from("<HHB", data, position + 5)
            frames += frame_width * frame_height
            position += 11 + _palette_size(flags)
        elif data[position] == _GIF_EXTENSION:
            position += 2
        else:
            raise SyntaxError(f"unknown block {data[position]:#04x} at byte {position}")
        # A file that is cut short ends the walk; what can be read of it the decoder has to say.
        while position < len(data) and data[position] and blocks > 0:
            position += data[position] + 1
            blocks -= 1
        position += 1
        blocks -= 1
        if blocks < 0:
            raise UnusableImage("bomb", f"it has too many blocks for its {len(data):,} bytes")
    return Header(format="GIF", width=width, height=height, channels=3, pixels=max(pixels, frames))


def _palette_size(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(data: bytes) -> Header:
    """After RFC 9649; Pillow would allocate the canvas before it told its size."""
    kind = data[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        alpha = bool(data[20] & 0x10)
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        alpha = bool(bits >> 28 & 1)
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        alpha = False
    else:
        raise SyntaxError(f"unknown chunk {kind!r}")
    return Header(
        format="WEBP",
        width=width,
        height=height,
        channels=4 if alpha else 3,
        pixels=width * height,
    )


_READERS: dict[str, Callable[[bytes], Header]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "BMP": _bmp,
    "WEBP": _webp,
}
