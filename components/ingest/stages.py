"""The two Beam stages of a drop: examine files, write shards.

What flows through Beam are ranges of the worksheet's rows, never images: a runner keeps what it
passes between stages, and images would fill its memory. Every step reads and writes files itself
and can be repeated, so that any runner may retry it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apache_beam as beam
import msgspec
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions

from graftline.components.ingest.examine import examine
from graftline.components.ingest.spans import SPLITS
from graftline.components.ingest.worksheet import Outcome, Row, Worksheet
from graftline.components.progress import report
from graftline.serving.errors import UserError
from graftline.serving.image_check import Limits, UnusableImage

_CHUNK = 256
_REPORT_EVERY = 2.0  # seconds


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """One TFRecord file to write: its path below the version, and where its rows are listed."""

    name: str
    listing: str


class _Record(msgspec.Struct, frozen=True):
    """What a shard's listing says of one record."""

    path: str
    label: str
    group: str
    id: str
    numbers: dict[str, int | float]


def examine_files(sheet: Worksheet, limits: Limits, folder: Path, options: Sequence[str]) -> None:
    """Examines all files of the worksheet and writes what was found into it.

    Args:
        sheet: the worksheet.
        limits: what an image may be.
        folder: for the outcomes, one file per chunk of rows.
        options: of the Beam runner.
    """
    total = sheet.count()
    folder.mkdir()
    chunks = [(first, _CHUNK) for first in range(1, total + 1, _CHUNK)]
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | beam.Create(chunks, reshuffle=False)
            | beam.ParDo(_Examine(sheet.path, limits, folder, total))
        )
    for path in sorted(folder.glob("*.msgpack")):
        sheet.record(msgspec.msgpack.decode(path.read_bytes(), type=list[Outcome]))


class _Examine(beam.DoFn):
    """Examines a range of rows; the decoders run outside Python's lock, on all cores."""

    def __init__(self, sheet: Path, limits: Limits, folder: Path, total: int) -> None:
        self._sheet = str(sheet)
        self._limits = limits
        self._folder = str(folder)
        self._total = total

    def setup(self) -> None:
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self._meter = _Meter("examining images", self._total)

    def teardown(self) -> None:
        self._pool.shutdown()

    def process(self, element: tuple[int, int]) -> Iterator[int]:
        first, count = element
        sheet = Worksheet(Path(self._sheet))
        rows = sheet.rows(first, count)
        sheet.close()
        outcomes = []
        for outcome in self._pool.map(self._outcome, rows):
            outcomes.append(outcome)
            self._meter.add(1)
        target = Path(self._folder) / f"{first:012d}.msgpack"
        staged = target.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        staged.write_bytes(msgspec.msgpack.encode(outcomes))
        staged.replace(target)
        yield len(outcomes)

    def _outcome(self, row: Row) -> Outcome:
        try:
            if row.label is None:
                raise UnusableImage("no-class", "it lies beside the class folders")
            return Outcome(seq=row.seq, finding=examine(_read(row.path, self._limits), self._limits))
        except UnusableImage as unusable:
            return Outcome(seq=row.seq, reason=unusable.reason, detail=unusable.detail)


def _read(path: str, limits: Limits) -> bytes:
    try:
        size = Path(path).stat().st_size
        if size > limits.max_bytes:
            raise UnusableImage("too-many-bytes", f"{size} bytes, at most {limits.max_bytes}")
        return Path(path).read_bytes()
    except OSError as error:
        raise UnusableImage("unreadable", error.strerror or str(error)) from error


def plan_shards(sheet: Worksheet, folder: Path, shard_bytes: int) -> list[Shard]:
    """Divides the kept images of each split into shards and writes a listing for each.

    Every split has at least one shard, an empty one if need be: ExampleGen wants files.
    """
    folder.mkdir()
    shards = []
    for split in SPLITS:
        listings: list[Path] = []
        stream = None
        filled = shard_bytes
        for row, finding, group in sheet.in_split(split):
            if filled >= shard_bytes:
                if stream:
                    stream.close()
                listings.append(folder / f"{split}-{len(listings):05d}")
                stream = listings[-1].open("wb")
                filled = 0
            assert stream is not None
            numbers = {
                name: getattr(finding, name)
                for name in ("width", "height", "channels", "byte_size", "luma_mean", "luma_std")
            }
            record = _Record(row.path, row.label or "", group, finding.id, numbers)
            stream.write(msgspec.json.encode(record) + b"\n")
            filled += finding.byte_size
        if stream:
            stream.close()
        if not listings:
            listings = [folder / f"{split}-00000"]
            listings[0].touch()
        shards += [
            Shard(
                name=f"{split}/images-{place:05d}-of-{len(listings):05d}.tfrecord.gz",
                listing=str(listing),
            )
            for place, listing in enumerate(listings)
        ]
    return shards


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
    """
    for split in SPLITS:
        (version / split).mkdir()
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | beam.Create(list(shards), reshuffle=False)
            | beam.ParDo(_WriteShard(version, total))
        )
    return {shard.name: _hash(version / shard.name) for shard in shards}


class _WriteShard(beam.DoFn):
    """Writes one TFRecord file from its listing."""

    def __init__(self, version: Path, total: int) -> None:
        self._version = str(version)
        self._total = total

    def setup(self) -> None:
        self._meter = _Meter("writing TFRecords", self._total)

    def process(self, element: Shard) -> Iterator[str]:
        # Encoded images hardly shrink: the fastest level takes what there is.
        compression = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=1)
        path = Path(self._version) / element.name
        with tf.io.TFRecordWriter(str(path), compression) as writer:
            with Path(element.listing).open("rb") as listing:
                for line in listing:
                    record = msgspec.json.decode(line, type=_Record)
                    writer.write(_example(record).SerializeToString(deterministic=True))
                    self._meter.add(1)
        yield element.name


def _example(record: _Record) -> tf.train.Example:
    try:
        image = Path(record.path).read_bytes()
    except OSError as error:
        raise UserError(_changed(record.path)) from error
    if hashlib.sha256(image).hexdigest() != record.id:
        raise UserError(_changed(record.path))
    features = {
        "image": _bytes(image),
        "label": _bytes(record.label.encode()),
        "id": _bytes(record.id.encode()),
        "group": _bytes(record.group.encode()),
    }
    for name, number in record.numbers.items():
        features[name] = (
            tf.train.Feature(float_list=tf.train.FloatList(value=[number]))
            if name.startswith("luma")
            else tf.train.Feature(int64_list=tf.train.Int64List(value=[int(number)]))
        )
    return tf.train.Example(features=tf.train.Features(feature=features))


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _changed(path: str) -> str:
    return (
        f"The file {path} changed or went away while the drop was taken in. Nothing was taken in: "
        "drop again when the source is at rest."
    )


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class _Meter:
    """Reports progress now and then."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._started = self._last = time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last >= _REPORT_EVERY:
            self._last = now
            rate = self._done / (now - self._started)
            report(f"{self._what}  {self._done}/{self._total}  {rate:.0f} images/s")
