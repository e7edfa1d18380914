"""Spans on disk, each whole or not there. Imports nothing heavy.

<spans>/span-<N>/version-<M>/{train,eval,test}/images-SSSSS-of-NNNNN.tfrecord.gz
                            /images.parquet    one row per image: identity, split, fingerprint
                            /drop.json         what came in and what was kept
<spans>/.graftline/         the lock of drops, the table of all images, a drop being taken in
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from graftline.serving.errors import UserError

SPLITS = ("train", "eval", "test")
SUMMARY = "drop.json"
IMAGES = "images.parquet"
WORK = ".graftline"


class RanOn(msgspec.Struct, frozen=True, kw_only=True):
    """Where a stage of Beam ran.

    Attributes:
        runner: `direct`: on this machine; else as in the section `beam`.
        parallelism: into how many parts it was divided; None: as the runner saw fit.
    """

    runner: str = "direct"
    parallelism: int | None = 1

    @property
    def processes(self) -> int:
        """How many of this machine it was divided among; 1: the command's own."""
        return (self.parallelism or 1) if self.runner == "direct" else 1


HERE = RanOn()


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a drop did: `drop.json` in the span's version.

    Attributes:
        source: where the images came from.
        kind: folder per class, pre-split folders, manifest or TFRecords.
        created: UTC, ISO 8601.
        graftline: version of the program.
        images: number of images taken in.
        bytes: their encoded size.
        counts: images per split and class.
        quarantined: number of files per reason.
        ignored: files that are known litter of operating systems, or lie beside the images.
        near_duplicates: images that were kept on the side of an earlier one that they resemble.
        warnings: what a person should know, in sentences.
        shards: SHA-256 of every TFRecord file, by its path below the version.
        seconds: how long it took, imports apart; 0: not measured.
        peak_mb: highest memory of the process and those below it; 0: not measured.
        ran_on: where its Beam stages ran.
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
    near_duplicates: int = 0
    warnings: tuple[str, ...] = ()
    shards: dict[str, str] = {}
    seconds: float = 0.0
    peak_mb: int = 0
    ran_on: RanOn = HERE

    @property
    def per_class(self) -> dict[str, int]:
        """Images per class over all splits."""
        labels = sorted({label for counts in self.counts.values() for label in counts})
        return {
            label: sum(counts.get(label, 0) for counts in self.counts.values()) for label in labels
        }

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
        """What the drop did.

        Raises:
            UserError: it cannot be read.
        """
        path = self.path / SUMMARY
        try:
            return msgspec.json.decode(path.read_bytes(), type=Summary)
        except (OSError, msgspec.DecodeError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): the span was changed by another hand. Drop its "
                f"images again with --span {self.number} --version {self.version + 1}."
            ) from error

    def check_files(self) -> None:
        """Looks whether all files are there, without reading them.

        Raises:
            UserError: one is missing.
        """
        for name in self.summary.shards:
            if not (self.path / name).is_file():
                raise UserError(
                    f"{self.path / name} is gone: the span was changed by another hand. Put the "
                    "file back from a backup, or drop the span's images again with --span "
                    f"{self.number} --version {self.version + 1}."
                )


def span_folder(root: Path, number: int, version: int) -> Path:
    """Where a version of a span is, or will be, below the folder of the spans."""
    return root / f"span-{number}" / f"version-{version}"


def list_spans(root: Path) -> list[Span]:
    """Every complete version of every span, in the order of the numbers."""
    return [
        Span(number=number, version=version, path=path)
        for number, folder in _numbered(root, "span")
        for version, path in _numbered(folder, "version")
        if (path / SUMMARY).is_file()
    ]


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


def _numbered(folder: Path, name: str) -> list[tuple[int, Path]]:
    pattern = re.compile(rf"{name}-([1-9][0-9]*)", re.ASCII)
    try:
        children = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    matches = ((pattern.fullmatch(child.name), child) for child in children)
    return sorted((int(match[1]), child) for match, child in matches if match)
