"""Where labelled images come from: which files, which class, which split if one is given.

A source is a folder per class, the same below folders named after splits, a CSV or JSONL manifest,
or TFRecords. Sources are listed one by one, so that memory does not grow with their number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from graftline.components.ingest import manifests
from graftline.components.ingest.entries import Entry, ignored
from graftline.components.ingest.labels import class_named, split_named
from graftline.serving.errors import UserError
from graftline.serving.image_check import identify

FOLDERS = "folder per class"
SPLIT_FOLDERS = "pre-split folders"
MANIFEST = "manifest"
TFRECORDS = "TFRecords"
FILES = "files"

_LITTER = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory"}
_RECORDS = re.compile(r"tfrec|\.records?(\.gz)?$")
_SIGNATURE_BYTES = 16


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A source whose kind is known.

    Attributes:
        kind: FOLDERS, SPLIT_FOLDERS, MANIFEST or TFRECORDS; FILES where classes do not matter.
        path: the folder, the manifest, or the folder or file of records.
    """

    kind: str
    path: Path

    @property
    def root(self) -> Path:
        """What the names of its files are relative to."""
        return self.path.parent if self.path.is_file() else self.path


def detect(path: Path) -> Source:
    """Tells which kind of source this is.

    Raises:
        UserError: none that is known, there is nothing, or it cannot be read.
    """
    try:
        return _detect(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"The source {path} cannot be read: {error.strerror}. Make it readable for this user."
    )


def _detect(path: Path) -> Source:
    if not path.exists():
        raise UserError(
            f"The source {path} does not exist. Name a folder, a manifest or TFRecords."
        )
    if path.is_file():
        if manifests.is_manifest(path):
            return Source(kind=MANIFEST, path=path)
        if _RECORDS.search(path.name.lower()):
            return Source(kind=TFRECORDS, path=path)
        raise UserError(
            f"The source {path} is a file that is neither a manifest "
            f"({', '.join(manifests.SUFFIXES)}) nor TFRecords (.tfrecord, .tfrecord.gz). Name one "
            "of these, or a folder with one folder per class."
        )
    manifest = manifests.find(path)
    if manifest:
        return Source(kind=MANIFEST, path=manifest)
    if record_files(path):
        return Source(kind=TFRECORDS, path=path)
    folders = [child.name for child in _children(path) if _is_dir(child) and not _is_litter(child)]
    if not folders:
        raise UserError(
            f"The folder {path} holds no folder: expected one per class with its images, the same "
            "below train, eval and test, a manifest.csv, or TFRecord files."
        )
    if all(split_named(name) for name in folders):
        return Source(kind=SPLIT_FOLDERS, path=path)
    return Source(kind=FOLDERS, path=path)


def detect_unlabelled(path: Path) -> Source:
    """The same of a source whose images need no class: of kind FILES, MANIFEST or TFRECORDS.

    Raises:
        UserError: there is nothing, it cannot be read, or it is one file of another kind.
    """
    try:
        if path.is_dir():
            if manifest := manifests.find(path):
                return Source(kind=MANIFEST, path=manifest)
            return Source(kind=TFRECORDS if record_files(path) else FILES, path=path)
        return _detect(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def unlabelled(source: Source) -> Iterator[Entry]:
    """Lists images whatever their class, in any order; of TFRECORDS the files of records.

    Raises:
        UserError: a folder cannot be read, or a manifest is malformed.
    """
    if source.kind == MANIFEST:
        yield from manifests.entries(source.path, labelled=False)
    elif source.kind == TFRECORDS:
        for path, _ in record_files(source.path):
            yield Entry(path=path, name=_name(path, source.root), label=None)
    else:
        yield from _everything(source.path, source.path, frozenset())


def entries(source: Source) -> Iterator[Entry]:
    """Lists the files of folders or of a manifest, in any order.

    Raises:
        UserError: a folder cannot be read, or a manifest is malformed.
    """
    if source.kind == MANIFEST:
        yield from manifests.entries(source.path)
    elif source.kind == FOLDERS:
        yield from _class_folders(source.path, source.path, None)
    else:
        for child in _children(source.path):
            if _is_dir(child) and not _is_litter(child):
                split = split_named(child.name)
                yield from _class_folders(Path(child.path), source.path, split)
            else:
                yield _loose(child, source.path)


def record_files(path: Path) -> list[tuple[Path, str | None]]:
    """The TFRecord files of a source with the split of the folder that each lies in, by name.

    They lie in the folder itself or below folders named after splits.
    """
    if path.is_file():
        return [(path, None)]
    found: list[tuple[Path, str | None]] = []
    for child in _children(path):
        if _RECORDS.search(child.name.lower()) and Path(child.path).is_file():
            found.append((Path(child.path), None))
        elif _is_dir(child) and (split := split_named(child.name)):
            found += [
                (Path(inner.path), split)
                for inner in _children(Path(child.path))
                if _RECORDS.search(inner.name.lower()) and Path(inner.path).is_file()
            ]
    return sorted(found)


def _class_folders(folder: Path, root: Path, split: str | None) -> Iterator[Entry]:
    for child in _children(folder):
        if not _is_dir(child):
            yield _loose(child, root)
        elif _is_litter(child):
            yield ignored(Path(child.path), root)
        else:
            yield from _images(Path(child.path), root, child.name, split, frozenset())


def _everything(folder: Path, root: Path, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
    """Every file below a folder but litter and what is hidden; `above` guards against rings."""
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for child in _children(folder):
        if _is_litter(child) or child.name.startswith("."):
            continue
        path = Path(child.path)
        if _is_dir(child):
            yield from _everything(path, root, above | {identity})
        else:
            yield Entry(path=path, name=_name(path, root), label=None)


def _images(
    folder: Path, root: Path, label: str, split: str | None, above: frozenset[tuple[int, int]]
) -> Iterator[Entry]:
    """Everything below a class folder; `above`, the folders on the way, guards against rings."""
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for child in _children(folder):
        path = Path(child.path)
        if _is_litter(child):
            yield ignored(path, root)
        elif _is_dir(child):
            yield from _images(path, root, label, split, above | {identity})
        else:
            name = class_named(label)
            entry = Entry(path=path, name=_name(path, root), label=name, split=split)
            if name is None:
                entry = entry.refuse("unusable-label", f"{label!r} is no name of a class")
            elif child.name.startswith("."):
                entry = entry.refuse("hidden-file", "its name starts with a dot")
            yield entry


def _loose(child: os.DirEntry[str], root: Path) -> Entry:
    """A file outside the class folders: a README is nobody's loss, an image is."""
    path = Path(child.path)
    try:
        if child.is_file() and not _is_litter(child):
            with path.open("rb") as stream:
                if identify(stream.read(_SIGNATURE_BYTES)):
                    entry = Entry(path=path, name=_name(path, root), label=None)
                    return entry.refuse("no-class", "it lies beside the class folders")
    except OSError:
        pass
    return ignored(path, root)


def _is_litter(child: os.DirEntry[str]) -> bool:
    """Whether operating systems and editors leave this in folders."""
    name = child.name.lower()
    if _is_dir(child):
        return name.startswith(".") or name in ("__macosx", "@eadir")
    return name in _LITTER or name.startswith("._")


def _is_dir(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError:  # A link in a ring: no folder, and no file that can be read.
        return False


def _children(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as children:
            yield from children
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be read: {error.strerror}. Make it readable, or move it "
            "out of the source."
        ) from error


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
