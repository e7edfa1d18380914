"""API keys: random, stored as hashes in a file that is read again when it changes.

    # name  SHA-256 of the key
    shop    5d41402abc4b2a76b9719d911017c592…

A key has 256 random bits, so one round of SHA-256 is enough: there is no word list to try
(OWASP's slow hashes are for passwords). All hashes are compared, each in constant time, so that the
time of an answer tells nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from graftline.serving.errors import UserError
from graftline.serving.gateway.refusals import Refusal
from graftline.serving.gateway.watched_file import WatchedFile

HEADER = "X-API-Key"
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,62})[ \t]+([0-9a-f]{64})")
_LONGEST = 512


def new_key(name: str) -> tuple[str, str]:
    """Makes a key.

    Args:
        name: of the caller.

    Returns:
        The key, for the caller alone, and the line for the file.

    Raises:
        UserError: the name is none.
    """
    key = f"gk_{secrets.token_urlsafe(32)}"
    line = f"{name} {_hash(key.encode()).hex()}"
    if not _LINE.fullmatch(line):
        raise UserError(
            f"{name!r} is no name for a key: at most 63 letters, digits, dots, dashes and "
            "underscores, a letter or digit first."
        )
    return key, line


def read_keys(path: Path) -> Mapping[str, bytes]:
    """The hashes in a file, by the callers' names.

    Raises:
        UserError: a line is not as it should be, or a name stands twice.
        OSError: it cannot be read.
    """
    keys: dict[str, bytes] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if not found or found[1] in keys:
            wrong = f"the name {found[1]} stands twice" if found else "not `NAME SHA256`"
            raise UserError(
                f"Line {number} of {path}: {wrong}. `graftline gateway --new-key NAME` makes a key "
                "and prints the line for it."
            )
        keys[found[1]] = bytes.fromhex(found[2])
    return keys


class ApiKeys(WatchedFile[Mapping[str, bytes]]):
    """The keys that are let in."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            UserError: it cannot be read, or is not as it should be.
        """
        super().__init__(path, read_keys)

    def caller(self, key: str) -> str:
        """The name of the caller whose key this is.

        Raises:
            Refusal: it is nobody's.
        """
        presented = _hash(key[:_LONGEST].encode("utf-8", "surrogateescape"))
        names = [
            name for name, known in self.value.items() if hmac.compare_digest(known, presented)
        ]
        if not names or len(key) > _LONGEST:
            raise Refusal(401, "bad-key", "The API key is not known.")
        return names[0]


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
