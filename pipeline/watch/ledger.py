"""What has become of every drop: `runs/watch.json`, written anew in one rename at every step.

It survives the watcher. Times in it are for people to read; nothing is decided by them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from graftline.pipeline.run_record import now
from graftline.serving.errors import UserError
from graftline.serving.file_system import sync

FILE_NAME = "watch.json"

State = Literal["dropping", "training", "published", "refused", "rejected", "given up"]
_UNFINISHED = ("dropping", "training")


class Entry(msgspec.Struct, kw_only=True):
    """One drop.

    Attributes:
        name: of its folder.
        state: dropping, training; or how it ended: published, refused by a gate, rejected as a
            drop, given up after too many failures.
        span: the span that it becomes, decided before it is taken in.
        failures: tries that failed so far.
        note: in words, the last thing that happened.
        since: UTC, ISO 8601, of the last change of state.
    """

    name: str
    state: State = "dropping"
    span: int | None = None
    failures: int = 0
    note: str = ""
    since: str = msgspec.field(default_factory=now)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.state not in _UNFINISHED


class _Content(msgspec.Struct, kw_only=True):
    drops: dict[str, Entry] = {}
    told: dict[str, str] = {}


class Ledger:
    """The record of all drops of a project.

    Raises:
        UserError: it cannot be read, or, in every method that writes, not be written.
    """

    def __init__(self, runs: Path) -> None:
        self.path = runs / FILE_NAME
        try:
            self._content = msgspec.json.decode(self.path.read_bytes(), type=_Content)
        except FileNotFoundError:
            self._content = _Content()
        except (OSError, msgspec.DecodeError) as error:
            raise UserError(
                f"The record of the drops, {self.path}, cannot be read: {error}. Move it away; "
                "drops that are spans already will then be found to hold nothing new."
            ) from error

    def entries(self) -> list[Entry]:
        """Every drop, in the order in which they were begun."""
        return list(self._content.drops.values())

    def find(self, key: str) -> Entry | None:
        """The entry of a drop."""
        return self._content.drops.get(key)

    def put(self, key: str, entry: Entry, state: State, note: str = "") -> None:
        """Writes down that a drop has come to a state."""
        if entry.state != state:
            entry.since = now()
        entry.state, entry.note = state, note
        self._content.drops[key] = entry
        self._write()

    def forget(self, name: str) -> bool:
        """Lets the drops of a name be taken anew; whether there were any."""
        kept = {key: entry for key, entry in self._content.drops.items() if entry.name != name}
        found = len(kept) < len(self._content.drops)
        self._content.drops = kept
        self._content.told.pop(name, None)
        self._write()
        return found

    def tell_once(self, name: str, fingerprint: str) -> bool:
        """Whether it has not been told yet that this drop, as it is, is not complete."""
        if self._content.told.get(name) == fingerprint:
            return False
        self._content.told[name] = fingerprint
        self._write()
        return True

    def _write(self) -> None:
        staged = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            staged.write_bytes(msgspec.json.format(msgspec.json.encode(self._content), indent=2))
            sync(staged)
            staged.replace(self.path)
            sync(self.path.parent)
        except OSError as error:
            raise UserError(
                f"The record of the drops, {self.path}, cannot be written: {error.strerror}. "
                "Without it a drop would be taken twice: free or open its folder, then watch again."
            ) from error
