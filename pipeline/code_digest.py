"""A digest of everything that a node's result depends on and that TFX's cache does not see.

TFX hashes a node's inputs and parameters, not the code of functions that are given by name, nor
the versions of the libraries. The digest goes into the parameters of every node, so that a result
of other code is never taken from the cache.
"""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sysconfig
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path

from graftline.serving.manifest import hash_file


@functools.lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 over the sources that nodes execute and the versions of installed packages."""
    digest = hashlib.sha256(sources_digest().encode())
    # Not whatever is on the path: libraries put folders of their own there once they are imported.
    installed = metadata.distributions(
        path=sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    )
    versions = {f"{distribution.name}=={distribution.version}" for distribution in installed}
    digest.update("\n".join(sorted(versions)).encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def sources_digest() -> str:
    """SHA-256 over the sources that nodes execute."""
    digest = hashlib.sha256()
    for package in ("components", "pipeline", "schemas", "serving"):
        for source in _sources(Path(str(resources.files(f"graftline.{package}")))):
            digest.update(source)
    return digest.hexdigest()


# What the features of an image depend on, beside configuration and weights.
_OF_FEATURES = (
    "pipeline/preprocessing.py",
    "pipeline/exif.py",
    "components/trainer/augmentation.py",
    "components/trainer/inputs.py",
    "components/trainer/network.py",
    "components/trainer/cuts.py",
    "components/trainer/feature_computer.py",
    "components/trainer/backbones",
)


@functools.lru_cache(maxsize=1)
def features_digest() -> str:
    """SHA-256 over the sources, and the versions of the libraries, that turn images to features."""
    digest = hashlib.sha256()
    for name in _OF_FEATURES:
        package, _, inner = name.partition("/")
        path = Path(str(resources.files(f"graftline.{package}"))) / inner
        for source in _sources(path) if path.is_dir() else [path.read_bytes()]:
            digest.update(source)
    for library in ("tensorflow", "tf-keras"):
        digest.update(metadata.version(library).encode())
    return digest.hexdigest()


def _sources(folder: Path) -> Iterator[bytes]:
    """Names and contents of all sources below a folder; the command line computes nothing."""
    for source in sorted(folder.rglob("*")):
        relative = source.relative_to(folder)
        if source.suffix in (".py", ".pbtxt") and relative.parts[0] != "cli":
            yield str(relative).encode()
            yield source.read_bytes()


def file_digest(path: Path) -> str:
    """SHA-256 of a file; empty where there is none."""
    return hash_file(path).sha256 if path.is_file() else ""


def code_revision(project_root: Path) -> str:
    """Graftline's version and, where the project is kept in Git, the revision of its checkout."""
    revision = f"graftline {metadata.version('graftline')}"
    try:
        described = subprocess.run(
            ["git", "-C", str(project_root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return revision
    return f"{revision}, project {described}"
