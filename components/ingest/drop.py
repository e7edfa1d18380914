"""Takes a drop in: from labelled images to one version of one span, whole or not at all.

List the files, examine each, find duplicates and divide into splits, write the shards: all in a
workplace beside the spans, whose content becomes the span in one rename. See docs/drops.md.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as parquet

from graftline.components import memory
from graftline.components.ingest import own_records, quarantine, sources, splits, stages
from graftline.components.ingest.config import DropConfig
from graftline.components.ingest.entries import Entry
from graftline.components.ingest.fingerprints import Fingerprints, Known
from graftline.components.ingest.labels import CaseWatch
from graftline.components.ingest.likeness import THUMBNAIL
from graftline.components.ingest.shards import plan_shards, write_shards
from graftline.components.ingest.sources import Source
from graftline.components.ingest.spans import (
    HERE,
    IMAGES,
    SPLITS,
    SUMMARY,
    RanOn,
    Span,
    Summary,
    find_span,
    list_spans,
    newest_versions,
    span_folder,
)
from graftline.components.ingest.workplace import Workplace, free_name, workplace
from graftline.components.ingest.worksheet import Worksheet
from graftline.components.progress import report
from graftline.serving.errors import Rejected, UserError
from graftline.serving.image_check import Limits

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("file", pa.string()),
        ("hash", pa.uint64()),
        ("thumbnail", pa.binary(THUMBNAIL * THUMBNAIL)),
    ]
)
_BATCH = 1000


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
    ran_on: RanOn = HERE,
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
        beam_options: of the Beam runner, with runner and mode.
        ran_on: which runner that is, for the summary.

    Raises:
        Rejected: the source cannot be taken in: it is malformed, too much of it would be
            quarantined, or nothing in it is new.
        UserError: the source is none, the span or the version cannot be; another drop is under
            way; a disk is full. Nothing is left behind.
    """
    found = sources.detect(source.resolve())
    with workplace(spans, quarantined, found.path) as place:
        number, version = _choose(list_spans(spans), span, version)
        _refuse_obstacle(span_folder(spans, number, version))
        taking_in = _TakingIn(found, spans, place, config, number, version)
        try:
            taking_in.run(quarantined, classes, beam_options, ran_on)
        finally:
            taking_in.close()
        place.publish(number, version)
    return find_span(spans, number, version)


class _TakingIn:
    """One drop, from listing to the files of the span; see `drop`."""

    def __init__(
        self,
        source: Source,
        spans: Path,
        place: Workplace,
        config: DropConfig,
        number: int,
        version: int,
    ) -> None:
        self._began = time.monotonic()
        memory.begin()
        self._source = source
        self._spans = spans
        self._place = place
        self._config = config
        self._number = number
        self._version = version
        self._sheet = Worksheet(place.folder / "worksheet.sqlite")
        self._history = Fingerprints(place.table())
        self._kept = Fingerprints(place.folder / "kept.sqlite")

    def close(self) -> None:
        """Closes all tables."""
        for table in (self._sheet, self._history, self._kept):
            table.close()

    def run(
        self, quarantined: Path, classes: Sequence[str], options: Sequence[str], ran_on: RanOn
    ) -> None:
        """Fills the workplace.

        Raises:
            UserError, OSError: as `drop`.
        """
        sheet, folder = self._sheet, self._place.folder
        report(f"listing {self._source.path}")
        try:
            sheet.list_files(
                self._entries(classes),
                in_order=self._source.kind in (sources.MANIFEST, sources.TFRECORDS),
            )
        except UserError as error:
            raise Rejected(str(error)) from error
        if not sheet.listed():
            raise Rejected(f"The source {self._source.path} holds no images. Nothing was taken in.")
        stages.hide_gpus()
        limits = msgspec.convert(self._config, Limits, from_attributes=True)
        stages.examine_files(sheet, limits, folder / "outcomes", options)
        report("looking for duplicates")
        self._history.update(list_spans(self._spans))
        splits.assign_splits(sheet, self._history, self._kept, self._config, self._is_trained_on())
        _refuse_if_too_bad(sheet, self._config, quarantined)
        shards = plan_shards(sheet, folder / "listings", self._config.shard_bytes)
        hashes = write_shards(shards, self._place.version, sheet.usable(), options)
        if sheet.reasons():
            quarantine.fill(self._place.quarantine, sheet.set_aside_rows(), copy=True)
        summary = Summary(
            source=str(self._source.path),
            kind=self._source.kind,
            created=_now().isoformat(timespec="seconds"),
            graftline=importlib.metadata.version("graftline"),
            images=sheet.usable(),
            bytes=_write_images(sheet, self._place.version / IMAGES),
            counts=sheet.counts(),
            quarantined=sheet.reasons(),
            ignored=sheet.ignored(),
            near_duplicates=sheet.resembling(),
            warnings=tuple(_warnings(sheet.counts(), classes)),
            shards=hashes,
            seconds=round(time.monotonic() - self._began, 2),
            peak_mb=memory.peak_mb(),
            ran_on=ran_on,
        )
        (self._place.version / SUMMARY).write_bytes(
            msgspec.json.format(msgspec.json.encode(summary), indent=2)
        )

    def _entries(self, classes: Sequence[str]) -> Iterator[Entry]:
        if self._source.kind == sources.TFRECORDS:
            listing = own_records.entries(
                self._source, self._config.features, self._place.folder / "unpacked"
            )
        else:
            listing = sources.entries(self._source)
        watch = CaseWatch(classes)
        for entry in listing:
            if entry.label is not None:
                watch.check(entry.label, entry.name)
            yield entry

    def _is_trained_on(self) -> Callable[[Known], bool]:
        """Of other spans the newest versions; this span's are replaced by this drop."""
        newest = {span.number: span.version for span in newest_versions(self._spans)}
        newest.pop(self._number, None)
        return lambda image: newest.get(image.span) == image.version


def _refuse_if_too_bad(sheet: Worksheet, config: DropConfig, quarantined: Path) -> None:
    """Exact duplicates are no fault of a drop: a folder that grew may be dropped again.

    Raises:
        Rejected: more than the configured share cannot be used, or nothing is new.
    """
    reasons = sheet.reasons()
    duplicates = reasons.pop(splits.DUPLICATE, 0)
    fresh = sheet.listed() - duplicates
    bad = sum(reasons.values())
    if not fresh:
        raise Rejected(
            f"All {duplicates} images of this drop are in a span already: there is nothing new to "
            "take in."
        )
    if bad <= config.max_quarantined * fresh and bad < fresh:
        return
    folder = quarantined / f"refused-{_now().strftime('%Y%m%dT%H%M%S')}"
    if folder.exists():
        folder = free_name(folder)
    quarantine.fill(folder, sheet.set_aside_rows(), copy=False)
    listed = "".join(
        f"\n  {count:>6} {reason}, e.g. {name}: {detail}"
        for reason, count in reasons.items()
        for name, detail in [sheet.example(reason)]
    )
    raise Rejected(
        f"The drop is refused whole: {bad} of {fresh} files cannot be used, at most "
        f"{config.max_quarantined:.0%} may be (drop.max_quarantined).{listed}\nAll of them: "
        f"{folder / quarantine.LIST}. Nothing was taken in; the source is as it was."
    )


def _write_images(sheet: Worksheet, path: Path) -> int:
    """Writes what later drops compare with; returns the encoded size of all images."""
    size = 0
    with parquet.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for split in SPLITS:
            batch: list[dict[str, object]] = []
            for row, finding, group in sheet.in_split(split):
                size += finding.byte_size
                batch.append(
                    {
                        "id": finding.id,
                        "group": group,
                        "split": split,
                        "label": row.label,
                        "file": row.name,
                        "hash": finding.hash,
                        "thumbnail": finding.thumbnail,
                    }
                )
                if len(batch) == _BATCH:
                    writer.write_table(pa.Table.from_pylist(batch, _SCHEMA))
                    batch.clear()
            writer.write_table(pa.Table.from_pylist(batch, _SCHEMA))
    return size


def _warnings(counts: dict[str, dict[str, int]], classes: Sequence[str]) -> Iterator[str]:
    labels = sorted({label for per_class in counts.values() for label in per_class})
    unknown = [label for label in labels if label not in classes]
    if unknown:
        yield (
            f"Not in the schema: {', '.join(unknown)}. The data gate will refuse this span. Add "
            "what is missing to the schema, or drop the images again under a class that is there."
        )
    for split in SPLITS:
        without = [label for label in labels if not counts.get(split, {}).get(label)]
        if without:
            yield f"No image for the {split} split in: {', '.join(without)}."
    if len(labels) == 1:
        yield f"All images are of one class, {labels[0]!r}."


def _choose(there: Sequence[Span], span: int | None, version: int | None) -> tuple[int, int]:
    """Number and version of the new span.

    Raises:
        UserError: they are there already, or leave a gap in the versions.
    """
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


def _refuse_obstacle(target: Path) -> None:
    """Whatever stands in the place of the span must be found before the work, not after it.

    Raises:
        UserError: there is something, but no complete span.
    """
    if target.exists():
        raise UserError(
            f"{target} is there, but is no complete span: it has no {SUMMARY}. Move it away, then "
            "drop again."
        )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
