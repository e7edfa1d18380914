"""Manifests: CSV, TSV or JSON lines that name files with their classes and, perhaps, splits."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graftline.components.ingest.entries import Entry
from graftline.components.ingest.labels import class_named, split_named
from graftline.serving.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")

# Column names by which people call them, lower case.
_FILE = ("file", "path", "filename", "file_name", "filepath", "file_path", "image", "image_path")
_LABEL = ("label", "class", "category", "class_name", "label_name")
_SPLIT = ("split", "subset", "set", "partition")
# A folder may hold tables of any kind; under these names one speaks for the folder.
_STEMS = ("manifest", "labels", "metadata", "annotations")


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest, by its name."""
    return path.suffix.lower() in SUFFIXES


def find(folder: Path) -> Path | None:
    """The manifest that speaks for a folder, None where there is none.

    Raises:
        UserError: there are several.
    """
    found = sorted(
        path
        for path in folder.iterdir()
        if is_manifest(path) and path.stem.lower() in _STEMS and path.is_file() and _maps(path)
    )
    if len(found) > 1:
        raise UserError(
            f"The folder {folder} holds several manifests: "
            f"{', '.join(path.name for path in found)}. Name one of them as the source."
        )
    return found[0] if found else None


def entries(path: Path, *, labelled: bool = True) -> Iterator[Entry]:
    """Lists what a manifest names, in its order; files are relative to the manifest.

    Args:
        path: the manifest.
        labelled: whether it has to give a class; if not, class and split are not looked at.

    Raises:
        UserError: it cannot be read, lacks a column, or gives a split that is none.
    """
    for number, row in _rows(path):
        where = f"line {number} of {path}"
        file = _first(row, _FILE)
        if not file:
            raise _lacks("file", _FILE, row, where)
        if not _is_encodable(file):
            raise UserError(f"{file!r} in {where} is no name of a file.")
        if not labelled:
            yield Entry(path=path.parent / file, name=file, label=None)
            continue
        if not _names(row, _LABEL):
            raise _lacks("class", _LABEL, row, where)
        given = _first(row, _SPLIT)
        split = split_named(given)
        if given and split is None:
            raise UserError(f"The split {given!r} in {where} is none of train, eval and test.")
        label = _first(row, _LABEL)
        name = class_named(label)
        entry = Entry(path=path.parent / file, name=file, label=name, split=split)
        if name is None:
            entry = entry.refuse("unusable-label", f"{label!r} in line {number} is no class name")
        yield entry


def _is_encodable(file: str) -> bool:
    """Half of a surrogate pair, which JSON can spell, is in no file's name."""
    try:
        os.fsencode(file)
    except UnicodeEncodeError:
        return False
    return True


def _maps(path: Path) -> bool:
    """Whether the first row names a file and a class."""
    try:
        _, row = next(_rows(path), (0, {}))
    except UserError:
        return False
    return _names(row, _FILE) and _names(row, _LABEL)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their line numbers; names of columns in lower case."""
    rows = _tables(path) if path.suffix.lower() in (".csv", ".tsv") else _json_lines(path)
    try:
        for number, row in rows:
            yield number, {str(key).strip().lower(): value for key, value in row.items()}
    except OSError as error:
        raise UserError(f"The manifest {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The manifest {path} is not text in UTF-8: {error}.") from error
    except csv.Error as error:
        raise UserError(f"The manifest {path} is not a table: {error}.") from error


def _tables(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        head = stream.readline()
        stream.seek(0)
        delimiter = max("\t,;", key=head.count)
        reader = csv.DictReader(stream, delimiter=delimiter)
        for row in reader:
            yield reader.line_num, row


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"Line {number} of {path} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise UserError(f"Line {number} of {path} is not a JSON object.")
            yield number, row


def _names(row: dict[str, Any], names: tuple[str, ...]) -> bool:
    return any(name in row for name in names)


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str:
    """The text or number in the first of these columns that is there; empty where none is."""
    for name in names:
        value = row.get(name)
        if value is not None:
            is_usable = isinstance(value, (str, int, float)) and not isinstance(value, bool)
            return str(value).strip() if is_usable else ""
    return ""


def _lacks(what: str, names: tuple[str, ...], row: dict[str, Any], where: str) -> UserError:
    return UserError(
        f"There is no {what} in {where}: expected a column named one of {', '.join(names)}; found "
        f"{', '.join(row) or 'none'}."
    )
