"""The spans of a project: what the drops left, as whoever reads them finds it.

    <spans>/span-<N>/version-<M>/{train,eval,test}/images-SSSSS-of-NNNNN.tfrecord.gz
                                /images.parquet     one row per image
                                /drop.json          what came in, what was kept
    <spans>/.graftline/         lock, index of all images, drops that are being built

A version appears by one rename, so that whatever carries the right name is whole. Reading needs
neither TensorFlow nor Beam.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from graftline.serving.errors import UserError

SPLITS = ("train", "eval", "test")
SUMMARY = "drop.json"
IMAGES = "images.parquet"
WORK = ".graftline"


class DropSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one drop brought: the content of `drop.json`.

    Attributes:
        span: number of the span.
        version: version of the span.
        source: where the images came from.
        kind: what the source was, in words.
        created: UTC, ISO 8601.
        tool: name and version of the program.
        counts: images per class and split.
        images: images that were kept.
        image_bytes: their size.
        quarantined: files or records per reason.
        ignored: litter of operating systems, neither kept nor quarantined.
        near_duplicates: images that were kept on the side of an earlier one that they resemble.
        unknown_classes: classes that the schema does not know.
        warnings: what a person should look at, one sentence each.
        shards: SHA-256 of each file, by its path below the version's folder.
    """

    span: int
    version: int
    source: str
    kind: str
    created: str
    tool: str
    counts: dict[str, dict[str, int]]
    images: int
    image_bytes: int
    quarantined: dict[str, int]
    ignored: int
    near_duplicates: int
    unknown_classes: tuple[str, ...]
    warnings: tuple[str, ...]
    shards: dict[str, str]

    @property
    def split_counts(self) -> dict[str, int]:
        """Images per split."""
        return {
            split: sum(counts.get(split, 0) for counts in self.counts.values()) for split in SPLITS
        }


@dataclass(frozen=True)
class Span:
    """One complete version of a span.

    Attributes:
        number: from 1.
        version: from 1.
        path: its folder.
    """

    number: int
    version: int
    path: Path

    @functools.cached_property
    def summary(self) -> DropSummary:
        """What the drop recorded.

        Raises:
            UserError: it cannot be read.
        """
        path = self.path / SUMMARY
        try:
            return msgspec.json.decode(path.read_bytes(), type=DropSummary)
        except (OSError, msgspec.DecodeError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): the span was changed by another hand. Drop its "
                f"images again with --span {self.number} --version {self.version + 1}."
            ) from error


def span_folder(root: Path, number: int, version: int) -> Path:
    """Where a version of a span is, or will be."""
    return root / f"span-{number}" / f"version-{version}"


def list_spans(root: Path) -> list[Span]:
    """Every complete version of every span, by number and version.

    Args:
        root: the folder of the spans; it need not be there.
    """
    return [
        Span(number, version, path)
        for number, folder in _numbered(root, "span")
        for version, path in _numbered(folder, "version")
        if (path / SUMMARY).is_file()
    ]


def newest_versions(root: Path) -> list[Span]:
    """The newest version of every span, by number."""
    return list({span.number: span for span in list_spans(root)}.values())


def find_span(root: Path, number: int, version: int | None = None) -> Span:
    """A span by its number, its newest version by default.

    Raises:
        UserError: there is none; says which there are.
    """
    spans = list_spans(root)
    of_number = [span for span in spans if span.number == number]
    found = [span for span in of_number if version in (None, span.version)]
    if found:
        return found[-1]
    if of_number:
        there = ", ".join(str(span.version) for span in of_number)
        raise UserError(f"Span {number} has no version {version} in {root}; there is {there}.")
    numbers = ", ".join(str(number) for number in dict.fromkeys(span.number for span in spans))
    there = f"There are: {numbers}" if numbers else "There is none yet"
    raise UserError(
        f"Span {number} is not in {root}. {there}. Bring it in with `graftline drop SOURCE --span "
        f"{number}`."
    )


def latest_span(root: Path) -> Span:
    """The newest version of the span with the highest number.

    Raises:
        UserError: there is no span.
    """
    spans = list_spans(root)
    if not spans:
        raise UserError(
            f"There is no span in {root} yet. Bring images in with `graftline drop SOURCE`."
        )
    return spans[-1]


def _numbered(folder: Path, name: str) -> list[tuple[int, Path]]:
    pattern = re.compile(rf"{name}-([1-9][0-9]*)")
    try:
        children = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    matches = ((pattern.fullmatch(child.name), child) for child in children)
    return sorted((int(match[1]), child) for match, child in matches if match)
