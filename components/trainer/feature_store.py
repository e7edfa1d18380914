"""What fixed networks made of images, kept on disk from run to run and found by the image's id.

A folder per network, view and cut holds two files per writer: `<writer>.rows`, float32 rows of one
shape one after the other, and `<writer>.index`, for each of them the image and a checksum. A row
counts once its index entry is whole, so that what was computed before a crash is found again, and a
row that the disk has damaged is computed anew. Memory: some bytes per image, never a row.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from graftline.serving.errors import UserError

_ENTRY = np.dtype([("id", "<u8"), ("checksum", "<u4")])
_USED = "used"
_MADE_BY = "made_by.json"


@dataclass(frozen=True)
class _Segment:
    """The rows of one writer.

    Attributes:
        rows, index: its files.
        start: position of its first row in the store.
    """

    rows: IO[bytes]
    index: IO[bytes]
    start: int


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


class FeatureStore:
    """Rows of one shape, by image.

    Args:
        folder: where they are kept; None: in files without a name, which vanish with the process.
        shape: shape of one row.
        scratch: where files without a name go; None: the system's folder for temporary files.
        writer: number of this process among those that write at once.
    """

    def __init__(
        self,
        folder: Path | None,
        shape: tuple[int, ...],
        scratch: Path | None = None,
        writer: int = 0,
    ) -> None:
        self.shape = shape
        self._row_bytes = int(np.prod(shape)) * 4
        self._segments: list[_Segment] = []
        # Of all segments, one after the other.
        self._entries = [np.empty(0, _ENTRY)]
        self._count = 0
        self._sorted: tuple[np.ndarray, np.ndarray] | None = None
        own = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _USED).touch()
            own = self._own(folder, writer)
            for path in sorted(folder.glob("*.rows")):
                if own is None or path.name != f"{writer}.rows":
                    with contextlib.suppress(FileNotFoundError):
                        self._add(path.open("rb"), path.with_suffix(".index").open("rb"))
        if own is None:
            own = _nameless(scratch), _nameless(scratch)
        self._add(*own)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Where the rows of some images are.

        Args:
            ids: uint64 (N,).

        Returns:
            int64 (N,): positions for `read`; -1 where there is none, or one that is damaged.
        """
        if self._sorted is None:
            self._sorted = self._newest()
        known, positions = self._sorted
        if not len(known):
            return np.full(len(ids), -1, np.int64)
        places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[places] == ids, positions[places], -1)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """float32 (len(positions), *shape), in the order asked for."""
        rows = np.empty((len(positions), *self.shape), np.float32)
        starts = [segment.start for segment in self._segments]
        owners = np.searchsorted(starts, positions, side="right") - 1
        for row, position, owner in zip(rows, positions, owners, strict=True):
            segment = self._segments[owner]
            offset = int(position - segment.start) * self._row_bytes
            # Not a memory map: pages that were read would count as memory of this process.
            if os.preadv(segment.rows.fileno(), [row.data], offset) != self._row_bytes:
                raise OSError(f"{segment.rows.name} has become shorter while it was read")
        return rows

    def append(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Adds rows.

        Args:
            ids: uint64 (N,).
            rows: (N, *shape).

        Raises:
            UserError: the disk is full.
        """
        rows = np.ascontiguousarray(rows, np.float32)
        entries = np.empty(len(ids), _ENTRY)
        entries["id"] = ids
        entries["checksum"] = [zlib.crc32(row.data) for row in rows]
        own = self._segments[-1]
        written = self._count - own.start
        try:
            _write(own.rows, rows.data, written * self._row_bytes)
            _write(own.index, entries.data, written * _ENTRY.itemsize)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                "The disk is full: what the network made of the images cannot be stored. Free some "
                "space and resume, or lower trainer.feature_store_gb and start anew with "
                "`graftline run`."
            ) from error
        self._note(entries)

    def forget_damaged(self, ids: np.ndarray) -> int:
        """Reads the rows of some images and forgets those that are not what was written.

        Args:
            ids: uint64 (N,).

        Returns:
            how many were forgotten.
        """
        positions = np.unique(self.find(ids))
        checksums = np.concatenate(self._entries)["checksum"]
        damaged = [
            position
            for position in positions[positions >= 0]
            if zlib.crc32(self.read(np.array([position]))[0].data) != checksums[position]
        ]
        known, places = self._sorted or self._newest()
        kept = ~np.isin(places, damaged)
        self._sorted = known[kept], places[kept]
        return len(damaged)

    def close(self) -> None:
        """Lets another process write, and the files without a name vanish."""
        for segment in self._segments:
            segment.rows.close()
            segment.index.close()

    def _own(self, folder: Path, writer: int) -> tuple[IO[bytes], IO[bytes]] | None:
        """The files that this process alone writes; None while another one does."""
        rows = (folder / f"{writer}.rows").open("a+b", buffering=0)
        try:
            fcntl.flock(rows, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            rows.close()
            return None
        return rows, (folder / f"{writer}.index").open("a+b", buffering=0)

    def _add(self, rows: IO[bytes], index: IO[bytes]) -> None:
        count = min(_size(index) // _ENTRY.itemsize, _size(rows) // self._row_bytes)
        index.seek(0)
        self._segments.append(_Segment(rows, index, self._count))
        self._note(np.frombuffer(index.read(count * _ENTRY.itemsize), _ENTRY))

    def _note(self, entries: np.ndarray) -> None:
        self._entries.append(entries)
        self._count += len(entries)
        self._sorted = None

    def _newest(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids in ascending order, and the newest position of each."""
        ids = np.concatenate(self._entries)["id"]
        # Of several rows of an image the last one counts: it was written where one was damaged.
        known, last = np.unique(ids[::-1], return_index=True)
        return known, (len(ids) - 1 - last).astype(np.int64)


def _nameless(folder: Path | None) -> IO[bytes]:
    return tempfile.TemporaryFile(buffering=0, dir=folder)


def _write(file: IO[bytes], content: memoryview, offset: int) -> None:
    """Writes at a place, over what a torn write has left there."""
    os.truncate(file.fileno(), offset)
    content = content.cast("B")
    while content:
        content = content[file.write(content) :]


def describe(folder: Path, made_by: Mapping[str, Any]) -> None:
    """Writes into the folder of a store what made its rows."""
    with contextlib.suppress(OSError):  # without it the store stays until it is beyond the bound
        (folder / _MADE_BY).write_text(json.dumps(made_by, sort_keys=True))


def made_by(folder: Path) -> dict[str, Any]:
    """What made the rows of a store; empty where that is not known."""
    try:
        return json.loads((folder / _MADE_BY).read_text())
    except (OSError, ValueError):
        return {}


def outputs_in(root: Path) -> set[str]:
    """The names of what the stores of a folder hold, of whatever network."""
    return {made_by(folder).get("output", "") for folder in root.glob("*")}


def bytes_in(root: Path) -> int:
    """How much all stores in a folder take."""
    with contextlib.suppress(FileNotFoundError):
        return sum(_bytes_of(path) for path in root.iterdir() if path.is_dir())
    return 0


def keep_within(root: Path, most_bytes: float, wanted: Collection[str]) -> None:
    """Removes the stores that were not used for longest until the others take no more than that.

    Args:
        root: holds a folder per store.
        most_bytes: how much all but the wanted ones may take.
        wanted: names of stores that stay.
    """
    stores = [path for path in root.iterdir() if path.is_dir() and path.name not in wanted]
    for path in beyond(stores, most_bytes):
        shutil.rmtree(path, ignore_errors=True)


def beyond(stores: Sequence[Path], most_bytes: float) -> list[Path]:
    """Those unused for longest, without which the others take no more than so many bytes."""
    sizes = {path: _bytes_of(path) for path in stores}
    total = sum(sizes.values())
    leaving = []
    for path in sorted(stores, key=_last_used):
        if total <= most_bytes:
            break
        leaving.append(path)
        total -= sizes[path]
    return leaving


def _bytes_of(store: Path) -> int:
    # Another worker may be removing it.
    with contextlib.suppress(FileNotFoundError):
        return sum(file.stat().st_size for file in store.iterdir())
    return 0


def _last_used(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return (path / _USED).stat().st_mtime
    return 0.0
