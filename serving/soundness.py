"""Whether a version is what was published.

Its files are held against its manifest, and that against the history.
"""

from __future__ import annotations

from collections.abc import Sequence

from graftline.serving import history, manifest
from graftline.serving.errors import UserError
from graftline.serving.history import Event
from graftline.serving.manifest import Problem
from graftline.serving.versions import Version, missing_file

_NO_MANIFEST = Problem(manifest.FILE_NAME, "missing")


def problems(version: Version, events: Sequence[Event]) -> list[Problem]:
    """What of a version is not as it was published; reads all of its files.

    Args:
        version: the version.
        events: history of its base path.
    """
    path = version.path / manifest.FILE_NAME
    if not path.is_file():
        missing = missing_file(version.path)
        return [Problem(missing, "missing")] if missing else [_NO_MANIFEST]
    recorded = version.manifest
    if recorded is None:
        return [Problem(manifest.FILE_NAME, "unreadable")]
    found = manifest.compare(version.path, recorded)
    published = history.publication(events, version.number)
    if published and published.manifest_sha256 != manifest.hash_file(path).sha256:
        found.append(Problem(manifest.FILE_NAME, "changed"))
    return found


def require(versions: Sequence[Version], events: Sequence[Event]) -> None:
    """Refuses versions that are not what was published, before they are put in service.

    One that another program put there, without a manifest, has nothing to be compared with.

    Args:
        versions: those to be served.
        events: history of their base path.

    Raises:
        UserError: one is incomplete or was changed.
    """
    for version in versions:
        missing = missing_file(version.path)
        if missing:
            raise UserError(
                f"Version {version.number} is incomplete: {version.path} lacks {missing}. "
                "Choose another version, or copy this one there whole."
            )
        found = problems(version, events)
        foreign = history.publication(events, version.number) is None
        if found and not (foreign and found == [_NO_MANIFEST]):
            named = ", ".join(f"{problem.file} {problem.what}" for problem in found[:5])
            raise UserError(
                f"Version {version.number} is not what was published ({named}), so it is not put "
                f"in service. `graftline verify {version.number}` shows all of it; choose another "
                "version, or copy the files back as they were."
            )
