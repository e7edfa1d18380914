"""Files with ImageNet weights: from a folder that the user can choose and fill, else downloaded.

A file is complete when its hash, where Keras publishes one, is the expected one; else when the
network can be read from it. A download appears in the folder whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from graftline.serving.errors import UserError

_BLOCK = 1 << 20


def find_or_fetch(
    folder: Path, progress: Callable[[str], None], name: str, address: str, expected: str | None
) -> Path:
    """The path of a weight file, downloaded where it is missing.

    Args:
        folder: where weight files are kept.
        progress: told how far a download is.
        name: of the file.
        address: where it comes from.
        expected: its MD5 or SHA-256 in hexadecimal, where one is known.

    Raises:
        UserError: it is damaged, or missing and cannot be downloaded or written; says where to get
            it and where to put it.
    """
    path = folder / name
    if path.exists():
        if expected and _hash(path, expected) != expected:
            raise UserError(
                f"The weight file {path} is torn or another one: its hash is "
                f"{_hash(path, expected)}, expected {expected}. Delete it, to have it fetched from "
                f"{address} again."
            )
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(path, address, expected, progress)
    except urllib.error.URLError as error:
        raise UserError(
            f"The weights {name} are not on this machine and could not be downloaded "
            f"({error.reason}). Fetch {address} where there is a network and put it at {path}, or "
            "use backbone efficientnet_lite0 with weights bundled, which needs no download."
        ) from error
    except OSError as error:
        raise UserError(
            f"The weights {name} could not be kept in {folder} ({error.strerror or error}). Name "
            "another folder in paths.weights."
        ) from error
    return path


def _download(
    path: Path, address: str, expected: str | None, progress: Callable[[str], None]
) -> None:
    with (
        urllib.request.urlopen(address, timeout=60) as response,
        tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-") as part,
    ):
        total = int(response.headers.get("Content-Length") or 0)
        done = 0
        while block := response.read(_BLOCK):
            part.write(block)
            done += len(block)
            of = f" of {total / 1e6:.0f}" if total else ""
            progress(f"downloading {path.name}: {done / 1e6:.0f}{of} MB")
        part.flush()
        os.fsync(part.fileno())
        if total and done != total:
            raise urllib.error.URLError(f"the connection broke after {done} of {total} bytes")
        found = _hash(Path(part.name), expected) if expected else expected
        if found != expected:
            raise urllib.error.URLError(f"its hash is {found}, expected {expected}")
        # A link, not a rename: the temporary file's own removal then finds it where it was.
        if not path.exists():
            os.link(part.name, path)


def _hash(path: Path, like: str) -> str:
    """The hash of a file, by the algorithm of another: MD5 has 32 digits, SHA-256 64."""
    digest = hashlib.md5(usedforsecurity=False) if len(like) == 32 else hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
