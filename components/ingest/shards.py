"""The second stage of a drop: TFRecord files, each written by a step that reads its images anew."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apache_beam as beam
import msgspec
import tensorflow as tf

from graftline.components.ingest.examine import Finding
from graftline.components.ingest.spans import SPLITS
from graftline.components.ingest.stages import Meter, appearing, hide_gpus, in_order, run_stage
from graftline.components.ingest.worksheet import Row, Worksheet
from graftline.serving.errors import UserError
from graftline.serving.manifest import hash_file

_NUMBERS = ("width", "height", "channels", "byte_size")
_MEASURES = ("luma_mean", "luma_std")
_DIGEST = ".sha256"
# A file has one writer, whom small images cost their number, not their bytes.
_MOST_IMAGES = 2000


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """One TFRecord file to write: its path below the version, and where its images are listed.

    Beside the listing the file is written, and its SHA-256.
    """

    name: str
    listing: str


class _Record(msgspec.Struct, frozen=True):
    """What a shard's listing says of one image."""

    path: bytes
    start: int
    label: str
    group: str
    id: str
    numbers: tuple[int, ...]
    measures: tuple[float, ...]


def plan_shards(sheet: Worksheet, folder: Path, shard_bytes: int) -> list[Shard]:
    """Divides the kept images of each split into shards and writes a listing for each.

    Every split has at least one shard, an empty one if need be: ExampleGen wants files.

    Args:
        sheet: the worksheet, splits assigned.
        folder: for the listings; to be made.
        shard_bytes: after how many bytes of images a shard is full; it is after 2,000 images, too.
    """
    folder.mkdir()
    shards = []
    for split in SPLITS:
        listings = list(_listings(sheet, split, folder, shard_bytes))
        shards += [
            Shard(
                name=f"{split}/images-{place:05d}-of-{len(listings):05d}.tfrecord.gz",
                listing=str(listing),
            )
            for place, listing in enumerate(listings)
        ]
    return shards


def _listings(sheet: Worksheet, split: str, folder: Path, shard_bytes: int) -> Iterator[Path]:
    images = sheet.in_split(split)
    image = next(images, None)
    place = 0
    while image or not place:
        listing = folder / f"{split}-{place:05d}"
        count = filled = 0
        with listing.open("wb") as stream:
            while image and filled < shard_bytes and count < _MOST_IMAGES:
                stream.write(msgspec.json.encode(_record(*image)) + b"\n")
                count, filled = count + 1, filled + image[1].byte_size
                image = next(images, None)
        yield listing
        place += 1


def _record(row: Row, finding: Finding, group: str) -> _Record:
    return _Record(
        path=os.fsencode(row.path),
        start=row.start,
        label=row.label or "",
        group=group,
        id=finding.id,
        numbers=tuple(getattr(finding, name) for name in _NUMBERS),
        measures=tuple(getattr(finding, name) for name in _MEASURES),
    )


def write_shards(
    shards: Sequence[Shard], version: Path, total: int, options: Sequence[str]
) -> dict[str, str]:
    """Writes the TFRecord files of a span.

    Args:
        shards: what to write.
        version: folder of the version under construction.
        total: number of images, for the progress.
        options: of the Beam runner.

    Returns:
        SHA-256 of each file by its name.

    Raises:
        UserError: a file of the source changed since it was examined.
        OSError: the disk is full.
    """
    for split in SPLITS:
        (version / split).mkdir()
    run_stage(shards, _WriteShard(version, total), options)
    return {shard.name: Path(shard.listing + _DIGEST).read_text() for shard in shards}


class _WriteShard(beam.DoFn):
    """Writes one TFRecord file from its listing, byte for byte the same each time.

    A second attempt elsewhere may be at the same file: it is put into its place when it is whole.
    """

    def __init__(self, version: Path, total: int) -> None:
        self._version = str(version)
        self._total = total

    def setup(self) -> None:
        hide_gpus()
        self._threads = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads)
        self._meter = Meter("writing TFRecords", self._total)

    def teardown(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def process(self, element: Shard) -> None:
        # Encoded images hardly shrink: the fastest level takes what there is.
        compression = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=1)
        with appearing(Path(self._version) / element.name, Path(element.listing)) as staged:
            with (
                Path(element.listing).open("rb") as listing,
                _disk_errors(),
                tf.io.TFRecordWriter(str(staged), compression) as writer,
            ):
                for example in in_order(self._pool, _example, listing, 2 * self._threads):
                    writer.write(example)
                    self._meter.add()
            with appearing(Path(element.listing + _DIGEST)) as digest:
                digest.write_text(hash_file(staged).sha256)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Gives TensorFlow's errors of the file system their usual names."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _example(line: bytes) -> bytes:
    """The serialized tf.Example of a line of a listing; its bytes depend on nothing else."""
    record = msgspec.json.decode(line, type=_Record)
    path = Path(os.fsdecode(record.path))
    size = record.numbers[_NUMBERS.index("byte_size")]
    try:
        with path.open("rb") as stream:
            stream.seek(record.start)
            image = stream.read(size)
    except OSError as error:
        raise UserError(_changed(path)) from error
    if hashlib.sha256(image).hexdigest() != record.id:
        raise UserError(_changed(path))
    features = {
        "image": _bytes(image),
        "label": _bytes(record.label.encode()),
        "id": _bytes(record.id.encode()),
        "group": _bytes(record.group.encode()),
    }
    for name, number in zip(_NUMBERS, record.numbers, strict=True):
        features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=[number]))
    for name, measure in zip(_MEASURES, record.measures, strict=True):
        features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=[measure]))
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _changed(path: Path) -> str:
    return (
        f"The file {path} changed or went away while the drop was taken in. Nothing was taken in: "
        "drop again when the source is at rest."
    )
