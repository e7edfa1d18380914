"""Keeps a share of the requests with their answers as TFRecords, to see how the data changes.

    <folder>/requests-<time>.tfrecord    image, id, classes, scores, version, label, time

A thread writes; what it cannot take at once is dropped and counted, and so is what the disk does
not take. A request is never slower for it and never fails by it. Callers are not kept.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import logging
import os
import queue
import random
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from graftline.serving.errors import UserError
from graftline.serving.gateway.config import SampleConfig
from graftline.serving.gateway.metrics import Metrics
from graftline.serving.gateway.model_server import Classification
from graftline.serving.protos import declare
from graftline.serving.tfrecords import frame

_ROOM = 16  # requests that wait for the disk
_LAST_SECONDS = 5.0
_MESSAGES = declare(
    "graftline.samples",
    {
        "BytesList": {"value": (1, "repeated bytes")},
        "FloatList": {"value": (1, "repeated float")},
        "Int64List": {"value": (1, "repeated int64")},
        "Feature": {
            "bytes_list": (1, "BytesList"),
            "float_list": (2, "FloatList"),
            "int64_list": (3, "Int64List"),
        },
        "NamedFeature": {"key": (1, "string"), "value": (2, "Feature")},
        "Features": {"feature": (1, "repeated NamedFeature")},
        "Example": {"features": (1, "Features")},
    },
)
_log = logging.getLogger(__name__)


class Sampler:
    """Keeps requests."""

    def __init__(self, config: SampleConfig, metrics: Metrics) -> None:
        """Starts the thread that writes.

        Raises:
            UserError: the folder cannot be made.
        """
        self._share = config.percent / 100
        self._folder = Path(config.folder)
        self._file_bytes = config.file_bytes
        self._files = config.files
        self._metrics = metrics
        self._queue: queue.Queue[tuple[bytes, Classification, str, float] | None]
        self._queue = queue.Queue(_ROOM)
        self._file: BinaryIO | None = None
        self._thread: threading.Thread | None = None
        if not self._share:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The folder of samples {self._folder} cannot be made: {error.strerror}."
            ) from error
        self._thread = threading.Thread(target=self._write_all, name="sampler", daemon=True)
        self._thread.start()

    def offer(self, image: bytes, answer: Classification, label: str) -> None:
        """Keeps a request, if it is chosen and there is room."""
        if not self._share or random.random() >= self._share:
            return
        try:
            self._queue.put_nowait((image, answer, label, time.time()))
        except queue.Full:
            self._metrics.samples.labels("dropped").inc()

    def close(self) -> None:
        """Writes what waits and closes the file. It waits for the disk: call it in a thread."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):  # the disk hangs: what waits is lost
                self._queue.put(None, timeout=_LAST_SECONDS)
            self._thread.join(_LAST_SECONDS)

    def _write_all(self) -> None:
        while (sample := self._queue.get()) is not None:
            try:
                self._write(frame(_example(*sample)))
                self._metrics.samples.labels("written").inc()
            except OSError as error:
                self._metrics.samples.labels("failed").inc()
                _log.error("A sample cannot be written to %s: %s", self._folder, error)
                self._finish()
        self._finish()

    def _write(self, record: bytes) -> None:
        if self._file is None:
            self._begin()
        assert self._file is not None
        begin = self._file.tell()
        # In one call, unbuffered: a file that is read meanwhile ends after a whole record.
        if self._file.write(record) != len(record):
            self._file.truncate(begin)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._file.tell() >= self._file_bytes:
            self._finish()

    def _begin(self) -> None:
        old = sorted(self._folder.glob("requests-*.tfrecord"))
        for file in old[: max(0, len(old) - self._files + 1)]:
            file.unlink(missing_ok=True)
        now = datetime.datetime.now(datetime.timezone.utc)
        name = f"requests-{now:%Y%m%dT%H%M%S%f}.tfrecord"
        self._file = (self._folder / name).open("xb", buffering=0)

    def _finish(self) -> None:
        """Ends the file at hand; the next record begins another."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _example(image: bytes, answer: Classification, label: str, when: float) -> bytes:
    example = _MESSAGES["Example"]()

    def add(name: str, kind: str, values: list[Any]) -> None:
        feature = example.features.feature.add(key=name).value
        getattr(feature, kind).value.extend(values)

    add("image", "bytes_list", [image])
    add("id", "bytes_list", [hashlib.sha256(image).hexdigest().encode()])
    add("classes", "bytes_list", [name.encode() for name in answer.classes])
    add("scores", "float_list", answer.scores)
    add("version", "int64_list", [answer.version])
    add("label", "bytes_list", [label.encode()])
    add("time", "int64_list", [round(when)])
    serialized: bytes = example.SerializeToString()
    return serialized
