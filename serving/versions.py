"""What stands under a base path, read as TensorFlow Serving reads it, without a lock.

A child is a version when its whole name parses as an integer, whatever it contains
(tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

from graftline.serving.manifest import Manifest

State = Literal["in service", "present", "withdrawn", "incomplete"]

SAVED_MODEL = "saved_model.pb"
WITHDRAWN = "withdrawn"
HIGHEST_NUMBER = (1 << 63) - 1
# What absl::SimpleAtoi<int64> accepts: "007" and " +7 " are version 7, "7.tmp" and "٧" are none.
_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+)[ \t\n\v\f\r]*", re.ASCII)
_SHARD = re.compile(r"variables\.data-[0-9]{5}-of-([0-9]{5})", re.ASCII)


class Version(msgspec.Struct, frozen=True):
    """One version under a base path.

    Attributes:
        number: its number.
        state: `in service`, `present` (a server may be asked for it), `withdrawn`, or `incomplete`
            (a numeric name without a whole SavedModel, which another program or a person put
            there or is still copying).
        path: its folder.
    """

    number: int
    state: State
    path: Path

    @property
    def manifest(self) -> Manifest | None:
        """Its manifest; None where another program put the version there."""
        return Manifest.read(self.path)


def loadable(folder: Path) -> bool:
    """Whether a server finds a SavedModel in a folder, and no file of it is missing by name."""
    return not missing_file(folder)


def missing_file(folder: Path) -> str:
    """A file that a SavedModel cannot do without and that its folder lacks; empty: it has them all.

    Variables consist of an index and of shards, whose names tell how many there are; a SavedModel
    without variables has no such folder, or an empty one.
    """
    if not any((folder / name).is_file() for name in (SAVED_MODEL, "saved_model.pbtxt")):
        return SAVED_MODEL
    try:
        names = {path.name for path in (folder / "variables").iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return ""
    if not names:
        return ""
    totals = {match[1] for match in map(_SHARD.fullmatch, names) if match} or {"00001"}
    needed = {f"variables.data-{k:05}-of-{total}" for total in totals for k in range(int(total))}
    return next((f"variables/{name}" for name in sorted({"variables.index", *needed} - names)), "")


def list_versions(root: Path) -> list[Version]:
    """All versions under `<base>/<model>` in ascending order, withdrawn ones included.

    Raises:
        OSError: the folder is there and cannot be read.
    """
    listing = _look(root)
    # A version that is moved between the two folders while they are read would be seen twice or
    # not at all.
    while (again := _look(root)) != listing:
        listing = again
    return listing


def _look(root: Path) -> list[Version]:
    found = [
        Version(number, "present" if loadable(path) else "incomplete", path)
        for number, path in numeric_children(root)
    ]
    serving = max((i for i, v in enumerate(found) if v.state == "present"), default=None)
    if serving is not None:
        found[serving] = msgspec.structs.replace(found[serving], state="in service")
    found += [Version(n, "withdrawn", path) for n, path in numeric_children(root / WITHDRAWN)]
    return sorted(found, key=lambda version: version.number)


def numeric_children(folder: Path) -> list[tuple[int, Path]]:
    """The children that a server takes for versions, ascending; none where there is no folder.

    Of two equal numbers, `7` and `007`, a server serves the one whose name comes last.

    Raises:
        OSError: the folder is there and cannot be read.
    """
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return []
    matches = ((_NUMBER.fullmatch(path.name), path) for path in paths)
    children = [(int(match[1]), path) for match, path in matches if match]
    return sorted(
        ((n, path) for n, path in children if -HIGHEST_NUMBER - 1 <= n <= HIGHEST_NUMBER),
        key=lambda child: (child[0], child[1].name),
    )
