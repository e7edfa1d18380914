"""Finds near-duplicates among the images of all spans, on disk.

Two images are near-duplicates when their perceptual hashes are close and their thumbnails agree.
Candidates come from a table that maps parts of the 64-bit hash to images: two hashes that differ
in fewer bits than there are parts agree in at least one part (multi-index hashing: Norouzi, Punjani
and Fleet, CVPR 2012). The thumbnails then decide, so that images that merely share a layout, such as
scans of one board, are not confused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as parquet

from graftline.components.ingest.examine import THUMBNAIL
from graftline.components.ingest.spans import IMAGES, Span

FILE_NAME = ".fingerprints.sqlite"

# Widths of the parts of the hash: any two hashes less than seven bits apart share a part.
_PARTS = (10, 9, 9, 9, 9, 9, 9)
_MOST_BITS_APART = 12
_LEAST_CORRELATION = 0.985
_MOST_ASPECT_DIFFERENCE = 0.04
# A thumbnail with less contrast than this says nothing about the image.
_LEAST_CONTRAST = 3.0


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is in a span, or in the drop under way (span 0)."""

    id: str
    group: str
    split: str
    label: str
    span: int


class Fingerprints:
    """The images of all spans: by id, and by what they look like."""

    def __init__(self, root: Path) -> None:
        """Opens the table below the folder of the spans; `update` brings it up to date."""
        self._path = root / FILE_NAME
        self._db = _open(self._path)

    def close(self) -> None:
        """Keeps what spans hold, forgets the drop under way."""
        self._db.rollback()
        self._db.close()

    def update(self, spans: Sequence[Span]) -> None:
        """Makes the table hold exactly these versions; reads only those that it lacks."""
        wanted = {(span.number, span.version): span for span in spans}
        held = set(self._db.execute("SELECT span, version FROM held"))
        for span, version in held - set(wanted):
            self._db.execute("DELETE FROM parts WHERE image IN (SELECT rowid FROM images WHERE span=?)", (span,))
            self._db.execute("DELETE FROM images WHERE span=?", (span,))
            self._db.execute("DELETE FROM held WHERE span=? AND version=?", (span, version))
        for key in sorted(set(wanted) - held):
            for batch in parquet.ParquetFile(wanted[key].path / IMAGES).iter_batches(4096):
                for row in batch.to_pylist():
                    self.add(Known(span=key[0], **{k: row[k] for k in ("id", "group", "split", "label")}),
                             int(row["hash"]), row["thumbnail"], row["aspect"])
            self._db.execute("INSERT INTO held VALUES (?, ?)", key)
        self._db.commit()

    def add(self, image: Known, hash_: int, thumbnail: bytes, aspect: float) -> None:
        """Adds an image; one of the drop under way (span 0) only until `close`."""
        row = self._db.execute(
            "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (image.id, image.group, image.split, image.label, image.span, _signed(hash_), thumbnail, aspect),
        ).lastrowid
        self._db.executemany(
            "INSERT INTO parts VALUES (?, ?)", [(part, row) for part in _parts(hash_)]
        )

    def find(self, id_: str, without_span: int) -> Known | None:
        """The image with exactly these bytes, in any span but one."""
        row = self._db.execute(
            "SELECT id, grp, split, label, span FROM images WHERE id=? AND span<>?",
            (id_, without_span),
        ).fetchone()
        return _known(row) if row else None

    def near(self, hash_: int, thumbnail: bytes, aspect: float, without_span: int) -> list[Known]:
        """The near-duplicates of an image, those added first coming first.

        Args:
            hash_: 64-bit perceptual hash.
            thumbnail: luma, THUMBNAIL by THUMBNAIL bytes.
            aspect: width by height.
            without_span: images of this span are left out, for it is being replaced.
        """
        probe = _normalised(thumbnail)
        if probe is None:
            return []
        marks = ",".join("?" * len(_PARTS))
        rows = self._db.execute(
            f"SELECT id, grp, split, label, span, hash, thumbnail, aspect FROM images WHERE rowid IN "  # noqa: S608
            f"(SELECT image FROM parts WHERE part IN ({marks})) AND span<>? ORDER BY rowid",
            (*_parts(hash_), without_span),
        )
        found = []
        for row in rows:
            if (hash_ ^ _unsigned(row[5])).bit_count() > _MOST_BITS_APART:
                continue
            if abs(np.log(aspect / row[7])) > _MOST_ASPECT_DIFFERENCE:
                continue
            other = _normalised(row[6])
            if other is not None and float(probe @ other) >= _LEAST_CORRELATION:
                found.append(_known(row))
        return found


def _open(path: Path) -> sqlite3.Connection:
    """Opens the table; it is derived from the spans, so a damaged one is made anew."""
    try:
        return _with_tables(path)
    except sqlite3.DatabaseError:
        path.unlink()
        return _with_tables(path)


def _with_tables(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    database.executescript(
        """
        PRAGMA journal_mode=MEMORY;
        PRAGMA cache_size=-65536;
        CREATE TABLE IF NOT EXISTS held (span INTEGER, version INTEGER);
        CREATE TABLE IF NOT EXISTS images (id TEXT, grp TEXT, split TEXT, label TEXT, span INTEGER,
                                           hash INTEGER, thumbnail BLOB, aspect REAL);
        CREATE INDEX IF NOT EXISTS images_id ON images (id);
        CREATE TABLE IF NOT EXISTS parts (part INTEGER, image INTEGER);
        CREATE INDEX IF NOT EXISTS parts_part ON parts (part);
        CREATE INDEX IF NOT EXISTS parts_image ON parts (image);
        """
    )
    return database


def _known(row: tuple) -> Known:
    return Known(id=row[0], group=row[1], split=row[2], label=row[3], span=row[4])


def _parts(hash_: int) -> list[int]:
    """The parts of a hash, each marked with its place."""
    found = []
    for place, width in enumerate(_PARTS):
        found.append(place << 16 | hash_ & ((1 << width) - 1))
        hash_ >>= width
    return found


def _signed(hash_: int) -> int:
    """SQLite's integers are signed."""
    return hash_ - (1 << 64) if hash_ >= 1 << 63 else hash_


def _unsigned(hash_: int) -> int:
    return hash_ % (1 << 64)


def _normalised(thumbnail: bytes) -> np.ndarray | None:
    """The thumbnail as a vector of mean 0 and length 1; None where it has next to no contrast."""
    values = np.frombuffer(thumbnail, np.uint8, THUMBNAIL * THUMBNAIL).astype(np.float32)
    values -= values.mean()
    length = float(np.linalg.norm(values))
    return values / length if length > _LEAST_CONTRAST * THUMBNAIL else None
