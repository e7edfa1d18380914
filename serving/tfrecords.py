"""Files of TFRecords, uncompressed, record by record and from any of them on, without TensorFlow.

Around every record stand its length and a checksum of each (record_writer.cc in TensorFlow).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c

_HEADER = struct.Struct("<Q4s")
_CHECKSUM_BYTES = 4
FRAME_BYTES = _HEADER.size + _CHECKSUM_BYTES


class Damage(Exception):
    """A record that is cut or has a wrong checksum; in words."""


def frame(data: bytes) -> bytes:
    """A record as it stands in a file."""
    length = struct.pack("<Q", len(data))
    return b"".join([length, _checksum(length), data, _checksum(data)])


def records(stream: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """The records between two places of a file.

    Args:
        stream: the file.
        start: where a record begins.
        end: where the last one ends.

    Raises:
        Damage: at the first record that is not what was written.
    """
    stream.seek(start)
    place = start
    while place < end:
        length = _length(stream.read(_HEADER.size))
        if length is None or place + FRAME_BYTES + length > end:
            raise Damage(f"truncated or corrupted record at {place}")
        data = stream.read(length)
        if stream.read(_CHECKSUM_BYTES) != _checksum(data):
            raise Damage(f"truncated or corrupted record at {place}")
        yield data
        place += FRAME_BYTES + length


def starts(stream: BinaryIO, end: int) -> Iterator[int]:
    """Where the records of a file begin; ends with one whose length is damaged.

    Of every record a few bytes are read.
    """
    place = 0
    while place < end:
        yield place
        length = _length(os.pread(stream.fileno(), _HEADER.size, place))
        if length is None:
            return
        place += FRAME_BYTES + length


def _length(header: bytes) -> int | None:
    """What is said in front of a record; None where it is cut or damaged."""
    if len(header) < _HEADER.size:
        return None
    length, checksum = _HEADER.unpack(header)
    return length if checksum == _checksum(header[:8]) else None


def _checksum(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
