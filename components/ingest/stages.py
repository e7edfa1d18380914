"""The Beam stages of a drop, and the first of them: examining every file.

What flows through Beam are ranges of the worksheet's rows, never images: a runner keeps what it
passes between stages, and images would fill its memory. Every step reads and writes files itself
and can be repeated, so that any runner may retry it.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import re
import threading
import time
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

    def __init__(self, what: str, total: int) -> None:
        """Takes the beginning of the line, and how many there will be, 0 where nobody knows."""
        self._what = what
        self._total = total
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
            report(f"{self._what}  {self._done}{of}  {rate:.0f} images/s")


def examine_files(sheet: Worksheet, limits: Limits, folder: Path, options: Sequence[str]) -> None:
    """Examines all files of the worksheet and writes what was found into it.

    Args:
        sheet: the worksheet.
        limits: what an image may be.
        folder: for the outcomes, one file per chunk of rows; to be made.
        options: of the Beam runner.
    """
    folder.mkdir()
    rows = sheet.listed()
    chunks = [(first, min(first + _CHUNK - 1, rows)) for first in range(1, rows + 1, _CHUNK)]
    run_stage(chunks, _Examine(sheet.path, limits, folder, sheet.usable()), options)
    for path in sorted(folder.glob("*.msgpack")):
        sheet.record(msgspec.msgpack.decode(path.read_bytes(), type=list[Outcome]))
        path.unlink()


class _Examine(beam.DoFn):
    """Examines a range of rows; decoders run outside Python's lock, so threads use all cores."""

    def __init__(self, sheet: Path, limits: Limits, folder: Path, total: int) -> None:
        self._sheet = str(sheet)
        self._limits = limits
        self._folder = str(folder)
        self._total = total

    def setup(self) -> None:
        self._threads = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads)
        self._budget = PixelBudget(self._limits.max_pixels)
        self._meter = Meter("examining images", self._total)

    def teardown(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def process(self, element: tuple[int, int]) -> None:
        sheet = Worksheet(Path(self._sheet))
        rows = sheet.to_examine(*element)
        sheet.close()
        outcomes = []
        for outcome in in_order(self._pool, self._outcome, rows, 2 * self._threads):
            outcomes.append(outcome)
            self._meter.add()
        target = Path(self._folder) / f"{element[0]:012d}.msgpack"
        staged = target.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        staged.write_bytes(msgspec.msgpack.encode(outcomes))
        staged.replace(target)

    def _outcome(self, row: Row) -> Outcome:
        try:
            finding = examine(read(row, self._limits), self._limits, self._budget)
        except UnusableImage as unusable:
            return Outcome(seq=row.seq, reason=unusable.reason, detail=unusable.detail)
        return Outcome(seq=row.seq, finding=finding)


def read(row: Row, limits: Limits) -> bytes:
    """The encoded image of a row.

    Raises:
        UnusableImage: it cannot be read, or has too many bytes to be.
    """
    try:
        if not row.path.is_file():
            raise UnusableImage(*_no_file(row.path))
        size = row.path.stat().st_size if row.size is None else row.size
        check_size(size, limits)
        with row.path.open("rb") as stream:
            stream.seek(row.start)
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
