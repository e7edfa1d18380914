"""What is written beside every published version: where it comes from, and a hash of every file.

`manifest.json` stands in the version's folder. It is data for programs (`verify`, the pipeline's
baseline, a server's operator); `model_card.md` says the same to people.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import msgspec

FILE_NAME = "manifest.json"
_BUFFER = 1 << 20


class FileRecord(msgspec.Struct, frozen=True):
    """One file of a version: hex SHA-256 of its bytes, and their number."""

    sha256: str
    size: int


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the model gate's verdict: the fields of `graftline.components.verdict.Check`."""

    metric: str
    slice: str
    candidate: float | None = None
    baseline: float | None = None
    threshold: float | None = None
    passed: bool | None = None
    note: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version comes from and what it consists of.

    Attributes:
        model: the model's name.
        model_id: identifies the trained model; publishing the same one again is a no-op.
        version: its number under the base path; set when it is published.
        created: when it was published, UTC.
        classes: names of the classes, in the order of the model's scores.
        measures: what the gate measured on the test split, and its bounds.
        overridden: the reason of the person who let it through against the gate, else empty.
        spans: number and version of every span that it was trained on.
        images: number of images per split, where known.
        configuration: the configuration of the run.
        code_revision: revision of the code that trained it.
        run_id: the run that published it.
        lineage: URIs and ids of the artifacts in the metadata store.
        packages: versions of the libraries that wrote it.
        files: every file of the version but the manifest itself, by its POSIX path.
    """

    model: str
    model_id: str
    version: int = 0
    created: datetime.datetime | None = None
    classes: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()
    overridden: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    images: dict[str, int] = {}
    configuration: dict[str, Any] = {}
    code_revision: str = ""
    run_id: str = ""
    lineage: dict[str, str] = {}
    packages: dict[str, str] = {}
    files: dict[str, FileRecord] = {}

    @property
    def accuracy(self) -> float | None:
        """Accuracy over all test images, where the gate measured it."""
        return next(
            (m.candidate for m in self.measures if (m.metric, m.slice) == ("accuracy", "overall")),
            None,
        )

    @property
    def span_ranges(self) -> str:
        """The numbers of the spans in short: `1-3, 7`."""
        numbers = enumerate(sorted({number for number, _ in self.spans}))
        runs = groupby(numbers, key=lambda entry: entry[1] - entry[0])
        ends = [(run[0], run[-1]) for run in ([n for _, n in entries] for _, entries in runs)]
        return ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in ends)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())

    def encode(self) -> bytes:
        """The manifest as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @staticmethod
    def read(version: Path) -> Manifest | None:
        """The manifest in a version's folder; None where there is none that can be read."""
        try:
            return msgspec.json.decode((version / FILE_NAME).read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError):
            return None


class Problem(msgspec.Struct, frozen=True):
    """Something in a version that is not as it was published.

    Attributes:
        file: POSIX path within the version.
        what: `changed`, `missing`, `added`, or `unreadable`.
    """

    file: str
    what: Literal["changed", "missing", "added", "unreadable"]


def plain_files(folder: Path) -> Iterator[tuple[str, Path | None]]:
    """Every file under a folder, as its POSIX path and where it is, in a stable order.

    Links are not followed: a link, a socket or a device comes with None in place of its path.
    """
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders.sort()
        for name in sorted([*files, *(f for f in folders if Path(parent, f).is_symlink())]):
            path = Path(parent, name)
            regular = stat.S_ISREG(path.lstat().st_mode)
            yield path.relative_to(folder).as_posix(), path if regular else None


def _raise(error: OSError) -> None:
    raise error


def hash_file(path: Path) -> FileRecord:
    """Hashes one file in a buffer of fixed size."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BUFFER):
            digest.update(block)
            size += len(block)
    return FileRecord(digest.hexdigest(), size)


def hash_files(folder: Path) -> dict[str, FileRecord]:
    """Hashes every file under a folder but the manifest.

    Raises:
        ValueError: something in it is neither a file nor a folder.
    """
    records = {}
    for name, path in plain_files(folder):
        if path is None:
            raise ValueError(f"{folder / name} is neither a plain file nor a folder.")
        if name != FILE_NAME:
            records[name] = hash_file(path)
    return records


def digest(files: Mapping[str, FileRecord]) -> str:
    """One hex SHA-256 over the names and contents of files."""
    lines = "".join(f"{record.sha256}  {name}\n" for name, record in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def compare(folder: Path, manifest: Manifest) -> list[Problem]:
    """What differs between a version's folder and its manifest; one pass over the files."""
    problems, seen = [], set()
    for name, path in plain_files(folder):
        if name == FILE_NAME:
            continue
        seen.add(name)
        recorded = manifest.files.get(name)
        if recorded is None:
            problems.append(Problem(name, "added"))
        elif path is None or path.stat().st_size != recorded.size:
            problems.append(Problem(name, "changed"))
        else:
            try:
                if hash_file(path) != recorded:
                    problems.append(Problem(name, "changed"))
            except OSError:
                problems.append(Problem(name, "unreadable"))
    problems += [Problem(name, "missing") for name in manifest.files.keys() - seen]
    return sorted(problems, key=lambda problem: problem.file)
