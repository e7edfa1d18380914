"""The worksheet of a drop: one row per file, on disk, from listing to shard.

Every stage reads rows and writes what it found into them, so that no stage holds the drop in
memory.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from graftline.components.ingest.entries import IGNORED, Entry
from graftline.components.ingest.examine import Finding


class Row(msgspec.Struct, frozen=True):
    """One file, or one record of a file; what it means: see Entry.

    Attributes:
        seq: its place in the listing, from 1.
    """

    seq: int
    path: Path
    name: str
    label: str | None
    given_split: str | None
    start: int
    size: int | None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What examining a file gave: a finding, or a reason why it cannot be used."""

    seq: int
    finding: Finding | None = None
    reason: str = ""
    detail: str = ""


# Columns `path` as bytes: a file's name need not be text.
_TABLES = """
CREATE TABLE listing (
    path BLOB, name TEXT, label TEXT, given_split TEXT, start INTEGER, size INTEGER,
    reason TEXT, detail TEXT);
CREATE TABLE files (
    seq INTEGER PRIMARY KEY, path BLOB, name TEXT, label TEXT, given_split TEXT, start INTEGER,
    size INTEGER, reason TEXT, detail TEXT, id TEXT, finding BLOB, grp TEXT, split TEXT);
"""
_ROW = "seq, path, name, label, given_split, start, size"
# The side that judges the model first: of images that lie on two sides, the first one stays.
_PRIORITY = "CASE given_split WHEN 'test' THEN 0 WHEN 'eval' THEN 1 WHEN 'train' THEN 2 ELSE 3 END"
_BATCH = 500


class Worksheet:
    """The rows of one drop."""

    def __init__(self, path: Path) -> None:
        """Opens the worksheet, makes it where there is none."""
        self.path = path
        is_new = not path.exists()
        self._db = sqlite3.connect(path)
        # It goes with the drop: nothing has to survive a crash.
        self._db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
        if is_new:
            self._db.executescript(_TABLES)

    def close(self) -> None:
        """Writes everything and closes."""
        self._db.commit()
        self._db.close()

    def list_files(self, entries: Iterable[Entry], *, in_order: bool) -> None:
        """Writes a row per entry.

        Args:
            entries: those to be ignored are counted only.
            in_order: whether their order means something; else they are put in that of the names.
        """
        self._db.executemany(
            "INSERT INTO listing VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    os.fsencode(entry.path),
                    os.fsencode(entry.name).decode("utf-8", errors="replace"),
                    entry.label,
                    entry.split,
                    entry.start,
                    entry.size,
                    entry.reason,
                    entry.detail,
                )
                for entry in entries
            ),
        )
        self._db.execute(
            "INSERT INTO files (path, name, label, given_split, start, size, reason, detail) "
            "SELECT * FROM listing WHERE reason<>? ORDER BY "
            + ("rowid" if in_order else "name, path"),
            (IGNORED,),
        )
        self._db.commit()

    def ignored(self) -> int:
        """Number of files that were listed and left out."""
        return self._count("listing WHERE reason=?", IGNORED)

    def listed(self) -> int:
        """Number of rows."""
        return self._count("files")

    def usable(self) -> int:
        """Number of rows not set aside so far."""
        return self._count("files WHERE reason=''")

    def to_examine(self, first: int, last: int) -> list[Row]:
        """Rows not set aside, by their place in the listing, both ends included."""
        found = self._db.execute(
            f"SELECT {_ROW} FROM files WHERE seq BETWEEN ? AND ? AND reason='' ORDER BY seq",
            (first, last),
        )
        return [_row(row) for row in found]

    def record(self, outcomes: Iterable[Outcome]) -> None:
        """Writes what examining gave."""
        self._db.executemany(
            "UPDATE files SET id=?, finding=?, reason=?, detail=? WHERE seq=?",
            (
                (
                    outcome.finding.id if outcome.finding else None,
                    msgspec.msgpack.encode(outcome.finding) if outcome.finding else None,
                    outcome.reason,
                    outcome.detail,
                    outcome.seq,
                )
                for outcome in outcomes
            ),
        )
        self._db.commit()

    def set_aside_conflicts(self, reason: str) -> None:
        """Sets aside every image that stands under several classes, with all of its rows."""
        self._db.execute("CREATE INDEX files_id ON files (id)")
        self._db.execute(
            "UPDATE files SET reason=?, detail='the same image stands under ' || ("
            "  SELECT group_concat(label, ' and ') FROM "
            "  (SELECT DISTINCT label FROM files AS other WHERE other.id=files.id ORDER BY label)) "
            "WHERE id IN (SELECT id FROM files WHERE id IS NOT NULL "
            "             GROUP BY id HAVING COUNT(DISTINCT label) > 1)",
            (reason,),
        )
        self._db.commit()

    def set_aside(self, seq: int, reason: str, detail: str) -> None:
        """Marks a row as not to be used."""
        self._db.execute("UPDATE files SET reason=?, detail=? WHERE seq=?", (reason, detail, seq))

    def assign(self, seq: int, group: str, split: str) -> None:
        """Gives a row its group and split."""
        self._db.execute("UPDATE files SET grp=?, split=? WHERE seq=?", (group, split, seq))

    def by_priority(self) -> Iterator[tuple[Row, Finding]]:
        """Rows not set aside: those given to test first, then eval, train, and the rest.

        Rows may be changed on the way.
        """
        self._db.execute(
            f"CREATE TEMP TABLE ranked AS SELECT seq AS row FROM files WHERE reason='' "
            f"ORDER BY {_PRIORITY}, seq"
        )
        last = 0
        while True:
            found = self._db.execute(
                f"SELECT ranked.rowid, {_ROW}, finding FROM ranked JOIN files ON row=seq "
                "WHERE ranked.rowid>? ORDER BY ranked.rowid LIMIT ?",
                (last, _BATCH),
            ).fetchall()
            if not found:
                return
            for _, *row, finding in found:
                yield _row(row), msgspec.msgpack.decode(finding, type=Finding)
            last = found[-1][0]

    def in_split(self, split: str) -> Iterator[tuple[Row, Finding, str]]:
        """Rows of a split with their group, in the order of their ids: classes come mixed."""
        for *row, finding, group in self._db.execute(
            f"SELECT {_ROW}, finding, grp FROM files WHERE reason='' AND split=? ORDER BY id",
            (split,),
        ):
            yield _row(row), msgspec.msgpack.decode(finding, type=Finding), group

    def set_aside_rows(self) -> Iterator[tuple[Row, str, str, Finding | None]]:
        """Rows set aside, with reason, detail and, where it could be read, what was found."""
        for *row, reason, detail, finding in self._db.execute(
            f"SELECT {_ROW}, reason, detail, finding FROM files WHERE reason<>'' ORDER BY seq"
        ):
            yield (
                _row(row),
                reason,
                detail,
                msgspec.msgpack.decode(finding, type=Finding) if finding else None,
            )

    def reasons(self) -> dict[str, int]:
        """Number of rows per reason."""
        return dict(
            self._db.execute(
                "SELECT reason, COUNT(*) FROM files WHERE reason<>'' GROUP BY reason "
                "ORDER BY COUNT(*) DESC, reason"
            ).fetchall()
        )

    def example(self, reason: str) -> tuple[str, str]:
        """Name and detail of the first row with this reason."""
        return self._db.execute(
            "SELECT name, detail FROM files WHERE reason=? ORDER BY seq LIMIT 1", (reason,)
        ).fetchone()

    def counts(self) -> dict[str, dict[str, int]]:
        """Images per split and class."""
        counts: dict[str, dict[str, int]] = {}
        for split, label, count in self._db.execute(
            "SELECT split, label, COUNT(*) FROM files WHERE reason='' GROUP BY split, label "
            "ORDER BY split, label"
        ):
            counts.setdefault(split, {})[label] = count
        return counts

    def resembling(self) -> int:
        """Number of kept images that belong to the group of another one."""
        return self._count("files WHERE reason='' AND grp<>id")

    def _count(self, where: str, *values: str) -> int:
        return self._db.execute(f"SELECT COUNT(*) FROM {where}", values).fetchone()[0]


def _row(columns: Iterable) -> Row:
    seq, path, *rest = columns
    return Row(seq, Path(os.fsdecode(path)), *rest)
