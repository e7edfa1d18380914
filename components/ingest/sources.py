"""Where labelled images come from: which files, which label, which split if one is given.

A source is a folder per class, the same below folders named after splits, a CSV or JSONL manifest,
or TFRecords. Sources are listed one by one, so that memory does not grow with their number.
"""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from graftline.serving.errors import UserError

FOLDER = "folder per class"
SPLIT_FOLDER = "pre-split folder"
MANIFEST = "manifest"
TFRECORDS = "TFRecords"

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "eval": "eval",
    "evaluation": "eval",
    "val": "eval",
    "valid": "eval",
    "validation": "eval",
    "dev": "eval",
    "test": "test",
    "testing": "test",
}
_LITTER = {".ds_store", "thumbs.db", "desktop.ini", ".directory"}
_FILE_COLUMNS = ("file", "path", "image", "filename", "file_name")
_LABEL_COLUMNS = ("label", "class", "category")
_SPLIT_COLUMNS = ("split", "subset", "set")
_RECORD_SUFFIXES = (".tfrecord", ".tfrecords", ".tfrecord.gz", ".tfrecords.gz", ".tfrec")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a source.

    Attributes:
        path: the file.
        name: how people know it: its path within the source.
        label: class name, None where the source gives none.
        split: train, eval or test where the source gives one, else None.
    """

    path: Path
    name: str
    label: str | None
    split: str | None = None


def detect(source: Path) -> str:
    """Which kind of source this is.

    Raises:
        UserError: none that is known, or there is nothing.
    """
    if not source.exists():
        raise UserError(f"The source {source} does not exist.")
    if source.is_file():
        if source.suffix.lower() in (".csv", ".jsonl", ".ndjson"):
            return MANIFEST
        if source.name.lower().endswith(_RECORD_SUFFIXES):
            return TFRECORDS
        raise UserError(
            f"The source {source} is a file that is neither a manifest (.csv, .jsonl) nor TFRecords "
            "(.tfrecord, .tfrecord.gz). Give a folder with one sub-folder per class, or one of these."
        )
    folders = [entry for entry in _scan(source) if entry.is_dir()]
    if folders:
        named = [_SPLIT_NAMES.get(entry.name.lower()) for entry in folders]
        return SPLIT_FOLDER if all(named) else FOLDER
    if record_files(source):
        return TFRECORDS
    raise UserError(
        f"The folder {source} holds no sub-folder: expected one folder per class with its images, "
        "the same below train, eval and test, or TFRecord files."
    )


def entries(source: Path, kind: str) -> Iterator[Entry]:
    """Lists the files of a folder or a manifest, labels checked.

    Raises:
        UserError: a label is empty or two labels differ only in case; a manifest is malformed.
    """
    listing = {
        FOLDER: lambda: _class_folders(source, source, None),
        SPLIT_FOLDER: lambda: _split_folders(source),
        MANIFEST: lambda: _manifest(source),
    }[kind]
    yield from with_checked_labels(listing(), source)


def is_litter(name: str) -> bool:
    """Whether operating systems leave files of this name in folders."""
    base = name.rsplit("/", 1)[-1].lower()
    return base in _LITTER or base.startswith("._")


def record_files(source: Path) -> list[Path]:
    """The TFRecord files of a source, in the order of their names."""
    if source.is_file():
        return [source]
    return [
        Path(entry.path) for entry in _scan(source) if entry.name.lower().endswith(_RECORD_SUFFIXES)
    ]


def split_named(text: str) -> str | None:
    """The split that a word means, None where it means none."""
    return _SPLIT_NAMES.get(text.strip().lower())


def with_checked_labels(listing: Iterable[Entry], source: Path) -> Iterator[Entry]:
    """Passes entries on, watching over their labels.

    Raises:
        UserError: a label is empty or holds control characters, or two differ only in case.
    """
    seen: dict[str, str] = {}
    for entry in listing:
        if entry.label is not None:
            if not entry.label.strip() or not entry.label.isprintable():
                raise UserError(f"The label {entry.label!r} of {entry.name} in {source} is no name.")
            first = seen.setdefault(entry.label.casefold(), entry.label)
            if first != entry.label:
                raise UserError(
                    f"Two classes of {source} differ only in case: {first!r} and {entry.label!r}. "
                    "They would be told apart on some systems and not on others: give them one name."
                )
        yield entry


def _class_folders(folder: Path, source: Path, split: str | None) -> Iterator[Entry]:
    for child in _scan(folder):
        if child.is_dir():
            label = unicodedata.normalize("NFC", child.name)
            for path in _files(Path(child.path)):
                yield Entry(path=path, name=_name(path, source), label=label, split=split)
        else:
            path = Path(child.path)
            yield Entry(path=path, name=_name(path, source), label=None, split=split)


def _split_folders(source: Path) -> Iterator[Entry]:
    # Test first: where an image lies on two sides, the one that judges the model stays.
    order = ("test", "eval", "train")
    folders = [(split_named(entry.name) or "", entry) for entry in _scan(source) if entry.is_dir()]
    for split, folder in sorted(folders, key=lambda found: order.index(found[0])):
        yield from _class_folders(Path(folder.path), source, split)


def _manifest(source: Path) -> Iterator[Entry]:
    rows = _csv_rows(source) if source.suffix.lower() == ".csv" else _jsonl_rows(source)
    for number, row in rows:
        lowered = {str(key).strip().lower(): value for key, value in row.items() if key is not None}
        where = f"{source} line {number}"
        file = _column(lowered, _FILE_COLUMNS, where)
        label = unicodedata.normalize("NFC", _column(lowered, _LABEL_COLUMNS, where))
        given = next((str(lowered[name] or "") for name in _SPLIT_COLUMNS if name in lowered), "")
        split = split_named(given)
        if given.strip() and split is None:
            raise UserError(f"{where}: the split {given!r} is none of train, eval and test.")
        yield Entry(path=source.parent / file, name=file, label=label, split=split)


def _csv_rows(source: Path) -> Iterator[tuple[int, dict[str, object]]]:
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            for row in reader:
                yield reader.line_num, dict(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The manifest {source} is not a CSV file in UTF-8: {error}.") from error


def _jsonl_rows(source: Path) -> Iterator[tuple[int, dict[str, object]]]:
    with source.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{source} line {number} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise UserError(f"{source} line {number} is not a JSON object.")
            yield number, row


def _column(row: dict[str, object], names: tuple[str, ...], where: str) -> str:
    for name in names:
        if row.get(name) not in (None, ""):
            return str(row[name])
    raise UserError(
        f"{where}: there is no {names[0]}. A manifest has a column named one of {', '.join(names)}; "
        f"found {', '.join(row) or 'none'}."
    )


def _files(folder: Path) -> Iterator[Path]:
    for child in _scan(folder):
        if child.is_dir():
            yield from _files(Path(child.path))
        else:
            yield Path(child.path)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read: {error.strerror}.") from error


def _name(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()
