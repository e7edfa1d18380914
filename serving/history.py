"""The record of what was changed under a base path: who, when, what and why.

One JSON line per change in `history.jsonl`, appended and synced. A process or a machine that dies
while it appends leaves at most a torn last line, which readers skip and the next append closes.
"""

from __future__ import annotations

import datetime
import getpass
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from graftline.serving.file_system import sync

FILE_NAME = "history.jsonl"

Change = Literal[
    "published",
    "withdrawn",
    "restored",
    "rolled back",
    "pinned",
    "unpinned",
    "promoted",
    "canary",
    "canary ended",
]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a base path.

    Attributes:
        when: UTC.
        who: user and machine.
        what: the command.
        version: the version that the command named or ended at.
        in_service: the version in service afterwards.
        withdrawn: versions that were withdrawn with it.
        reason: why, in the words of whoever did it.
        manifest_sha256: hex SHA-256 of the published version's manifest.
    """

    when: datetime.datetime
    who: str
    what: Change
    version: int
    in_service: int | None
    withdrawn: tuple[int, ...] = ()
    reason: str = ""
    manifest_sha256: str = ""


def now() -> datetime.datetime:
    """The time, UTC, in whole seconds."""
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


def whoami() -> str:
    """User and machine; the number of a user who has no name, as in many containers."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def append(path: Path, event: Event) -> None:
    """Appends one event and returns when it is on disk.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        line = (b"\n" if torn else b"") + msgspec.json.encode(event) + b"\n"
        if os.write(descriptor, line) != len(line):
            raise OSError(f"{path}: only a part of the line could be written")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if size == 0:
        sync(path.parent)


def read(path: Path) -> list[Event]:
    """All events, oldest first; torn lines are skipped."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [event for line in lines if (event := _parse(line))]


def _parse(line: bytes) -> Event | None:
    try:
        return msgspec.json.decode(line, type=Event)
    except msgspec.DecodeError:
        return None


def publication(events: Sequence[Event], number: int) -> Event | None:
    """The last publication of a version; None where another program put it there."""
    published = [e for e in events if e.what == "published" and e.version == number]
    return published[-1] if published else None
