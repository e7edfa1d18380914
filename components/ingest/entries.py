"""One file of a source, as listed, before anyone has looked into it."""

from __future__ import annotations

from pathlib import Path

import msgspec

IGNORED = "ignored"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a source, or one record of a file.

    Attributes:
        path: the file.
        name: how people know it: its path within the source.
        label: class name, None where the source gives none.
        split: train, eval or test where the source gives one, else None.
        start: where the image begins in the file, in bytes.
        size: bytes of the image; None: the rest of the file.
        reason: why it cannot be used, where the listing tells already.
        detail: the same in words.
    """

    path: Path
    name: str
    label: str | None
    split: str | None = None
    start: int = 0
    size: int | None = None
    reason: str = ""
    detail: str = ""

    def refuse(self, reason: str, detail: str) -> Entry:
        """The same entry, not to be used."""
        return msgspec.structs.replace(self, reason=reason, detail=detail)


def ignored(path: Path, root: Path) -> Entry:
    """An entry that is counted and nothing else: litter of operating systems, a README."""
    return Entry(path=path, name=path.relative_to(root).as_posix(), label=None, reason=IGNORED)
