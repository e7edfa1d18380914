"""A quick look at a source for `graftline init`: classes, counts, usual size; headers only."""

from __future__ import annotations

import collections
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from graftline.components.ingest import sources
from graftline.components.ingest.config import DropConfig
from graftline.components.ingest.entries import Entry
from graftline.components.ingest.labels import CaseWatch
from graftline.components.ingest.sources import Source
from graftline.serving.errors import UserError
from graftline.serving.image_check import (
    Header,
    Limits,
    UnusableImage,
    check_header,
    check_size,
)

# Headers of this many files per class give the usual size.
_SAMPLE = 50


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What a source holds.

    Attributes:
        kind: folder per class, pre-split folders, manifest or TFRecords.
        classes: files per class, in the order of their names.
        formats: images per format, of those looked at.
        median_width: in pixels.
        median_height: in pixels.
    """

    kind: str
    classes: dict[str, int]
    formats: dict[str, int]
    median_width: int
    median_height: int


def survey(source: Path) -> Survey:
    """Looks at a source.

    Raises:
        UserError: it is none, holds no image, fewer than two classes, or two that differ only in
            case.
    """
    found = sources.detect(source)
    config = DropConfig()
    limits = msgspec.convert(config, Limits, from_attributes=True)
    counts: collections.Counter[str] = collections.Counter()
    headers: list[Header] = []
    watch = CaseWatch()
    refused = ""
    for entry in _entries(found, config):
        if entry.label is None or entry.reason:
            refused = refused or (f" {entry.name}: {entry.detail}." if entry.detail else "")
            continue
        watch.check(entry.label, entry.name)
        counts[entry.label] += 1
        if counts[entry.label] <= _SAMPLE:
            headers += _header(entry, limits)
    if not headers:
        raise UserError(
            f"The source {source} holds no image that can be read, with a class. Expected one "
            f"folder per class with its images, a manifest, or TFRecords.{refused}"
        )
    if len(counts) < 2:
        raise UserError(
            f"The source {source} holds one class only, {next(iter(counts))!r}: a classifier needs "
            "at least two to tell apart. Put each class into a folder of its own, or name the "
            "folder that holds the folders of the classes."
        )
    return Survey(
        kind=found.kind,
        classes=dict(sorted(counts.items())),
        formats=dict(collections.Counter(header.format for header in headers).most_common()),
        median_width=int(statistics.median(header.width for header in headers)),
        median_height=int(statistics.median(header.height for header in headers)),
    )


def _entries(source: Source, config: DropConfig) -> Iterator[Entry]:
    if source.kind != sources.TFRECORDS:
        yield from sources.entries(source)
        return
    # TensorFlow, which the other kinds do without.
    from graftline.components.ingest import own_records

    with tempfile.TemporaryDirectory(prefix="graftline-survey-") as folder:
        unpacked = Path(folder) / "unpacked"
        for entry in own_records.entries(source, config.features, unpacked):
            yield entry
            # Of what was looked at only a hole stays: records may be larger than this disk.
            os.truncate(unpacked, 0)


def _header(entry: Entry, limits: Limits) -> list[Header]:
    """The header of an image, or nothing where it cannot be used."""
    try:
        if not entry.path.is_file():
            return []
        size = entry.path.stat().st_size if entry.size is None else entry.size
        check_size(size, limits)
        with entry.path.open("rb") as stream:
            stream.seek(entry.start)
            return [check_header(stream.read(size), limits)]
    except (UnusableImage, OSError):
        return []
