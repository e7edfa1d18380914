"""Files with ImageNet weights: from a folder that the user can choose and fill, else downloaded.

A file is complete when its hash, where Keras publishes one, is the expected one; else when the
network can be read from it. A download appears in the folder whole or not at all.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from pathlib import Path

import h5py

from graftline.serving.errors import UserError

_BLOCK = 1 << 20
# What a network does to a download; all else that an operating system refuses is the disk's.
_BROKEN = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
)
_ABOUT_KERAS = ("backend", "keras_version")


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
    except _BROKEN as error:
        why = getattr(error, "reason", "") or str(error) or type(error).__name__
        raise UserError(
            f"The weights {name} are not on this machine and could not be downloaded "
            f"({why}). Fetch {address} where there is a network and put it at {path}, or "
            "use backbone efficientnet_lite0 with weights bundled, which needs no download."
        ) from error
    except OSError as error:
        raise UserError(
            f"The weights {name} could not be kept in {folder} ({error.strerror or error}). Name "
            "another folder in paths.weights."
        ) from error
    return path


def without_other_layers(path: Path, layers: Collection[str], scratch: Path) -> Path:
    """A weight file without layers that a network does not have, such as its top.

    Args:
        path: an .h5 file of weights, or of a whole model, as Keras writes them.
        layers: names of the layers that the network has.
        scratch: folder for the copy.

    Returns:
        the copy, or the file itself where it holds no other layers.

    Raises:
        OSError: it is no HDF5 file.
    """
    with h5py.File(path) as whole:
        stored = whole.get("model_weights", whole)
        names = _layer_names(stored)
        if not any(len(stored[name]) for name in names if name not in layers):
            return path
        own = [name for name in names if name in layers]
        copy = scratch / path.name
        with h5py.File(copy, "w") as target:
            target.attrs.update({k: v for k, v in stored.attrs.items() if k in _ABOUT_KERAS})
            target.attrs["layer_names"] = [name.encode() for name in own]
            for name in own:
                stored.copy(name, target)
    return copy


def _layer_names(stored: h5py.Group) -> list[str]:
    """Names in the order of the file; long lists stand in several attributes."""
    parts = [key for key in stored.attrs if re.fullmatch(r"layer_names\d*", key)]
    parts.sort(key=lambda key: int(key.removeprefix("layer_names") or 0))
    names = [name for key in parts for name in stored.attrs[key]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


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
