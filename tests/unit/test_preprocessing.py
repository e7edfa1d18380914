"""The one preprocessing: decoding, orientation, fitting, scaling, labels."""

import io
import json
import struct

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from PIL import Image, ImageOps

from graftline.components.trainer.backbones.registry import BACKBONES
from graftline.components.trainer.config import ImageConfig, TrainerConfig
from graftline.pipeline.exif import orientations
from graftline.pipeline.preprocessing import preprocessing_config, preprocessing_fn, read_images

ORIENTATION = 0x0112


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(*encoded: bytes, size: int = 32, fit: str = "stretch") -> np.ndarray:
    return read_images(tf.constant(encoded), ImageConfig(size=size, fit=fit)).numpy()


def lopsided(width: int = 48, height: int = 40) -> Image.Image:
    """A smooth image that looks different in each of the eight orientations."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack(
        [255 * x / width, 255 * y / height, 255 * (x + 2 * y) / (width + 2 * height)], axis=-1
    )
    return Image.fromarray(pixels.astype(np.uint8))


def app1(tiff: bytes) -> bytes:
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def tiff(value: int, order: str = "<", kind: int = 3, before: int = 0) -> bytes:
    """A TIFF structure whose directory holds an orientation behind `before` other entries."""
    magic = b"II*\0" if order == "<" else b"MM\0*"
    other = struct.pack(f"{order}HHII", 0x0100, 4, 1, 6)
    entry = struct.pack(f"{order}HHIHH", ORIENTATION, kind, 1, value, 0)
    head = struct.pack(f"{order}IH", 8, before + 1)
    return magic + head + other * before + entry + b"\0\0\0\0"


def with_segments(*segments: bytes) -> bytes:
    """A JPEG with these segments in front."""
    jpeg = encode(lopsided(), "JPEG")
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def orientation_of(*encoded: bytes) -> list[int]:
    return orientations(tf.constant(encoded)).numpy().tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_pillow_turns_it(orientation):
    jpeg = encode(lopsided(), "JPEG", quality=95)
    stored = Image.fromarray(tf.io.decode_jpeg(jpeg).numpy())
    stored.getexif()[ORIENTATION] = orientation
    upright = encode(ImageOps.exif_transpose(stored))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turned = encode(lopsided(), "JPEG", quality=95, exif=exif)
    np.testing.assert_allclose(read(turned), read(upright), atol=1e-3)


def test_images_of_one_batch_are_turned_each_its_own_way():
    turned = [with_segments(app1(tiff(value))) for value in range(1, 9)]
    alone = np.concatenate([read(one) for one in turned])
    np.testing.assert_array_equal(read(*turned), alone)
    assert len({image.tobytes() for image in alone}) == 8


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("before", [0, 1, 17])
def test_orientation_is_read_in_both_byte_orders(order, before):
    assert orientation_of(with_segments(app1(tiff(6, order, before=before)))) == [6]


def test_orientation_is_found_behind_other_segments():
    profile = b"\xff\xe2" + struct.pack(">H", 60_002) + b"\0" * 60_000
    comment = b"\xff\xfe" + struct.pack(">H", 12) + b"Exif\0\0MM\0*"
    xmp = b"\xff\xe1" + struct.pack(">H", 31) + b"http://ns.adobe.com/xap/1.0/\0"
    assert orientation_of(with_segments(profile, comment, xmp, app1(tiff(8)))) == [8]


def test_orientations_of_real_files_agree_with_pillow(shared_data):
    files = sorted((shared_data / "bad_images" / "odd_valid").glob("hopper_orientation_*.jpg"))
    by_pillow = [Image.open(file).getexif()[ORIENTATION] for file in files]
    assert orientation_of(*(file.read_bytes() for file in files)) == by_pillow == [3, 6]


MALFORMED = {
    "no bytes": b"",
    "only the start of a JPEG": b"\xff\xd8",
    "a segment without its length": b"\xff\xd8\xff\xe1",
    "a segment longer than the file": b"\xff\xd8\xff\xe1\xff\xffExif\0\0" + tiff(6)[:12],
    "a segment of length 0": b"\xff\xd8\xff\xe1\0\0Exif\0\0" + tiff(6),
    "orientation 0": with_segments(app1(tiff(0))),
    "orientation 9": with_segments(app1(tiff(9))),
    "orientation as text": with_segments(app1(tiff(6, kind=2))),
    "another byte order": with_segments(app1(b"XX*\0" + tiff(6)[4:])),
    "a directory behind the end": with_segments(app1(tiff(6)[:4] + b"\xff\xff\xff\x7f")),
    "a negative directory": with_segments(app1(tiff(6)[:4] + b"\xf0\xff\xff\xff")),
    "a directory cut short": with_segments(app1(tiff(6)[:14])),
    "a directory without entries": with_segments(app1(tiff(6)[:8] + b"\0\0" + tiff(6)[10:])),
    "EXIF in the image's own bytes": encode(lopsided(), "JPEG") + app1(tiff(6)),
    "EXIF in a file that is no JPEG": encode(lopsided()) + app1(tiff(6)),
}


@pytest.mark.parametrize("encoded", MALFORMED.values(), ids=MALFORMED)
def test_malformed_exif_counts_as_upright(encoded):
    assert orientation_of(encoded, with_segments(app1(tiff(6)))) == [1, 6]


def converted(mode: str) -> Image.Image:
    return lopsided().convert(mode)


@pytest.mark.parametrize(
    ("encoded", "upright"),
    [
        (encode(lopsided()), lopsided()),
        (encode(lopsided(), "BMP"), lopsided()),
        (encode(converted("P"), "GIF"), converted("P").convert("RGB")),
        (encode(converted("P")), converted("P").convert("RGB")),
        (encode(converted("L")), converted("L").convert("RGB")),
        (encode(converted("LA")), converted("L").convert("RGB")),
        (encode(converted("1")), converted("1").convert("RGB")),
        (encode(converted("RGBA")), lopsided()),
        (encode(lopsided(), "JPEG", quality=95), lopsided()),
        (encode(converted("L"), "JPEG", quality=95), converted("L").convert("RGB")),
        (encode(converted("CMYK"), "JPEG", quality=95), converted("CMYK").convert("RGB")),
        (encode(lopsided(), "JPEG", quality=95, progressive=True), lopsided()),
    ],
    ids=[
        "png",
        "bmp",
        "gif",
        "palette",
        "grey",
        "grey+alpha",
        "1-bit",
        "rgba",
        "jpeg",
        "grey-jpeg",
        "cmyk",
        "progressive",
    ],
)
def test_every_format_and_colour_mode_is_read_as_pillow_reads_it(encoded, upright):
    difference = np.abs(read(encoded) - read(encode(upright)))
    assert difference.mean() < 3
    assert difference.max() < 20


def test_sixteen_bits_are_read_as_the_upper_eight():
    grey = np.asarray(converted("L"))
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_allclose(read(encode(sixteen)), read(encode(converted("L"))), atol=1e-3)


def test_only_the_first_frame_of_an_animation_is_read():
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    gif = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(read(gif)[0, 5, 5], [255, 0, 0], atol=1)


@pytest.mark.parametrize(
    ("encoded", "says"),
    [
        (b"no image at all", "Unknown image file format"),
        (b"", "empty"),
        (encode(lopsided())[:100], "Invalid PNG data"),
        (encode(lopsided(), "JPEG")[:400], "Invalid JPEG data"),
    ],
)
def test_an_image_that_cannot_be_decoded_is_an_error_that_says_so(encoded, says):
    with pytest.raises(tf.errors.InvalidArgumentError, match=says):
        read(encode(lopsided()), encoded)


def test_a_batch_may_be_empty():
    empty = read_images(tf.constant([], tf.string), ImageConfig(size=32))
    assert empty.shape == (0, 32, 32, 3)


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = read(encode(Image.fromarray(stripes)))
    assert abs(shrunk - 127.5).max() < 3


def test_a_large_jpeg_shrinks_to_what_its_pixels_shrink_to():
    large = lopsided(1600, 1200)
    jpeg = encode(large, "JPEG", quality=95)
    exact = encode(Image.fromarray(tf.io.decode_jpeg(jpeg).numpy()))
    difference = np.abs(read(jpeg) - read(exact))
    assert difference.mean() < 1


def test_crop_keeps_the_centre_of_the_longer_side():
    wide = Image.new("RGB", (96, 32), "black")
    wide.paste((255, 255, 255), (32, 0, 64, 32))
    assert read(encode(wide), fit="crop").min() == pytest.approx(255)
    assert read(encode(wide.rotate(90, expand=True)), fit="crop").min() == pytest.approx(255)


def test_pad_keeps_all_of_the_image_and_adds_black():
    padded = read(encode(Image.new("RGB", (64, 32), "white")), fit="pad")[0]
    np.testing.assert_allclose(padded[8:24], 255, atol=1e-3)
    np.testing.assert_array_equal(padded[:8], 0)
    np.testing.assert_array_equal(padded[24:], 0)


def test_stretch_fills_the_square():
    assert read(encode(Image.new("RGB", (64, 32), "white"))).min() == pytest.approx(255)


def preprocess(backbone: str, image: Image.Image, labels=("a",), classes=("a",)):
    config = preprocessing_config(
        ImageConfig(size=32),
        TrainerConfig(backbone=backbone, weights=BACKBONES[backbone].weights[0]),
        list(classes),
    )
    inputs = {
        "image": tf.constant([encode(image)] * len(labels)),
        "label": tf.constant(labels),
    }
    return preprocessing_fn(inputs, json.loads(json.dumps(config)))


@pytest.mark.parametrize(
    ("backbone", "by_keras"),
    [
        ("mobilenet_v2", tf_keras.applications.mobilenet_v2.preprocess_input),
        ("resnet50", tf_keras.applications.resnet50.preprocess_input),
        ("mobilenet_v3_small", tf_keras.layers.Rescaling(1 / 127.5, -1)),
        (
            "efficientnet_v2_b0",
            lambda pixels: tf_keras.applications.imagenet_utils.preprocess_input(
                pixels, mode="torch"
            ),
        ),
        ("efficientnet_lite0", lambda pixels: (pixels - 127) / 128),
    ],
)
def test_pixels_are_scaled_as_each_backbone_was_trained(backbone, by_keras):
    colour = (200, 100, 10)
    scaled = preprocess(backbone, Image.new("RGB", (32, 32), colour))["image"].numpy()
    expected = np.asarray(by_keras(np.array([[[colour]]], np.float32)))
    np.testing.assert_allclose(scaled[0, 5, 5], expected[0, 0, 0], rtol=1e-4, atol=1e-4)


def test_labels_become_indices_in_the_order_of_the_classes():
    classes = ["t-shirt", "größte Rose", "a/b"]
    labels = ["a/b", "t-shirt", "größte Rose", "unknown", ""]
    found = preprocess("mobilenet_v2", lopsided(), labels, classes)["label"]
    assert found.dtype == tf.int64
    assert found.numpy().tolist() == [2, 0, 1, -1, -1]
