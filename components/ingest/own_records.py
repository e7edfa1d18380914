"""Takes images and classes out of a user's own TFRecords.

The images are written one behind the other into a working file, so that from there on records are
a source like any other and a compressed file is read only once. What cannot be used is written
there too, byte for byte. Behind a damage nothing of a file can be read: what stood before it goes
on, and the file goes to quarantine as a whole, with the place of the damage.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import tensorflow as tf
from google.protobuf.message import DecodeError

from graftline.components.ingest import sources
from graftline.components.ingest.config import FeaturesConfig
from graftline.components.ingest.entries import Entry
from graftline.components.ingest.examine import in_words
from graftline.components.ingest.labels import class_named, split_named
from graftline.components.ingest.sources import Source
from graftline.serving import tfrecords
from graftline.serving.image_check import UnusableImage

_GZIP = b"\x1f\x8b"


class _Unusable(Exception):
    """A record that cannot be used; arguments are reason and detail."""


def entries(source: Source, features: FeaturesConfig, unpacked: Path) -> Iterator[Entry]:
    """Lists all records of a source.

    Args:
        source: of kind TFRECORDS.
        features: which features to take.
        unpacked: the working file, to be made; entries are parts of it, there when they are told.
    """
    with unpacked.open("wb") as stream:
        for file, split in sources.record_files(source.path):
            name = file.relative_to(source.root).as_posix()
            position = -1
            try:
                for position, serialized in enumerate(_records(file)):
                    entry = _entry(serialized, f"{name}[{position}]", split, features, stream)
                    stream.flush()
                    yield entry
            except (tf.errors.DataLossError, tf.errors.OutOfRangeError) as error:
                damaged = Entry(path=file, name=name, label=None)
                yield damaged.refuse("damaged-tfrecord", _damage(error, position + 1))
            except tf.errors.OpError as error:
                yield Entry(path=file, name=name, label=None).refuse("unreadable", in_words(error))


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A part of a file of records.

    Attributes:
        start: where its first record begins.
        end: where its last one ends; None: at the end of the file.
        first: number of its first record in the file.
    """

    start: int = 0
    end: int | None = None
    first: int = 0


WHOLE = Piece()


def pieces(file: Path, count: int) -> list[Piece]:
    """Divides a file into pieces of so many records; the last one has what is left.

    It is one piece where it is compressed, for it can only be read from its beginning then.
    """
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            if _is_compressed(stream) or not size:
                return [WHOLE]
            found = [
                (place, number)
                for number, place in enumerate(tfrecords.starts(stream, size))
                if number % count == 0
            ]
    except OSError:
        return [WHOLE]  # whoever reads it says why that cannot be done
    ends = [*(place for place, _ in found[1:]), size]
    return [Piece(start, end, first) for (start, first), end in zip(found, ends, strict=True)]


def images(file: Path, feature: str, piece: Piece = WHOLE) -> Iterator[bytes | UnusableImage]:
    """The images of one file, whatever their class; in place of one, why there is none.

    Behind a damage nothing can be read: it ends the file.

    Args:
        file: TFRecords of tf.Examples, compressed or not.
        feature: which one is the encoded image.
        piece: a part of it.
    """
    read = piece.first
    try:
        for serialized in _records(file, piece):
            read += 1
            try:
                yield _one_bytes(_parse(serialized), feature)
            except _Unusable as unusable:
                yield UnusableImage(*unusable.args)
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError) as error:
        yield UnusableImage("damaged-tfrecord", _damage(error, read))
    except tf.errors.OpError as error:
        yield UnusableImage("unreadable", in_words(error))


def _damage(error: tf.errors.OpError, read: int) -> str:
    return f"{in_words(error)}, after {read} records that were read"


def _records(file: Path, piece: Piece = WHOLE) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            if not _is_compressed(stream):
                end = file.stat().st_size if piece.end is None else piece.end
                yield from tfrecords.records(stream, piece.start, end)
                return
    except OSError as error:
        raise tf.errors.UnavailableError(None, None, error.strerror) from error
    except tfrecords.Damage as damage:
        raise tf.errors.DataLossError(None, None, str(damage)) from damage
    size = 0
    for serialized in tf.data.TFRecordDataset(str(file), "GZIP").as_numpy_iterator():
        size += len(serialized) + tfrecords.FRAME_BYTES
        yield serialized
    # TensorFlow takes a file that was cut within the header of a record for a whole one.
    if size != _unpacked_size(file):
        raise tf.errors.DataLossError(None, None, f"cut within the header of a record at {size}")


def _is_compressed(stream: BinaryIO) -> bool:
    return stream.read(len(_GZIP)) == _GZIP


def _unpacked_size(file: Path) -> int:
    """Bytes that a compressed file holds, -1 where it is cut."""
    size = 0
    try:
        with gzip.open(file) as stream:
            while block := stream.read(1 << 20):
                size += len(block)
    except (EOFError, OSError, zlib.error):
        return -1
    return size


def _entry(
    serialized: bytes, name: str, split: str | None, features: FeaturesConfig, stream: BinaryIO
) -> Entry:
    start = stream.tell()
    path = Path(stream.name)
    try:
        example = _parse(serialized)
        image = _one_bytes(example, features.image)
        label = _label(example, features)
        split = _split(example, features) or split
    except _Unusable as unusable:
        stream.write(serialized)
        entry = Entry(path=path, name=name, label=None, start=start, size=len(serialized))
        return entry.refuse(*unusable.args)
    stream.write(image)
    return Entry(path=path, name=name, label=label, split=split, start=start, size=len(image))


def _parse(serialized: bytes) -> tf.train.Example:
    try:
        return tf.train.Example.FromString(serialized)
    except DecodeError:
        raise _Unusable("not-an-example", "the record is no tf.Example") from None


def _label(example: tf.train.Example, features: FeaturesConfig) -> str:
    feature = _feature(example, features.label)
    if feature.WhichOneof("kind") == "int64_list":
        numbers = feature.int64_list.value
        if len(numbers) != 1 or not 0 <= numbers[0] < len(features.classes):
            raise _Unusable(
                "unusable-label",
                f"`{features.label}` is {list(numbers)[:5]}, of {len(features.classes)} classes "
                "that drop.features.classes names",
            )
        return class_named(features.classes[numbers[0]]) or features.classes[numbers[0]]
    text = _one_bytes(example, features.label)
    try:
        name = class_named(text.decode("utf-8"))
    except UnicodeDecodeError:
        name = None
    if name is None:
        raise _Unusable("unusable-label", f"{text[:40]!r} is no class name")
    return name


def _split(example: tf.train.Example, features: FeaturesConfig) -> str | None:
    if not features.split:
        return None
    text = _one_bytes(example, features.split).decode("utf-8", errors="replace")
    split = split_named(text)
    if split is None:
        raise _Unusable("unusable-split", f"{text[:40]!r} is none of train, eval and test")
    return split


def _one_bytes(example: tf.train.Example, name: str) -> bytes:
    values = _feature(example, name).bytes_list.value
    if len(values) != 1:
        raise _Unusable("missing-feature", f"`{name}` holds {len(values)} byte strings, not one")
    return values[0]


def _feature(example: tf.train.Example, name: str) -> tf.train.Feature:
    if name not in example.features.feature:
        there = ", ".join(sorted(example.features.feature)) or "none"
        raise _Unusable(
            "missing-feature",
            f"no feature `{name}`; it has: {there}. The section drop.features says which to take",
        )
    return example.features.feature[name]
