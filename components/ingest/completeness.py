"""Whether a drop has arrived whole: its manifest is there and agrees with its files.

Whoever brings a drop writes the manifest last. It is a list of images with their classes, the
source itself (see `manifests`), or `SHA256SUMS` as the command `sha256sum` writes it, which also
tells whether each file is as it was sent, or both. Imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from graftline.components.ingest import manifests
from graftline.serving.errors import UserError
from graftline.serving.image_check import identify as image_format
from graftline.serving.manifest import hash_file

SUMS = "SHA256SUMS"
NO_MANIFEST = "it has no manifest yet"
_LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini"}
_SUM = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
_ESCAPES = {r"\\": "\\", r"\n": "\n", r"\r": "\r"}
_SIGNATURE_BYTES = 16


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """How far a drop has arrived.

    Attributes:
        path: its folder.
        manifest: SHA-256 of its manifests: a folder that gets another manifest is another drop.
            Empty where there is none that can be read.
        problem: in words, what keeps it from being complete; empty where nothing does.
    """

    path: Path
    manifest: str = ""
    problem: str = ""

    @property
    def key(self) -> str:
        """Tells it from every other drop."""
        return f"{self.path.name} {self.manifest[:16]}"


def stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of what may be a drop's manifests; other ones once they change.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as children:
        found = [child for child in children if _may_be_manifest(child.name) and child.is_file()]
        stats = [(child.name, child.stat()) for child in found]
    return tuple(sorted((name, status.st_size, status.st_mtime_ns) for name, status in stats))


def fingerprint(folder: Path) -> str:
    """A digest of the names, sizes and times of a drop's files; another one once any changes.

    Raises:
        OSError: the folder cannot be read.
    """
    digest = hashlib.sha256()
    for name in sorted(_files(folder)):
        status = (folder / name).lstat()
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return digest.hexdigest()


def identify(folder: Path) -> Arrival:
    """Looks for a drop's manifests, and no further: `problem` tells only that there is none.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        speaking = _manifests(folder)
    except UserError as error:
        return Arrival(path=folder, problem=str(error))
    if not speaking:
        wanted = f"manifest.csv with the columns file and label, or {SUMS}"
        return Arrival(path=folder, problem=f"{NO_MANIFEST} ({wanted})")
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in speaking)).hexdigest()
    return Arrival(path=folder, manifest=digest)


def inspect(folder: Path) -> Arrival:
    """Looks whether a drop is complete; reads every file where there is a `SHA256SUMS`.

    Raises:
        OSError: the folder cannot be read.
    """
    arrival = identify(folder)
    if arrival.problem:
        return arrival
    files = set(_files(folder))
    speaking = _manifests(folder)
    try:
        for manifest in speaking:
            if manifest.name == SUMS:
                problem = _problem_of_sums(folder, files - {path.name for path in speaking})
            else:
                problem = _problem_of_list(folder, manifest, files)
            if problem:
                return msgspec.structs.replace(arrival, problem=problem)
    except UserError as error:
        return msgspec.structs.replace(arrival, problem=str(error))
    return arrival


def _manifests(folder: Path) -> list[Path]:
    """The list of images, then the sums, as far as they are there.

    Raises:
        UserError: there are several lists.
    """
    listed, sums = manifests.find(folder), folder / SUMS
    return [*([listed] if listed else []), *([sums] if sums.is_file() else [])]


def _may_be_manifest(name: str) -> bool:
    return name == SUMS or manifests.is_manifest(Path(name))


def _files(folder: Path) -> Iterator[str]:
    """Paths of all files within a folder, without what systems and editors leave there."""

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower() not in _LITTER:
                yield os.path.relpath(os.path.join(parent, name), folder)  # noqa: PTH118


def _problem_of_list(folder: Path, manifest: Path, files: set[str]) -> str:
    """What of a list of images is not there, or there and not listed."""
    listed = {os.path.normpath(entry.name): entry.path for entry in manifests.entries(manifest)}
    if not listed:
        return f"its manifest {manifest.name} lists no files"
    missing = (name for name, path in listed.items() if name not in files and not path.is_file())
    # A README may lie beside the images; an image that is not listed was forgotten, or the list
    # is not yet whole.
    left_out = (name for name in files - listed.keys() if _is_image(folder / name))
    return _told(missing, left_out, manifest.name)


def _problem_of_sums(folder: Path, files: set[str]) -> str:
    """What of the sums is not there, there and not listed, or not as it was sent."""
    sums = dict(_sums(folder / SUMS))
    if not sums:
        return f"its manifest {SUMS} lists no files"
    missing = (name for name in sums if not (folder / name).is_file())
    problem = _told(missing, files - sums.keys(), SUMS)
    if problem:
        return problem
    changed = [name for name, sha in sums.items() if hash_file(folder / name).sha256 != sha]
    if changed:
        return f"{_few(changed)} not as {SUMS} says"
    return ""


def _sums(manifest: Path) -> Iterator[tuple[str, str]]:
    """Names and sums.

    Raises:
        UserError: a line is none of sha256sum's.
    """
    text = manifest.read_text("utf-8", errors="surrogateescape")
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        match = _SUM.fullmatch(line)
        if match is None:
            raise UserError(
                f"line {number} of its manifest {SUMS} is not a sum and a name as sha256sum "
                "writes them"
            )
        escaped, digest, name = match.groups()
        if escaped:
            name = re.sub(r"\\[\\nr]", lambda found: _ESCAPES[found[0]], name)
        yield os.path.normpath(name), digest.lower()


def _told(missing: Iterable[str], left_out: Iterable[str], manifest: str) -> str:
    gone, forgotten = sorted(missing), sorted(left_out)
    problems = []
    if gone:
        problems.append(f"{_few(gone)} in its manifest {manifest} and not there")
    if forgotten:
        problems.append(f"{_few(forgotten)} there and not in its manifest {manifest}")
    return "; ".join(problems)


def _few(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{len(names)} files, e.g. {names[0]}, are"


def _is_image(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return image_format(stream.read(_SIGNATURE_BYTES)) is not None
    except OSError:
        return False
