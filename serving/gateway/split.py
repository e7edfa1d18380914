"""Which version a caller is answered by: `stable` or `canary`, the same one every time."""

from __future__ import annotations

import hashlib
from pathlib import Path

from graftline.serving import traffic
from graftline.serving.gateway.watched_file import WatchedFile
from graftline.serving.traffic import Traffic


class Split(WatchedFile[Traffic]):
    """The split in force for a model; read again when its file changes."""

    def __init__(self, root: Path) -> None:
        """Reads the file; there need be none.

        Args:
            root: `<base>/<model>`.

        Raises:
            UserError: it is not what `promote` and `canary` write.
        """
        super().__init__(root / traffic.FILE_NAME, lambda path: traffic.read(path.parent))

    def label(self, caller: str) -> str | None:
        """The label that a caller's requests ask for; None: none, the server chooses."""
        return choose(self.value, caller)


def choose(split: Traffic, caller: str) -> str | None:
    """The label for a caller, who stays with the canary when its share grows.

    Args:
        split: the labels there are, and the canary's share.
        caller: their name.
    """
    if split.canary is not None and _place(caller) < split.canary_percent:
        return traffic.CANARY
    return traffic.STABLE if split.stable is not None else None


def _place(caller: str) -> float:
    """Where a caller stands between 0 and 100, evenly spread."""
    digest = hashlib.sha256(caller.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * 100
