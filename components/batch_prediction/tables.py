"""The tables that batch prediction writes: JSON lines, CSV, Parquet or TFRecords.

One file is one part of a table. It is written under another name and takes its own by a rename, so
that a part is whole or not there.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from graftline.serving.file_system import sync

SUFFIXES = {"jsonl": ".jsonl", "csv": ".csv", "parquet": ".parquet", "tfrecord": ".tfrecord.gz"}
PARTIAL = ".partial"
# One number per class.
PROBABILITIES = "probabilities"

Row = dict[str, Any]


class Table(Protocol):
    """A part under way."""

    def write(self, rows: Sequence[Row]) -> None:
        """Appends rows, which have all columns; `probabilities` is a mapping by class."""

    def close(self) -> None:
        """Writes what is left."""


@contextlib.contextmanager
def part(
    path: Path, kind: str, columns: Sequence[str], classes: Sequence[str] = ()
) -> Iterator[Table]:
    """A part of a table, which is there once the context has ended without an exception.

    Args:
        path: its file.
        kind: a key of `SUFFIXES`.
        columns: names of the columns.
        classes: those of `probabilities`, where that is a column.
    """
    # A runner may repeat a part while whoever began it is still at work.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    with _disk_errors():
        table = _KINDS[kind](partial, columns, classes)
        try:
            yield table
        finally:
            table.close()
        sync(partial)
        partial.replace(path)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Gives a full disk, of which each library speaks in its own words, its usual name."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


class _JsonLines:
    def __init__(self, path: Path, columns: Sequence[str], classes: Sequence[str]) -> None:
        self._stream = path.open("wb")

    def write(self, rows: Sequence[Row]) -> None:
        self._stream.write(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))

    def close(self) -> None:
        self._stream.close()


class _Csv:
    """A column for the probability of each class."""

    def __init__(self, path: Path, columns: Sequence[str], classes: Sequence[str]) -> None:
        self._columns = [name for name in columns if name != PROBABILITIES]
        self._classes = classes if PROBABILITIES in columns else ()
        self._stream: io.TextIOWrapper = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._stream)
        self._writer.writerow([*self._columns, *(f"probability:{c}" for c in self._classes)])

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            of_classes = [row[PROBABILITIES][name] for name in self._classes]
            self._writer.writerow([*(row[name] for name in self._columns), *of_classes])

    def close(self) -> None:
        self._stream.close()


class _Parquet:
    """Probabilities are a struct with a field per class."""

    def __init__(self, path: Path, columns: Sequence[str], classes: Sequence[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        of_classes = pa.struct([(name, pa.float32()) for name in classes])
        types = {"version": pa.int64(), "probability": pa.float32(), PROBABILITIES: of_classes}
        self._schema = pa.schema([(name, types.get(name, pa.utf8())) for name in columns])
        self._writer = parquet.ParquetWriter(path, self._schema)
        self._rows: list[Row] = []

    def write(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        if len(self._rows) >= 1000:  # a row group of a few rows is slow to read
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        rows, self._rows = self._rows, []
        self._writer.write_table(pa.Table.from_pylist(rows, self._schema))


class _Records:
    """tf.Examples; `classes` gives the names to `probabilities`."""

    def __init__(self, path: Path, columns: Sequence[str], classes: Sequence[str]) -> None:
        import tensorflow as tf

        self._tf = tf
        self._classes = classes
        self._writer = tf.io.TFRecordWriter(str(path), "GZIP")

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._writer.write(self._example(row))

    def close(self) -> None:
        self._writer.close()

    def _example(self, row: Row) -> bytes:
        train = self._tf.train
        example = train.Example()
        feature = example.features.feature
        for name, value in row.items():
            if name == PROBABILITIES:
                feature[name].float_list.value[:] = [value[one] for one in self._classes]
                feature["classes"].bytes_list.value[:] = [one.encode() for one in self._classes]
            elif isinstance(value, int):
                feature[name].int64_list.value[:] = [value]
            elif isinstance(value, float):
                feature[name].float_list.value[:] = [value]
            else:
                feature[name].bytes_list.value[:] = [value.encode()]
        return example.SerializeToString(deterministic=True)


_KINDS: dict[str, Callable[[Path, Sequence[str], Sequence[str]], Table]] = {
    "jsonl": _JsonLines,
    "csv": _Csv,
    "parquet": _Parquet,
    "tfrecord": _Records,
}
