"""Keeps what a drop could not use: the files as they came, and a list with the reasons."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from graftline.components.ingest.examine import Finding
from graftline.components.ingest.splits import DUPLICATE
from graftline.components.ingest.worksheet import Row

LIST = "quarantine.jsonl"
# Their bytes are in a span already, or cannot be had.
_NOT_COPIED = (DUPLICATE, "unreadable")
# In bytes; file systems allow 255, and some are put before and behind.
_LONGEST_NAME = 200
_BLOCK = 1 << 20


def fill(folder: Path, rows: Iterable[tuple[Row, str, str, Finding | None]], *, copy: bool) -> None:
    """Writes the list and copies the files.

    An exact duplicate is only listed: its bytes are in a span. So is a file that cannot be read.

    Args:
        folder: to be made; when that fails, nothing is left of it.
        rows: files with reason, detail and what was found in them.
        copy: whether the files are copied; a drop that is refused whole leaves them in the source.
    """
    folder.mkdir(parents=True)
    try:
        _fill(folder, rows, copy)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _fill(folder: Path, rows: Iterable[tuple[Row, str, str, Finding | None]], copy: bool) -> None:
    with (folder / LIST).open("wb") as stream:
        for row, reason, detail, finding in rows:
            place = None
            if copy and reason not in _NOT_COPIED:
                place = _copy(row, folder, reason, finding)
            entry = {
                "file": row.name,
                "label": row.label,
                "reason": reason,
                "detail": detail,
                "kept": place,
            }
            stream.write(msgspec.json.encode(entry) + b"\n")


def _copy(row: Row, folder: Path, reason: str, finding: Finding | None) -> str | None:
    """Copies a file or record; returns its path below the folder.

    None where it went away, or is no plain file: a pipe would be waited for, a device never ends.
    """
    if not row.path.is_file():
        return None
    # The place in the listing makes the name unique; classes and names may hold anything.
    label = (row.label or "").replace("/", "_").lstrip(".")
    label = label.encode()[:_LONGEST_NAME].decode(errors="ignore")
    name = row.name.rsplit("/", 1)[-1].encode()[-_LONGEST_NAME:].decode(errors="ignore")
    if row.size is not None:
        name += f".{finding.format.lower()}" if finding else ".bin"
    target = folder / reason / label / f"{row.seq:06d}-{name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source = row.path.open("rb")
    except OSError:
        return None
    with source, target.open("xb") as copied:
        source.seek(row.start)
        if row.size is None:
            shutil.copyfileobj(source, copied, _BLOCK)
        else:
            copied.write(source.read(row.size))
    return target.relative_to(folder).as_posix()
