"""What images there are, on disk: found by their bytes, and by what they look like.

One such table holds the images of all spans and stays; it is derived from them, brought up to
date in every drop, and made anew when it is lost or damaged. Another holds the images of the drop
under way and goes with it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as parquet

from graftline.components.ingest import likeness
from graftline.components.ingest.spans import IMAGES, Span
from graftline.serving.errors import UserError

# Raised whenever tables of older programs can no longer be used.
_FORMAT = 1
_BATCH = 1000
# Forms of which there are so many (thousands of blank pages) are compared with the first of them.
_MOST_CANDIDATES = 2000

_TABLES = """
CREATE TABLE held (span INTEGER, version INTEGER, PRIMARY KEY (span, version));
CREATE TABLE images (number INTEGER PRIMARY KEY, span INTEGER, version INTEGER, id TEXT, grp TEXT,
                     split TEXT, label TEXT, file TEXT, thumbnail BLOB);
CREATE INDEX images_id ON images (id);
CREATE TABLE keys (key BLOB, image INTEGER, PRIMARY KEY (key, image)) WITHOUT ROWID;
"""
_COLUMNS = "number, span, version, id, grp, split, label, file"


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is in a span, or was kept of the drop under way (span and version 0)."""

    id: str
    group: str
    split: str
    label: str
    file: str
    span: int = 0
    version: int = 0

    @property
    def where(self) -> str:
        """In words."""
        return f"{self.file} of span {self.span}" if self.span else self.file


class Fingerprints:
    """A table of images."""

    def __init__(self, path: Path) -> None:
        """Opens the table, makes it where there is none or only a damaged one."""
        try:
            self._db = _open(path)
        except sqlite3.OperationalError:  # The disk's fault, not the table's.
            raise
        except sqlite3.DatabaseError:
            path.unlink()
            self._db = _open(path)

    def close(self) -> None:
        """Closes the table; what was added by `add` alone is not kept."""
        self._db.close()

    def update(self, spans: Sequence[Span]) -> None:
        """Makes the table hold exactly these versions of spans; reads only those that it lacks.

        Raises:
            UserError: the images of a span cannot be read.
        """
        wanted = {(span.number, span.version): span for span in spans}
        held = set(self._db.execute("SELECT span, version FROM held"))
        for gone in held - set(wanted):
            self._remove(*gone)
        for key in sorted(set(wanted) - held):
            with self._db:
                self._read(wanted[key])

    def add(self, image: Known, hash_: int, thumbnail: bytes) -> None:
        """Adds an image with its perceptual hash and thumbnail."""
        number = self._db.execute(
            "INSERT INTO images VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                image.span,
                image.version,
                image.id,
                image.group,
                image.split,
                image.label,
                image.file,
                thumbnail,
            ),
        ).lastrowid
        # Blanks all have the same keys, and are never looked for.
        if likeness.has_structure(thumbnail):
            self._db.executemany(
                "INSERT INTO keys VALUES (?, ?)", [(key, number) for key in likeness.keys(hash_)]
            )

    def same(self, id_: str) -> list[Known]:
        """The images with exactly these bytes, in the order in which they came."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM images WHERE id=? ORDER BY span, version, number", (id_,)
        )
        return [_known(row) for row in rows]

    def near(self, hash_: int, thumbnail: bytes) -> list[Known]:
        """The near-duplicates of an image with structure, in the order in which they came."""
        keys = likeness.keys(hash_)
        rows = self._db.execute(
            f"SELECT {_COLUMNS}, thumbnail FROM images WHERE number IN "
            f"(SELECT image FROM keys WHERE key IN ({','.join('?' * len(keys))}) LIMIT ?)",
            (*keys, _MOST_CANDIDATES),
        ).fetchall()
        if not rows:
            return []
        alike = likeness.alike(thumbnail, [row[-1] for row in rows])
        found = sorted(row for row, is_alike in zip(rows, alike, strict=True) if is_alike)
        return sorted(map(_known, found), key=lambda image: (image.span, image.version))

    def _remove(self, span: int, version: int) -> None:
        with self._db:
            of_version = "span=? AND version=?"
            self._db.execute(
                f"DELETE FROM keys WHERE image IN (SELECT number FROM images WHERE {of_version})",
                (span, version),
            )
            self._db.execute(f"DELETE FROM images WHERE {of_version}", (span, version))
            self._db.execute(f"DELETE FROM held WHERE {of_version}", (span, version))

    def _read(self, span: Span) -> None:
        for row in _rows(span):
            hash_, thumbnail = row.pop("hash"), row.pop("thumbnail")
            self.add(Known(**row, span=span.number, version=span.version), hash_, thumbnail)
        self._db.execute("INSERT INTO held VALUES (?, ?)", (span.number, span.version))


def _rows(span: Span) -> Iterator[dict[str, Any]]:
    path = span.path / IMAGES
    try:
        with parquet.ParquetFile(path) as images:
            for batch in images.iter_batches(_BATCH):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({error}): the span was changed by another hand, and without "
            "this file its images cannot be told from new ones. Put it back, or remove "
            f"{span.path} and drop its images again."
        ) from error


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    try:
        # Bounds the memory that a large table takes; in kibibytes.
        database.execute("PRAGMA cache_size=-32768")
        (found,) = database.execute("PRAGMA user_version").fetchone()
        if found != _FORMAT:
            if found or database.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise sqlite3.DatabaseError(f"format {found}")
            database.executescript(f"BEGIN; {_TABLES} PRAGMA user_version={_FORMAT}; COMMIT;")
    except sqlite3.DatabaseError:
        database.close()
        raise
    return database


def _known(row: tuple) -> Known:
    _, span, version, id_, group, split, label, file = row[:8]
    return Known(
        id=id_, group=group, split=split, label=label, file=file, span=span, version=version
    )
