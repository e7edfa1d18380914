"""Reads the EXIF orientation of encoded images inside a TensorFlow graph.

TensorFlow's decoders ignore it, and a Python function does not survive export, so the bytes are
read with string operations, for a whole batch at once. Only JPEG carries it in practice. Whatever
is malformed counts as upright. After CIPA DC-008 (Exif 2.32) and TIFF 6.0.
"""

from __future__ import annotations

import tensorflow as tf

_TAG = 0x0112
_SHORT = 3
_APP1 = 0xE1
_ENTRY = 12
# The tags of a directory ascend and fewer than this many stand before the orientation.
_MOST_ENTRIES = 64
# Orientation comes in one of the first segments; a file made of tiny ones must not keep us here.
_MOST_SEGMENTS = 32


def orientations(encoded: tf.Tensor) -> tf.Tensor:
    """The orientation of each image.

    Args:
        encoded: string (B,): images in any format.

    Returns:
        int32 (B,): 1 to 8 as EXIF defines them, 1 where there is none.
    """
    tiff = _tiff(encoded)
    header = _bytes(tiff, 0, 8)
    little = tf.reduce_all(header[:, :4] == [0x49, 0x49, 0x2A, 0], axis=1)
    big = tf.reduce_all(header[:, :4] == [0x4D, 0x4D, 0, 0x2A], axis=1)
    directory = _number(header[:, 4:8], little)
    count = _number(_bytes(tiff, directory, 2), little)
    entries = tf.reshape(
        _bytes(tiff, directory + 2, _MOST_ENTRIES * _ENTRY), (-1, _MOST_ENTRIES, _ENTRY)
    )
    sought = (
        (_number(entries[..., 0:2], little[:, None]) == _TAG)
        & (_number(entries[..., 2:4], little[:, None]) == _SHORT)
        & (tf.range(_MOST_ENTRIES) < count[:, None])
    )
    # At most one entry is sought, so that the largest of the values is its value.
    value = tf.reduce_max(tf.where(sought, _number(entries[..., 8:10], little[:, None]), 0), axis=1)
    valid = (little | big) & (value >= 1) & (value <= 8)
    return tf.where(valid, value, 1)


def _tiff(encoded: tf.Tensor) -> tf.Tensor:
    """string (B,): the TIFF structure of the first EXIF segment, empty where there is none."""
    jpeg = tf.reduce_all(_bytes(encoded, 0, 2) == [0xFF, 0xD8], axis=1)
    start = tf.where(jpeg, 2, tf.strings.length(encoded))

    def at_other_segment(position: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any((position < tf.strings.length(encoded)) & (exif == 0))

    def next_segment(position: tf.Tensor, exif: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        head = _bytes(encoded, position, 10)
        length = head[:, 2] * 256 + head[:, 3]
        # Behind the start of the scan (0xDA) there are no segments, only the image.
        segment = (head[:, 0] == 0xFF) & (head[:, 1] != 0xDA) & (length >= 2)
        found = segment & (head[:, 1] == _APP1)
        found &= tf.reduce_all(head[:, 4:] == list(b"Exif\0\0"), axis=1)
        return (
            tf.where(segment, position + 2 + length, tf.strings.length(encoded)),
            tf.where((exif == 0) & found, position, exif),
        )

    _, exif = tf.while_loop(
        at_other_segment,
        next_segment,
        (start, tf.zeros_like(start)),
        maximum_iterations=_MOST_SEGMENTS,
    )
    length = _bytes(encoded, exif + 2, 2)
    size = tf.where(exif > 0, length[:, 0] * 256 + length[:, 1] - 8, 0)
    return _substrings(encoded, exif + 10, size)


def _substrings(strings: tf.Tensor, position: tf.Tensor | int, size: tf.Tensor | int) -> tf.Tensor:
    length = tf.strings.length(strings)
    # An offset behind the end, or one that overflowed, is malformed input and not an error.
    position = tf.where((position < 0) | (position > length), length, position)
    return tf.strings.substr(strings, position, tf.maximum(size, 0) + tf.zeros_like(position))


def _bytes(strings: tf.Tensor, position: tf.Tensor | int, size: int) -> tf.Tensor:
    """int32 (B, size): bytes from a position on, zeros behind the end."""
    part = _substrings(strings, position, size)
    return tf.cast(tf.io.decode_raw(part, tf.uint8, fixed_length=size), tf.int32)


def _number(digits: tf.Tensor, little: tf.Tensor) -> tf.Tensor:
    """int32 (...): an unsigned number of two or four bytes (..., n) in the file's byte order."""
    size = digits.shape[-1]
    weights = tf.constant([256**place for place in range(min(size, 4))], tf.int64)
    digits = tf.cast(digits, tf.int64)
    number = tf.where(
        little,
        tf.reduce_sum(digits * weights, axis=-1),
        tf.reduce_sum(digits * weights[::-1], axis=-1),
    )
    return tf.cast(tf.minimum(number, tf.int32.max), tf.int32)
