"""Where a drop is put together: beside the spans, by one process at a time, gone when it ends.

A span becomes visible by one rename after its files are on disk; a drop that was interrupted or
killed leaves nothing but its working folders, which the next one removes.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

import filelock
import msgspec

from graftline.components.ingest.spans import WORK, span_folder
from graftline.serving.errors import UserError
from graftline.serving.file_system import is_held, sync

_LOCK = "drop.lock"
_HOLDER = "drop.holder"
_BUILDING = "building"
_LOCK_SECONDS = 0.5


class _Holder(msgspec.Struct, frozen=True):
    """Who holds the lock."""

    process: int
    source: str
    since: str


class Workplace:
    """The folders of one drop while it is taken in.

    Attributes:
        folder: for whatever the drop needs on the way, on the spans' disk.
        version: becomes the version of the span.
        quarantine: becomes its quarantine; to be made.
    """

    def __init__(self, spans: Path, quarantine: Path) -> None:
        self._spans = spans
        self._quarantines = quarantine
        # A name of its own: a job that a killed drop left to a cluster must not write here.
        self.folder = spans / WORK / _BUILDING / uuid.uuid4().hex
        # Below a folder for the span, so that a span that is new appears in the same one rename.
        self.version = self.folder / "span" / "version"
        self.quarantine = quarantine / WORK

    def table(self) -> Path:
        """The table of all images."""
        return self._spans / WORK / "fingerprints.sqlite"

    def clear(self) -> None:
        """Removes what this drop, or one that was killed, left here.

        Raises:
            OSError: it cannot be removed.
        """
        for folder in (self.folder.parent, self.quarantine):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)

    def publish(self, number: int, version: int) -> None:
        """Makes the quarantine and then the version of the span visible.

        At no time is there a span without its quarantine. A quarantine without its span is one of a
        drop that was killed between the two renames, or of a span that a person removed: it is kept
        under another name.
        """
        target = span_folder(self._spans, number, version)
        if self.quarantine.exists():
            _sync_tree(self.quarantine)
            aside = span_folder(self._quarantines, number, version)
            aside.parent.mkdir(parents=True, exist_ok=True)
            if aside.exists():
                aside.rename(free_name(aside, ".earlier"))
            self.quarantine.rename(aside)
            sync(aside.parent)
        _sync_tree(self.version)
        named = self.version.with_name(target.name)
        self.version.rename(named)
        sync(named.parent)
        if target.parent.exists():
            named.rename(target)
            sync(target.parent)
        else:
            named.parent.rename(target.parent)
        sync(self._spans)


@contextlib.contextmanager
def workplace(spans: Path, quarantine: Path, source: Path) -> Iterator[Workplace]:
    """The workplace of a drop, empty, held against other processes; cleared at the end.

    Raises:
        UserError: another drop is under way, the disk is full, or a folder cannot be written.
    """
    if spans.resolve() == quarantine.resolve():
        raise UserError(
            f"paths.spans and paths.quarantine are the same folder, {spans}. Set one to another."
        )
    place = Workplace(spans, quarantine)
    with _explained(spans, place.table()):
        (spans / WORK).mkdir(parents=True, exist_ok=True)
        with _held(spans / WORK, source):
            place.clear()
            place.version.mkdir(parents=True)
            try:
                yield place
            finally:
                with contextlib.suppress(OSError):
                    place.clear()


def is_under_way(spans: Path) -> bool:
    """Whether a drop is being taken in."""
    return is_held(spans / WORK / _LOCK)


@contextlib.contextmanager
def _held(work: Path, source: Path) -> Iterator[None]:
    holder = work / _HOLDER
    try:
        # A drop that ends is given the time to let go.
        with filelock.FileLock(work / _LOCK, timeout=_LOCK_SECONDS):
            since = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            holder.write_bytes(msgspec.json.encode(_Holder(os.getpid(), str(source), since)))
            yield
    except filelock.Timeout:
        raise UserError(
            f"Another drop is under way in this project{_who(holder)}. Wait until it has ended, "
            "then drop again."
        ) from None


def _who(holder: Path) -> str:
    try:
        found = msgspec.json.decode(holder.read_bytes(), type=_Holder)
    except (OSError, msgspec.DecodeError):
        return ""
    return f": process {found.process} takes in {found.source}, since {found.since}"


@contextlib.contextmanager
def _explained(spans: Path, table: Path) -> Iterator[None]:
    """Says what a person can do about a disk that is full or a folder that is not writable."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(spans) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"{error.filename or spans} cannot be written: {error.strerror}. Nothing was taken "
                "in. Make it a folder that is writable for this user, or set paths.spans and "
                "paths.quarantine to others."
            ) from error
        raise
    except sqlite3.DatabaseError as error:
        # SQLite has words of its own for what befalls a disk.
        text = str(error)
        if "disk is full" in text:
            raise _full(spans) from error
        if "malformed" in text or "not a database" in text:
            table.unlink(missing_ok=True)
            raise UserError(
                f"The table of all images, {table}, was damaged ({text}) and is removed. Nothing "
                "was taken in. Drop again: the table is made anew from the spans."
            ) from error
        if "readonly" in text or "unable to open" in text:
            raise UserError(
                f"The table of all images, {table}, cannot be written ({text}). Nothing was taken "
                "in. Make it and its folder writable for this user, or remove it: it is made anew "
                "from the spans."
            ) from error
        raise


def _full(spans: Path) -> UserError:
    return UserError(
        f"The disk of {spans} is full. Nothing was taken in and nothing is left behind: make room, "
        "about twice the size of the source, and drop again."
    )


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))


def free_name(path: Path, suffix: str = "") -> Path:
    """A path beside this one, after it and numbered, where nothing is yet."""
    number = 1
    while (free := path.with_name(f"{path.name}{suffix}-{number}")).exists():
        number += 1
    return free
