"""Class names and names of splits: what counts as one, and as the same one."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from graftline.serving.errors import UserError

_SPLITS = {
    "train": "train",
    "training": "train",
    "eval": "eval",
    "evaluation": "eval",
    "val": "eval",
    "valid": "eval",
    "validation": "eval",
    "dev": "eval",
    "test": "test",
    "testing": "test",
}


def split_named(text: str) -> str | None:
    """The split that a word means, None where it means none."""
    return _SPLITS.get(text.strip().lower())


def class_named(text: str) -> str | None:
    """A class name in Unicode's composed form without outer white space; None where it is none."""
    name = unicodedata.normalize("NFC", text.strip())
    return name if name.isprintable() and name else None


class CaseWatch:
    """Notices class names that differ only in case: a slip that would make two classes of one."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        """Takes the classes that stand already, those of the schema."""
        self._seen = {name.lower(): name for name in known}

    def check(self, name: str, where: str) -> None:
        """Takes one more class name.

        Raises:
            UserError: another one differs from it only in case; names both.
        """
        first = self._seen.setdefault(name.lower(), name)
        if first != name:
            raise UserError(
                f"Two classes differ only in case: {first!r} and {name!r} (of {where}). One image "
                "would be told from the other by a slip of the keyboard: give them one name, or "
                "names that differ."
            )
