"""Takes a drop in: from a source of labelled images to one version of one span, whole or not at all.

List the files, examine each, find duplicates and divide into splits, write the shards: all in a
folder beside the spans, which becomes the span in one rename. See docs/drops.md.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock
import msgspec
import pyarrow as pa
import pyarrow.parquet as parquet

from graftline.components.ingest import own_records, quarantine, sources, splits, stages
from graftline.components.ingest.config import DropConfig
from graftline.components.ingest.examine import THUMBNAIL
from graftline.components.ingest.fingerprints import Fingerprints
from graftline.components.ingest.spans import (
    IMAGES,
    SPLITS,
    SUMMARY,
    Span,
    Summary,
    find_span,
    list_spans,
    newest_versions,
)
from graftline.components.ingest.worksheet import Worksheet
from graftline.components.progress import report
from graftline.serving.errors import UserError
from graftline.serving.history import now
from graftline.serving.image_check import Limits

_BUILDING = ".building"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("hash", pa.uint64()),
        ("thumbnail", pa.binary(THUMBNAIL * THUMBNAIL)),
        ("aspect", pa.float64()),
    ]
)


def drop(
    source: Path,
    spans: Path,
    quarantined: Path,
    config: DropConfig,
    classes: Sequence[str],
    *,
    span: int | None = None,
    version: int | None = None,
    beam_options: Sequence[str],
) -> Span:
    """Takes a drop in.

    Args:
        source: folder, manifest or TFRecords.
        spans: folder of the spans.
        quarantined: folder of what cannot be used.
        config: the section `drop`.
        classes: those of the schema; others are taken in with a warning.
        span: number of the span; None: one more than the highest.
        version: version of the span; None: 1, for a span that is not there yet.
        beam_options: of the Beam runner.

    Raises:
        UserError: the source, the span or the version cannot be; too much would be quarantined;
            another drop is under way; a disk is full. Nothing is left behind.
    """
    kind = sources.detect(source)
    with _alone(spans), _explained(spans):
        number, version = _choose(spans, span, version)
        building = spans / _BUILDING
        building.mkdir()
        try:
            return _build(
                source.resolve(), kind, building, spans, quarantined, config, classes, number,
                version, beam_options,
            )
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _build(
    source: Path,
    kind: str,
    building: Path,
    spans: Path,
    quarantined: Path,
    config: DropConfig,
    classes: Sequence[str],
    number: int,
    version: int,
    beam_options: Sequence[str],
) -> Span:
    sheet = Worksheet(building / "worksheet.sqlite")
    known = Fingerprints(spans)
    aside = quarantined / f"span-{number}" / f"version-{version}"
    try:
        report(f"listing {source}")
        ignored = _list(source, kind, sheet, config, building)
        limits = msgspec.convert(config, Limits, from_attributes=True)
        stages.examine_files(sheet, limits, building / "outcomes", beam_options)
        known.update(newest_versions(spans))
        splits.assign_splits(sheet, known, config, number)
        _refuse_if_too_bad(sheet, config, quarantined)
        target = building / f"version-{version}"
        target.mkdir()
        shards = stages.plan_shards(sheet, building / "listings", config.shard_bytes)
        hashes = stages.write_shards(shards, target, sheet.count("reason=''"), beam_options)
        size = _write_images(sheet, target / IMAGES)
        summary = Summary(
            source=str(source),
            kind=kind,
            created=now().isoformat(timespec="seconds"),
            graftline=importlib.metadata.version("graftline"),
            images=sheet.count("reason=''"),
            bytes=size,
            counts=sheet.counts(),
            quarantined=sheet.reasons(),
            ignored=ignored,
            warnings=tuple(_warnings(sheet, classes)),
            shards=hashes,
        )
        (target / SUMMARY).write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2))
        shutil.rmtree(aside, ignore_errors=True)
        if summary.quarantined:
            quarantine.fill(aside, sheet.set_aside_rows(), copy=True)
        return _appear(target, spans, number, version)
    finally:
        known.close()
        sheet.close()


def _list(
    source: Path, kind: str, sheet: Worksheet, config: DropConfig, building: Path
) -> int:
    """Fills the worksheet; returns the number of files that are known litter."""
    ignored = 0

    def without_litter() -> Iterator[sources.Entry]:
        nonlocal ignored
        if kind == sources.TFRECORDS:
            unpacked = own_records.unpack(
                sources.record_files(source), config.features, building / "unpacked"
            )
            listing = sources.with_checked_labels(unpacked, source)
        else:
            listing = sources.entries(source, kind)
        for entry in listing:
            if sources.is_litter(entry.name):
                ignored += 1
            else:
                yield entry

    if not sheet.list_files(without_litter()):
        raise UserError(f"The source {source} holds no images. Nothing was taken in.")
    return ignored


def _refuse_if_too_bad(sheet: Worksheet, config: DropConfig, quarantined: Path) -> None:
    reasons = sheet.reasons()
    duplicates = reasons.get(splits.DUPLICATE, 0)
    fresh = sheet.count() - duplicates
    bad = sum(reasons.values()) - duplicates
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    if not fresh:
        raise UserError(
            f"All {duplicates} images of this drop are in earlier spans already: there is nothing "
            "new to take in."
        )
    if bad > config.max_quarantined * fresh or bad == fresh:
        folder = quarantined / f"refused-{now().strftime('%Y%m%dT%H%M%S')}"
        quarantine.fill(folder, sheet.set_aside_rows(), copy=False)
        raise UserError(
            f"The drop is refused whole: {bad} of {fresh} files cannot be used ({listed}); at most "
            f"{config.max_quarantined:.0%} may be (drop.max_quarantined). Each with its reason: "
            f"{folder / quarantine.LIST}. Nothing was taken in; the source is as it was."
        )


def _write_images(sheet: Worksheet, path: Path) -> int:
    """Writes what later drops compare with; returns the encoded size of all images."""
    size = 0
    with parquet.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for split in SPLITS:
            batch: list[dict] = []
            for row, finding, group in sheet.in_split(split):
                size += finding.byte_size
                batch.append(
                    {
                        "id": finding.id,
                        "group": group,
                        "split": split,
                        "label": row.label,
                        "hash": finding.hash,
                        "thumbnail": finding.thumbnail,
                        "aspect": finding.width / finding.height,
                    }
                )
                if len(batch) == 4096:
                    writer.write_table(pa.Table.from_pylist(batch, _SCHEMA))
                    batch = []
            writer.write_table(pa.Table.from_pylist(batch, _SCHEMA))
    return size


def _warnings(sheet: Worksheet, classes: Sequence[str]) -> Iterator[str]:
    counts = sheet.counts()
    labels = sorted({label for per_class in counts.values() for label in per_class})
    for label in labels:
        if label not in classes:
            yield (
                f"The class {label!r} is not in the schema: the data gate will refuse this span. "
                "Add it to the schema, or drop the images again under another class."
            )
    for split in SPLITS:
        without = [label for label in labels if not counts.get(split, {}).get(label)]
        if without:
            yield f"No image for the {split} split in: {', '.join(without)}."
    if len(labels) == 1:
        yield f"All images are of one class, {labels[0]!r}."


def _choose(spans: Path, span: int | None, version: int | None) -> tuple[int, int]:
    """Number and version of the new span.

    Raises:
        UserError: they are there already, or leave a gap in the versions.
    """
    there = list_spans(spans)
    if span is None:
        if version is not None:
            raise UserError("--version belongs to --span: say of which span.")
        return max((s.number for s in there), default=0) + 1, 1
    versions = [s.version for s in there if s.number == span]
    following = max(versions, default=0) + 1
    if version is None and versions:
        raise UserError(
            f"Span {span} is there already. To replace it in training, give it a new version: "
            f"graftline drop SOURCE --span {span} --version {following}. To add images, leave "
            "--span out."
        )
    if version is not None and version != following:
        raise UserError(f"The next version of span {span} is {following}, not {version}.")
    return span, following


def _appear(target: Path, spans: Path, number: int, version: int) -> Span:
    """Makes the version visible in one rename."""
    for folder, _, files in os.walk(target):
        for name in files:
            _sync(Path(folder) / name)
        _sync(Path(folder))
    span = spans / f"span-{number}"
    span.mkdir(exist_ok=True)
    target.rename(span / target.name)
    _sync(span)
    _sync(spans)
    return find_span(spans, number, version)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alone(spans: Path) -> Iterator[None]:
    """Holds the lock of the spans; what a drop that was killed left behind is removed.

    Raises:
        UserError: another drop is under way, or the folder cannot be written.
    """
    try:
        spans.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(spans / ".lock", timeout=0.5):
            shutil.rmtree(spans / _BUILDING, ignore_errors=True)
            yield
    except filelock.Timeout:
        raise UserError(
            f"Another drop into {spans} is under way: wait until it has ended, then try again."
        ) from None


@contextlib.contextmanager
def _explained(spans: Path) -> Iterator[None]:
    """Turns a full or unwritable disk into words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk of {spans} is full. Nothing was taken in and nothing is left behind: "
                "make room, about twice the size of the source, and drop again."
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR):
            raise UserError(f"{error.filename or spans} cannot be written: {error.strerror}.") from error
        raise
