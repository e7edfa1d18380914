"""Keeps what a drop could not use: the files as they came, and a list with the reasons."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from graftline.components.ingest.splits import DUPLICATE
from graftline.components.ingest.worksheet import Row

LIST = "quarantine.jsonl"


def fill(folder: Path, rows: Iterable[tuple[Row, str, str]], *, copy: bool) -> None:
    """Writes the list and copies the files.

    A duplicate is only listed: its bytes are in a span. So is a file that cannot be read.

    Args:
        folder: of this version of the span; made.
        rows: files with reason and detail.
        copy: whether the files are copied; a drop that is refused whole leaves them in the source.
    """
    folder.mkdir(parents=True)
    with (folder / LIST).open("wb") as stream:
        for row, reason, detail in rows:
            kept = None
            if copy and reason not in (DUPLICATE, "unreadable"):
                kept = _copy(Path(row.path), folder / reason, row)
            entry = {
                "file": row.name,
                "label": row.label,
                "reason": reason,
                "detail": detail,
                "kept": kept.relative_to(folder).as_posix() if kept else None,
            }
            stream.write(msgspec.json.encode(entry) + b"\n")


def _copy(source: Path, folder: Path, row: Row) -> Path | None:
    # The place in the listing makes the name unique; labels may hold slashes.
    label = (row.label or "").replace("/", "_")
    target = folder / label / f"{row.seq:06d}-{Path(row.name).name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except OSError:
        if not source.exists():
            return None
        raise
    return target
