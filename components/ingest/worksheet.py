"""The worksheet of a drop: one row per file, on disk, from listing to shard.

Every stage reads rows and writes what it found into them, so that no stage holds the drop in
memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from graftline.components.ingest.examine import Finding
from graftline.components.ingest.sources import Entry


class Row(msgspec.Struct, frozen=True):
    """One file.

    Attributes:
        seq: its place in the listing.
        path: the file.
        name: as people know it.
        label: class name, None where none is given.
        given_split: the split that the source gives, if it does.
    """

    seq: int
    path: str
    name: str
    label: str | None
    given_split: str | None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What examining a file gave: a finding, or a reason why it cannot be used."""

    seq: int
    finding: Finding | None = None
    reason: str = ""
    detail: str = ""


_TABLES = """
PRAGMA journal_mode=MEMORY;
PRAGMA synchronous=OFF;
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY, path TEXT, name TEXT, label TEXT, given_split TEXT,
    id TEXT, finding BLOB, reason TEXT DEFAULT '', detail TEXT DEFAULT '', grp TEXT, split TEXT);
"""


class Worksheet:
    """The rows of one drop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path)
        self._db.executescript(_TABLES)

    def close(self) -> None:
        """Writes everything and closes."""
        self._db.commit()
        self._db.close()

    def list_files(self, entries: Iterable[Entry]) -> int:
        """Writes a row per entry; returns how many."""
        self._db.executemany(
            "INSERT INTO files (path, name, label, given_split) VALUES (?, ?, ?, ?)",
            ((str(e.path), e.name, e.label, e.split) for e in entries),
        )
        self._db.commit()
        return self.count()

    def count(self, where: str = "1") -> int:
        """Number of rows that fulfil a condition."""
        return self._db.execute(f"SELECT COUNT(*) FROM files WHERE {where}").fetchone()[0]

    def record(self, outcomes: Iterable[Outcome]) -> None:
        """Writes what examining gave."""
        self._db.executemany(
            "UPDATE files SET id=?, finding=?, reason=?, detail=? WHERE seq=?",
            (
                (
                    o.finding.id if o.finding else None,
                    msgspec.msgpack.encode(o.finding) if o.finding else None,
                    o.reason,
                    o.detail,
                    o.seq,
                )
                for o in outcomes
            ),
        )
        self._db.commit()

    def index(self) -> None:
        """Prepares for looking rows up by image and by reason."""
        self._db.execute("CREATE INDEX IF NOT EXISTS files_id ON files (id)")
        self._db.commit()

    def set_aside(self, seqs: Sequence[int], reason: str, detail: str) -> None:
        """Marks rows as not to be used."""
        self._db.executemany(
            "UPDATE files SET reason=?, detail=? WHERE seq=?",
            ((reason, detail, seq) for seq in seqs),
        )

    def assign(self, seq: int, group: str, split: str) -> None:
        """Gives a row its group and split."""
        self._db.execute("UPDATE files SET grp=?, split=? WHERE seq=?", (group, split, seq))

    def usable(self) -> Iterator[tuple[Row, Finding]]:
        """Rows not set aside, in the order of the listing."""
        last = -1
        while True:
            found = self._db.execute(
                "SELECT seq, path, name, label, given_split, finding FROM files "
                "WHERE reason='' AND seq>? ORDER BY seq LIMIT 500",
                (last,),
            ).fetchall()
            if not found:
                return
            for *row, finding in found:
                yield Row(*row), msgspec.msgpack.decode(finding, type=Finding)
            last = found[-1][0]

    def conflicts(self) -> list[tuple[str, list[int], list[str]]]:
        """Images that stand under several labels: id, rows, labels."""
        ids = self._db.execute(
            "SELECT id FROM files WHERE reason='' GROUP BY id HAVING COUNT(DISTINCT label) > 1"
        ).fetchall()
        return [
            (
                id_,
                [r[0] for r in self._db.execute("SELECT seq FROM files WHERE id=?", (id_,))],
                [
                    r[0]
                    for r in self._db.execute(
                        "SELECT DISTINCT label FROM files WHERE id=? ORDER BY label", (id_,)
                    )
                ],
            )
            for (id_,) in ids
        ]

    def set_aside_rows(self) -> Iterator[tuple[Row, str, str]]:
        """Rows set aside, with reason and detail."""
        for *row, reason, detail in self._db.execute(
            "SELECT seq, path, name, label, given_split, reason, detail FROM files "
            "WHERE reason<>'' ORDER BY seq"
        ):
            yield Row(*row), reason, detail

    def reasons(self) -> dict[str, int]:
        """Number of rows per reason."""
        return dict(
            self._db.execute(
                "SELECT reason, COUNT(*) FROM files WHERE reason<>'' GROUP BY reason ORDER BY reason"
            ).fetchall()
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """Images per split and class."""
        counts: dict[str, dict[str, int]] = {}
        for split, label, count in self._db.execute(
            "SELECT split, label, COUNT(*) FROM files WHERE reason='' GROUP BY split, label "
            "ORDER BY split, label"
        ):
            counts.setdefault(split, {})[label] = count
        return counts

    def labels(self) -> list[str]:
        """Labels of all rows."""
        rows = self._db.execute("SELECT DISTINCT label FROM files WHERE label IS NOT NULL")
        return sorted(label for (label,) in rows)

    def in_split(self, split: str) -> Iterator[tuple[Row, Finding, str]]:
        """Rows of a split with their group, in the order of their ids: classes come mixed."""
        for *row, finding, group in self._db.execute(
            "SELECT seq, path, name, label, given_split, finding, grp FROM files "
            "WHERE reason='' AND split=? ORDER BY id",
            (split,),
        ):
            yield Row(*row), msgspec.msgpack.decode(finding, type=Finding), group

    def rows(self, first: int, count: int) -> list[Row]:
        """Rows by their place in the listing."""
        return [
            Row(*row)
            for row in self._db.execute(
                "SELECT seq, path, name, label, given_split FROM files WHERE seq>=? ORDER BY seq "
                "LIMIT ?",
                (first, count),
            )
        ]
