"""What an image may be: formats by content, limits by header, and every broken file by its name."""

import csv
import io
import struct
import zlib

import msgspec
import numpy as np
import pytest
import tensorflow as tf
from drops import pattern
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from graftline.components.ingest import likeness
from graftline.components.ingest.config import DropConfig
from graftline.components.ingest.examine import PixelBudget, examine
from graftline.serving.image_check import Limits, UnusableImage, check_header

LIMITS = msgspec.convert(DropConfig(), Limits, from_attributes=True)
# Also for the files that are only small or long.
LENIENT = msgspec.structs.replace(LIMITS, min_side=1, max_aspect=1e9)


def webp(side: int) -> object:
    """What becomes of a WebP: TensorFlow decodes it from 2.21 on."""
    decodes = tuple(map(int, tf.__version__.split(".")[:2])) >= (2, 21)
    return ("WEBP", side, side, 3) if decodes else "unsupported-format"


# A reason, or format, width, height and channels.
FILES = {
    "bombs/black_20000x20000_1bit.png": "too-many-pixels",
    "bombs/decompression_bomb.gif": "too-many-pixels",
    "bombs/header_65500x65500.jpg": "too-many-pixels",
    "bombs/png_decompression_dos.png": "bomb",
    "broken/background_outside_palette.gif": ("GIF", 1, 1, 3),
    "broken/badwidth.bmp": "unsupported-format",
    "broken/broken.png": "broken-header",
    "broken/broken_data_stream.png": "broken-pixels",
    "broken/flipped_bytes.jpg": ("JPEG", 128, 128, 3),
    "broken/half.jpg": "broken-pixels",
    "broken/hopper_bad_exif.jpg": ("JPEG", 500, 500, 1),
    "broken/hopper_idat_after_image_end.png": ("PNG", 128, 128, 3),
    "broken/invalid-exif.jpg": ("JPEG", 200, 200, 3),
    "broken/no_palette.gif": "broken-pixels",
    "broken/reallybig.bmp": "too-many-pixels",
    "broken/shortfile.bmp": "unsupported-format",
    "broken/truncated_app14.jpg": ("JPEG", 100, 100, 3),
    "broken/truncated_end_chunk.png": "broken-pixels",
    "broken/unknown_compression_method.png": "broken-header",
    "not_images/.DS_Store": "not-an-image",
    "not_images/notes.txt": "not-an-image",
    "odd_valid/anim_frame1.webp": webp(82),
    "odd_valid/bw_gradient.png": ("PNG", 256, 10, 1),
    "odd_valid/gray16.png": ("PNG", 128, 128, 1),
    "odd_valid/gray_alpha.png": ("PNG", 128, 128, 2),
    "odd_valid/hopper.gif": ("GIF", 128, 128, 3),
    "odd_valid/hopper.webp": webp(128),
    "odd_valid/hopper_16bit_qtables.jpg": ("JPEG", 128, 128, 3),
    "odd_valid/hopper_gray.jpg": ("JPEG", 128, 128, 1),
    "odd_valid/hopper_orientation_3.jpg": ("JPEG", 128, 128, 3),
    "odd_valid/hopper_orientation_6.jpg": ("JPEG", 128, 128, 3),
    "odd_valid/icc_profile_big.jpg": ("JPEG", 425, 250, 3),
    "odd_valid/l_trns.png": ("PNG", 64, 64, 1),
    "odd_valid/mode_16bit.png": ("PNG", 128, 64, 4),
    "odd_valid/one_bit.png": ("PNG", 128, 128, 1),
    "odd_valid/one_pixel.jpg": ("JPEG", 1, 1, 3),
    "odd_valid/p_16.png": ("PNG", 128, 128, 4),
    "odd_valid/pil_sample_cmyk.jpg": ("JPEG", 100, 100, 4),
    "odd_valid/tRNS_null_1x1.png": ("PNG", 1, 1, 3),
    "odd_valid/trailing_garbage.jpg": ("JPEG", 128, 128, 3),
    "odd_valid/transparent.png": ("PNG", 200, 150, 4),
    "odd_valid/webp_named.jpg": webp(128),
}


def look(data: bytes, limits: Limits = LENIENT) -> object:
    """What becomes of an image: a reason, or its format, width, height and channels."""
    try:
        found = examine(data, limits, PixelBudget(limits.max_pixels))
    except UnusableImage as unusable:
        assert unusable.detail
        return unusable.reason
    return found.format, found.width, found.height, found.channels


def encoded(kind: str, size: tuple[int, int], mode: str = "L", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(("name", "expected"), FILES.items())
def test_a_broken_or_odd_file_is_named_or_read_right(shared_data, name, expected):
    assert look((shared_data / "bad_images" / name).read_bytes()) == expected


def test_no_file_of_the_collection_is_left_out(shared_data):
    with (shared_data / "bad_images" / "manifest.csv").open() as stream:
        assert {row["file"] for row in csv.DictReader(stream)} == set(FILES)


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "empty-file", "no content"),
        (b"x" * 70_000_001, "too-many-bytes", "70,000,001 bytes"),
        (b"label notes", "not-an-image", "begins with 'label notes'"),
        (b"II*\0" + bytes(20), "unsupported-format", "TIFF is not decoded"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "unsupported-format", "HEIC"),
        (encoded("PNG", (7, 100)), "too-small", "7x100 pixels, at least 8"),
        (encoded("PNG", (8, 161)), "too-elongated", "8x161 pixels, at most 20 to 1"),
        (encoded("PNG", (6000, 6000), "1"), "too-many-pixels", "36,000,000 in all"),
        (encoded("PNG", (20, 20))[:20], "broken-header", "PNG"),
        (encoded("BMP", (20, 20))[:20], "broken-header", "cut short"),
        (encoded("GIF", (20, 20))[:8], "broken-header", "cut short"),
    ],
    ids=lambda value: value if isinstance(value, str) and "-" in value else "",
)
def test_what_cannot_be_used_is_told_with_its_figures(data, reason, detail):
    with pytest.raises(UnusableImage) as refused:
        check_header(data, LIMITS)
    assert refused.value.reason == reason
    assert detail in refused.value.detail


def test_the_frames_of_an_animation_count_together():
    frames = [Image.fromarray(np.full((300, 300), shade, np.uint8)) for shade in range(0, 200, 10)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    assert check_header(stream.getvalue(), LIMITS).pixels == 20 * 300 * 300
    few = msgspec.structs.replace(LIMITS, max_pixels=1_000_000)
    with pytest.raises(UnusableImage, match="too-many-pixels"):
        check_header(stream.getvalue(), few)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_width_and_height_are_those_of_the_upright_photograph(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    header = check_header(encoded("JPEG", (40, 20), exif=exif), LIMITS)
    assert header.orientation == orientation
    assert (header.width, header.height) == ((40, 20) if orientation < 5 else (20, 40))


def test_copies_stored_in_any_orientation_are_found_to_be_copies():
    upright = pattern(seed=1, side=60)
    turns = [None, *(Image.Transpose(number) for number in (0, 3, 1, 5, 2, 6, 4))]
    found = []
    for orientation, turn in enumerate(turns, start=1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stream = io.BytesIO()
        stored = upright.transpose(turn) if turn is not None else upright
        stored.save(stream, "JPEG", exif=exif)
        found.append(examine(stream.getvalue(), LIMITS, PixelBudget(10_000)))
    assert likeness.alike(found[0].thumbnail, [other.thumbnail for other in found]).all()
    assert all(set(likeness.keys(found[0].hash)) & set(likeness.keys(f.hash)) for f in found)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_bmp_is_read_as_training_reads_it(mode):
    assert look(encoded("BMP", (20, 10), mode)) == ("BMP", 20, 10, len(mode))


def test_a_bmp_with_a_palette_is_not_taken_for_grey():
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), (200, 10, 30)).convert("P").save(stream, "BMP")
    assert look(stream.getvalue()) == "unsupported-format"


@pytest.mark.parametrize("kind", [b"VP8 ", b"VP8L", b"VP8X"])
def test_a_webp_that_claims_a_huge_canvas_is_refused_by_its_header(kind):
    claims = {
        b"VP8 ": bytes(6) + struct.pack("<HH", 16383, 16383),
        b"VP8L": b"\x2f" + struct.pack("<I", 16382 | 16382 << 14),
        b"VP8X": bytes(4) + b"\xff\xff\0" * 2,
    }
    data = b"RIFF\0\0\0\0WEBP" + kind + struct.pack("<I", 100) + claims[kind]
    with pytest.raises(UnusableImage, match="too-many-pixels"):
        check_header(data, LIMITS)


def test_a_name_proves_nothing(tmp_path):
    image = tmp_path / "image.jpg"
    Image.new("RGB", (30, 20)).save(image, "PNG")
    assert look(image.read_bytes()) == ("PNG", 30, 20, 3)


def test_mean_and_spread_of_the_luma_are_those_of_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    found = examine(stream.getvalue(), LIMITS, PixelBudget(10_000))
    assert found.luma_mean == pytest.approx(pixels.mean())
    assert found.luma_std == pytest.approx(pixels.std())


def png_of(parts: bytes) -> bytes:
    plain = encoded("PNG", (32, 32))
    return plain[:33] + parts + plain[33:]  # behind the signature and IHDR


_GIF = b"GIF89a" + struct.pack("<HHBBB", 32, 32, 0, 0, 0)
_TINY = struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd"))


@pytest.mark.parametrize(
    "data",
    [
        png_of(_TINY * 100_000),
        encoded("JPEG", (32, 32))[:2] + b"\xff\xfe\0\x02" * 100_000,
        encoded("JPEG", (32, 32))[:2] + b"\xff" * 100_000,
        _GIF + b"\x21\xfe\0" * 100_000,
        _GIF + b"\x21\xfe" + b"\x01a" * 100_000,
    ],
)
def test_a_header_of_a_hundred_thousand_parts_is_not_read_to_its_end(data):
    with pytest.raises(UnusableImage) as refusal:
        check_header(data, LENIENT)
    assert refusal.value.reason == "bomb"


def test_an_image_with_many_notes_a_large_profile_or_many_frames_is_read():
    notes = PngInfo()
    for number in range(100):
        notes.add_text(f"note {number}", "x" * 100)
    frames = [pattern(s, 64) for s in range(60)]
    for data in (
        encoded("PNG", (32, 32), pnginfo=notes),
        encoded("JPEG", (32, 32), icc_profile=b"p" * 4_000_000),
        encoded("GIF", (64, 64), "P", save_all=True, append_images=frames),
    ):
        assert check_header(data, LENIENT).width in (32, 64)
