"""The Beam stages of a drop, and the first of them: examining every file.

What flows through Beam are names of files that list images, never images: a runner keeps what it
passes between stages, and images would fill its memory. Every step reads and writes files itself,
in folders that all machines share, and can be repeated, also while it is still under way elsewhere,
so that any runner may retry it. The worksheet stays with the drop: SQLite is no good on a network's
disk.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import apache_beam as beam
import msgspec
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions

from graftline.components.ingest.examine import PixelBudget, examine
from graftline.components.ingest.worksheet import Outcome, Row, Worksheet
from graftline.components.progress import report
from graftline.serving.errors import UserError
from graftline.serving.image_check import Limits, UnusableImage, check_size

_CHUNK = 256
_OUTCOMES = ".outcomes"
_REPORT_EVERY = 1.0  # seconds
# Of a chain of tracebacks the last one counts.
_USER_ERROR = re.compile(r".*UserError: (.*?) \[while running", re.DOTALL)
_TABLE_FULL = "database or disk is full"
_SYSTEM_ERROR = re.compile(r"\[Errno (\d+)\] [^\n:]*(?:: '([^'\n]*)')?")

Given = TypeVar("Given")
Made = TypeVar("Made")


def run_stage(
    elements: Sequence[Any], step: beam.DoFn | beam.PTransform, options: Sequence[str]
) -> None:
    """Runs one step on every element.

    Args:
        elements: few and small.
        step: what to do with each; what it emits is dropped.
        options: of the Beam runner.

    Raises:
        UserError, OSError, KeyboardInterrupt: those that the step raised, of which a runner may
            pass on the text only.
    """
    try:
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            transform = beam.ParDo(step) if isinstance(step, beam.DoFn) else step
            _ = pipeline | beam.Create(elements) | transform
    except UserError as error:
        raise UserError(str(error).split(" [while running")[0]) from error
    except RuntimeError as error:
        text = str(error)
        if "KeyboardInterrupt" in text:
            raise KeyboardInterrupt from error
        if told := _USER_ERROR.search(text):
            raise UserError(told[1]) from error
        if _TABLE_FULL in text:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        if found := _SYSTEM_ERROR.search(text):
            number = int(found[1])
            raise OSError(number, os.strerror(number), found[2]) from error
        raise


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Given], Made], items: Iterable[Given], ahead: int
) -> Iterator[Made]:
    """Maps in threads, yields in order, and is never more than so many items ahead."""
    running: collections.deque[Future[Made]] = collections.deque()
    for item in items:
        running.append(pool.submit(work, item))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


class Meter:
    """Reports progress now and then."""

    def __init__(self, what: str, total: int, unit: str = "images") -> None:
        """Takes the beginning of the line, how many there will be (0: nobody knows), of what."""
        self._what = what
        self._total = total
        self._unit = unit
        self._done = 0
        self._started = self._last = time.monotonic()

    def add(self, count: int = 1) -> None:
        """Counts."""
        self._done += count
        now = time.monotonic()
        if now - self._last >= _REPORT_EVERY:
            self._last = now
            rate = self._done / (now - self._started)
            of = f"/{self._total}" if self._total else ""
            report(f"{self._what}  {self._done}{of}  {rate:.0f} {self._unit}/s")


def examine_files(sheet: Worksheet, limits: Limits, folder: Path, options: Sequence[str]) -> None:
    """Examines all files of the worksheet and writes what was found into it.

    Args:
        sheet: the worksheet.
        limits: what an image may be.
        folder: for a list of files and one of outcomes per chunk of rows; to be made.
        options: of the Beam runner.
    """
    folder.mkdir()
    chunks = [folder / f"{first:012d}" for first in range(1, sheet.listed() + 1, _CHUNK)]
    for chunk in chunks:
        first = int(chunk.name)
        rows = sheet.to_examine(first, first + _CHUNK - 1)
        chunk.write_bytes(msgspec.msgpack.encode([_File.of(row) for row in rows]))
    run_stage([str(chunk) for chunk in chunks], _Examine(limits, sheet.usable()), options)
    for chunk in chunks:
        found = chunk.with_suffix(_OUTCOMES)
        sheet.record(msgspec.msgpack.decode(found.read_bytes(), type=list[Outcome]))
        found.unlink()


class _File(msgspec.Struct, frozen=True, array_like=True):
    """What a chunk says of one file, or one record of a file: see Row."""

    seq: int
    path: bytes
    start: int
    size: int | None

    @staticmethod
    def of(row: Row) -> _File:
        """That of a row."""
        return _File(row.seq, os.fsencode(row.path), row.start, row.size)


class _Examine(beam.DoFn):
    """Examines the files of a chunk; decoders run outside Python's lock: threads use all cores."""

    def __init__(self, limits: Limits, total: int) -> None:
        self._limits = limits
        self._total = total

    def setup(self) -> None:
        hide_gpus()
        self._threads = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads)
        self._budget = PixelBudget(self._limits.max_pixels)
        self._meter = Meter("examining images", self._total)

    def teardown(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def process(self, element: str) -> None:
        chunk = Path(element)
        files = msgspec.msgpack.decode(chunk.read_bytes(), type=list[_File])
        outcomes = []
        for outcome in in_order(self._pool, self._outcome, files, 2 * self._threads):
            outcomes.append(outcome)
            self._meter.add()
        with appearing(chunk.with_suffix(_OUTCOMES)) as staged:
            staged.write_bytes(msgspec.msgpack.encode(outcomes))

    def _outcome(self, file: _File) -> Outcome:
        try:
            finding = examine(_read(file, self._limits), self._limits, self._budget)
        except UnusableImage as unusable:
            return Outcome(seq=file.seq, reason=unusable.reason, detail=unusable.detail)
        return Outcome(seq=file.seq, finding=finding)


@contextlib.contextmanager
def appearing(target: Path, beside: Path | None = None) -> Iterator[Path]:
    """A name to write a file under that appears whole, whoever else writes it at the same time.

    Args:
        target: where it appears.
        beside: a path on the same disk, beside which it is written; None: the target.
    """
    staged = (beside or target).with_name(f"{target.name}.{uuid.uuid4().hex}")
    yield staged
    staged.replace(target)


def _read(file: _File, limits: Limits) -> bytes:
    """The encoded image.

    Raises:
        UnusableImage: it cannot be read, or has too many bytes to be.
    """
    path = Path(os.fsdecode(file.path))
    try:
        if not path.is_file():
            raise UnusableImage(*_no_file(path))
        size = path.stat().st_size if file.size is None else file.size
        check_size(size, limits)
        with path.open("rb") as stream:
            stream.seek(file.start)
            return stream.read(size)
    except OSError as error:
        raise UnusableImage("unreadable", error.strerror or str(error)) from error


def _no_file(path: Path) -> tuple[str, str]:
    if path.exists():
        return "not-an-image", "it is no plain file"
    return "unreadable", f"there is no file {path}" + (
        ", its link leads nowhere" if path.is_symlink() else ""
    )


def hide_gpus() -> None:
    """Keeps this process from taking the memory of a GPU that it has no use for."""
    # Refused where TensorFlow is in use already: then its user has decided that.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
