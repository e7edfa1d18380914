"""Takes images and labels out of a user's own TFRecords.

The images are written out as files of a working folder, so that from there on TFRecords are a
source like any other. A damaged file is refused as a whole: what stands behind the damage cannot be
read, and a part of a file must not pass for all of it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow as tf

from graftline.components.ingest.config import FeaturesConfig
from graftline.components.ingest.sources import Entry, split_named
from graftline.serving.errors import UserError

_PER_FOLDER = 1000


def unpack(files: Sequence[Path], features: FeaturesConfig, folder: Path) -> Iterator[Entry]:
    """Writes every image to a file of its own.

    Args:
        files: TFRecord files, compressed with gzip or not.
        features: which features to take.
        folder: where the images go.

    Raises:
        UserError: a file is damaged, or a record lacks a feature or holds something else in it.
    """
    number = 0
    for file in files:
        for position, serialized in enumerate(_records(file)):
            where = f"record {position} of {file}"
            example = _parse(serialized, where)
            image = _one_bytes(example, features.image, where)
            split = None
            if features.split:
                given = _one_bytes(example, features.split, where).decode(errors="replace")
                split = split_named(given)
                if split is None:
                    raise UserError(f"The split {given!r} in {where} is none of train, eval and test.")
            path = folder / f"{number // _PER_FOLDER:06d}" / f"{number:09d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
            yield Entry(
                path=path,
                name=f"{file.name}[{position}]",
                label=_label(example, features, where),
                split=split,
            )
            number += 1


def _records(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        compression = "GZIP" if stream.read(2) == b"\x1f\x8b" else ""
    position = 0
    try:
        for record in tf.data.TFRecordDataset(str(file), compression).as_numpy_iterator():
            yield record
            position += 1
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError) as error:
        raise UserError(
            f"The TFRecord file {file} is damaged after record {position} ({error.message}): it is "
            "cut short or has a wrong checksum. Copy it again from where it came; nothing of this "
            "drop was taken in."
        ) from error


def _parse(serialized: bytes, where: str) -> tf.train.Example:
    try:
        return tf.train.Example.FromString(serialized)
    except Exception as error:
        raise UserError(f"The {where} is not a tf.Example.") from error


def _one_bytes(example: tf.train.Example, name: str, where: str) -> bytes:
    values = _feature(example, name, where).bytes_list.value
    if len(values) != 1:
        raise UserError(f"The feature `{name}` in {where} holds {len(values)} byte strings, not one.")
    return values[0]


def _label(example: tf.train.Example, features: FeaturesConfig, where: str) -> str:
    feature = _feature(example, features.label, where)
    if feature.WhichOneof("kind") == "int64_list" and len(feature.int64_list.value) == 1:
        number = feature.int64_list.value[0]
        if not 0 <= number < len(features.classes):
            raise UserError(
                f"The label in {where} is the number {number}. Name the classes in the order of "
                f"their numbers in drop.features.classes, which has {len(features.classes)} now."
            )
        return features.classes[number]
    label = _one_bytes(example, features.label, where)
    try:
        return unicodedata.normalize("NFC", label.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"The label {label!r} in {where} is not UTF-8.") from error


def _feature(example: tf.train.Example, name: str, where: str) -> tf.train.Feature:
    if name not in example.features.feature:
        there = ", ".join(sorted(example.features.feature)) or "none"
        raise UserError(
            f"There is no feature `{name}` in {where}; it has: {there}. Say which ones to take in "
            "the section drop.features of graftline.yaml."
        )
    return example.features.feature[name]
