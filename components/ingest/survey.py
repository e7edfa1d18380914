"""A quick look at a source for `graftline init`: classes, counts, usual size; headers only."""

from __future__ import annotations

import collections
import statistics
import tempfile
from pathlib import Path

import msgspec

from graftline.components.ingest import sources
from graftline.components.ingest.config import DropConfig
from graftline.serving.errors import UserError
from graftline.serving.image_check import Limits, UnusableImage, check_header

# Headers of this many files per class give the usual size.
_SAMPLE = 50


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What a source holds.

    Attributes:
        kind: folder, pre-split folder, manifest or TFRecords.
        classes: files per class.
        median_width: in pixels.
        median_height: in pixels.
    """

    kind: str
    classes: dict[str, int]
    median_width: int
    median_height: int


def survey(source: Path) -> Survey:
    """Looks at a source.

    Raises:
        UserError: it is none, holds no image, or fewer than two classes.
    """
    kind = sources.detect(source)
    config = DropConfig()
    with tempfile.TemporaryDirectory(prefix="graftline-survey-") as folder:
        if kind == sources.TFRECORDS:
            from graftline.components.ingest import own_records

            listing = sources.with_checked_labels(
                own_records.unpack(sources.record_files(source), config.features, Path(folder)),
                source,
            )
        else:
            listing = sources.entries(source, kind)
        counts: collections.Counter[str] = collections.Counter()
        sizes = []
        for entry in listing:
            if entry.label is None or sources.is_litter(entry.name):
                continue
            counts[entry.label] += 1
            if counts[entry.label] <= _SAMPLE:
                size = _size(entry.path, config)
                if size:
                    sizes.append(size)
    if not sizes:
        raise UserError(f"The source {source} holds no image that can be read.")
    if len(counts) < 2:
        raise UserError(
            f"The source {source} holds one class only, {next(iter(counts))!r}: a classifier needs "
            "at least two to tell apart. Put each class into a folder of its own."
        )
    return Survey(
        kind=kind,
        classes=dict(sorted(counts.items())),
        median_width=int(statistics.median(width for width, _ in sizes)),
        median_height=int(statistics.median(height for _, height in sizes)),
    )


def _size(path: Path, config: DropConfig) -> tuple[int, int] | None:
    try:
        header = check_header(
            path.read_bytes(), msgspec.convert(config, Limits, from_attributes=True)
        )
    except (UnusableImage, OSError):
        return None
    return header.width, header.height
