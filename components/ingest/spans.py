"""Spans on disk: `span-<N>/version-<M>`, each whole or not there. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from graftline.serving.errors import UserError

SPLITS = ("train", "eval", "test")
SUMMARY = "drop.json"
IMAGES = "images.parquet"


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a drop did: `drop.json` in the span's version.

    Attributes:
        source: where the images came from.
        kind: folder, pre-split folder, manifest or TFRecords.
        created: UTC, ISO 8601.
        graftline: version of the program.
        images: number of images taken in.
        bytes: their encoded size.
        counts: images per split and class.
        quarantined: number of files per reason.
        ignored: files that are known litter of operating systems.
        warnings: what a person should know, in sentences.
        shards: SHA-256 of every TFRecord file, by its path below the version.
    """

    source: str
    kind: str
    created: str
    graftline: str
    images: int
    bytes: int
    counts: dict[str, dict[str, int]]
    quarantined: dict[str, int]
    ignored: int = 0
    warnings: tuple[str, ...] = ()
    shards: dict[str, str] = {}

    @property
    def per_class(self) -> dict[str, int]:
        """Images per class over all splits."""
        totals: dict[str, int] = {}
        for counts in self.counts.values():
            for label, count in counts.items():
                totals[label] = totals.get(label, 0) + count
        return dict(sorted(totals.items()))

    @property
    def per_split(self) -> dict[str, int]:
        """Images per split."""
        return {split: sum(self.counts.get(split, {}).values()) for split in SPLITS}


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one span."""

    number: int
    version: int
    path: Path

    @property
    def summary(self) -> Summary:
        """What the drop did."""
        return msgspec.json.decode((self.path / SUMMARY).read_bytes(), type=Summary)


def list_spans(root: Path) -> list[Span]:
    """Every complete version of every span, in the order of the numbers."""
    return sorted(_find(root), key=lambda span: (span.number, span.version))


def newest_versions(root: Path) -> list[Span]:
    """The newest version of every span, in the order of the numbers."""
    return list({span.number: span for span in list_spans(root)}.values())


def latest_span(root: Path) -> Span:
    """The newest version of the span with the highest number.

    Raises:
        UserError: there is none.
    """
    spans = list_spans(root)
    if not spans:
        raise UserError(f"There is no span in {root} yet. Bring images: graftline drop SOURCE")
    return spans[-1]


def find_span(root: Path, number: int, version: int | None = None) -> Span:
    """One version of a span, the newest by default.

    Raises:
        UserError: it is not there; says what is.
    """
    spans = list_spans(root)
    found = [s for s in spans if s.number == number and version in (None, s.version)]
    if found:
        return found[-1]
    wanted = f"Span {number}" + ("" if version is None else f" version {version}")
    there = ", ".join(f"{s.number} (version {s.version})" for s in newest_versions(root)) or "none"
    raise UserError(
        f"{wanted} is not in {root}. There: {there}. Bring it with `graftline drop SOURCE --span "
        f"{number}`, or leave --span out for the latest."
    )


def _find(root: Path) -> Iterator[Span]:
    if not root.is_dir():
        return
    for span in root.iterdir():
        number = re.fullmatch(r"span-(\d+)", span.name)
        if not number:
            continue
        for path in span.iterdir():
            version = re.fullmatch(r"version-(\d+)", path.name)
            if version and (path / SUMMARY).is_file():
                yield Span(number=int(number[1]), version=int(version[1]), path=path)
