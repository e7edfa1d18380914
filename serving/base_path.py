"""The base path of one model: publishing versions, and changing which one serves.

    <base>/<model>/1/              a plain SavedModel, with manifest.json and model_card.md
    <base>/<model>/2/
    <base>/<model>/withdrawn/3/    not a numeric name: no server sees it, nothing is lost
    <base>/<model>/history.jsonl   who changed what, when and why
    <base>/<model>/.graftline/     locks, and versions that are being written

TensorFlow Serving serves the highest numeric child and does not look whether it is complete. So a
version gets its number by one rename, after its files are on disk, and is taken out of service by
one rename, into `withdrawn/`. A base path is a folder; on an object store, which has no rename,
`_number` and `move_all` are the two places that would copy instead, `saved_model.pb` last.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from graftline.serving import history, manifest, model_card, models_config, soundness
from graftline.serving.errors import UserError
from graftline.serving.file_system import copy_tree, explained, locked, move_all, sync, write
from graftline.serving.history import Change, Event
from graftline.serving.manifest import Manifest, Problem
from graftline.serving.versions import (
    HIGHEST_NUMBER,
    WITHDRAWN,
    Version,
    list_versions,
    missing_file,
)

# A change is a few renames; a publisher copies a model, and the next one waits for it.
_CHANGE_TIMEOUT_SECONDS = 30.0
_PUBLISH_TIMEOUT_SECONDS = 900.0


class BasePath:
    """The versions of one model, in a folder that servers watch."""

    def __init__(self, root: Path) -> None:
        """Takes `<base>/<model>`, which the first `publish` makes."""
        self.root = root
        self._withdrawn = root / WITHDRAWN
        self._staging = root / ".graftline"
        self._history = root / history.FILE_NAME

    def versions(self) -> list[Version]:
        """All versions in ascending order, withdrawn ones included.

        Raises:
            UserError: the folder cannot be read.
        """
        with explained(f"Cannot list the versions in {self.root}"):
            found = list_versions(self.root)
            held = models_config.held(self.root)
        if not any(v.number == held and v.state == "present" for v in found):
            return found
        moved = {"in service": "present", "present": "in service"}
        return [
            msgspec.structs.replace(v, state=moved[v.state])
            if v.state == "in service" or (v.number, v.state) == (held, "present")
            else v
            for v in found
        ]

    def in_service(self) -> int | None:
        """The version that answers: the highest complete one, or the one that servers are held at.

        A server that watches the base path serves the highest; one with a `models.config` may be
        pinned to another, or that may carry the label `stable`. Whatever needs to know asks here.
        """
        return next((v.number for v in self.versions() if v.state == "in service"), None)

    def highest(self) -> int | None:
        """The highest complete version, which servers that are not held serve."""
        numbers = (v.number for v in self.versions() if v.state in ("in service", "present"))
        return max(numbers, default=None)

    def folder(self, number: int | None = None) -> Path:
        """The folder of a version that is not withdrawn, by default of the one in service.

        Raises:
            UserError: there is none.
        """
        versions = [v for v in self.versions() if v.state in ("in service", "present")]
        if not versions:
            raise UserError(
                f"Nothing is published in {self.root} yet. `graftline run` publishes a first "
                "version."
            )
        if number is None:
            number = next((v.number for v in versions if v.state == "in service"), None)
            assert number is not None
        return self._choose(versions, number)[-1].path

    def history(self) -> list[Event]:
        """Every recorded change, oldest first.

        Raises:
            UserError: the record cannot be read.
        """
        with explained(f"Cannot read the history of {self.root}"):
            return history.read(self._history)

    def publish(self, saved_model: Path, description: Manifest) -> int:
        """Makes a SavedModel the next version, in one rename, and returns its number.

        A model whose id was published before is not published again: its number is returned.

        Args:
            saved_model: folder of the SavedModel.
            description: its manifest; version, creation time and files are filled in here.

        Raises:
            UserError: there is no SavedModel, or the base path cannot be written. Then no version
                and no half-written folder is left behind.
        """
        missing = missing_file(saved_model)
        if missing:
            raise UserError(
                f"There is no SavedModel to publish in {saved_model}: {missing} is missing."
            )
        with (
            explained(f"Cannot publish a version in {self.root}"),
            locked(self._staging / "publish.lock", _PUBLISH_TIMEOUT_SECONDS),
        ):
            # Whoever writes one holds the lock, so these are of publishers that died.
            for stale in self._staging.glob("version-*"):
                shutil.rmtree(stale)
            number = self._published_as(description.model_id)
            if number is None:
                return self._publish_new(saved_model, description)
            with self._change_lock():
                # A publisher may have died between its rename and its record.
                self._record_publication(number)
            return number

    def withdraw(self, number: int, reason: str = "") -> Event | None:
        """Takes a version out of service without deleting it; None when it is already.

        Raises:
            UserError: there is no such version, or no other one that could serve.
        """
        with self._changing(f"Cannot withdraw version {number}"):
            versions = self.versions()
            present = [v for v in self._choose(versions, number) if v.state != "withdrawn"]
            if not present:
                return None
            serves = any(v.state != "incomplete" for v in present)
            others = [v for v in versions if v.state in ("in service", "present")]
            if serves and all(v.number == number for v in others):
                raise UserError(
                    f"Version {number} is the only one in {self.root} that can be served; without "
                    "it a server has nothing to serve. Publish or restore another one first."
                )
            self._require_unneeded({number})
            self._rename([(v.path, self._withdrawn) for v in present])
            return self.record("withdrawn", number, reason, withdrawn=(number,))

    def restore(self, number: int, reason: str = "") -> Event | None:
        """Puts a withdrawn version back; None when it is there already.

        Raises:
            UserError: there is no such version, or it is not what was published.
        """
        with self._changing(f"Cannot restore version {number}"):
            chosen = self._choose(self.versions(), number)
            if any(v.state in ("in service", "present") for v in chosen):
                return None
            soundness.require(chosen, self.history())
            self._rename([(v.path, self.root) for v in chosen])
            return self.record("restored", number, reason)

    def rollback(self, to: int | None = None, reason: str = "") -> Event | None:
        """Goes to another version by withdrawing every one above it; None when it serves already.

        The steps are ordered so that a server that looks at any moment finds a version, and goes
        from the one to the other in one step; when a step fails, those before it are undone.

        Args:
            to: the version to go to, restored when it is withdrawn; by default the one below the
                version in service.
            reason: why, for the history.

        Raises:
            UserError: there is nothing to go to, or it is not what was published.
        """
        with self._changing("Cannot roll back"):
            versions = self.versions()
            if to is None:
                to = self.below_service()
            target = self._choose(versions, to)
            soundness.require(target, self.history())
            back = [v for v in target if v.state == "withdrawn"]
            above = [v for v in versions if v.number > to and v.state != "withdrawn"]
            if not back and not above:
                return None
            self._require_unneeded({v.number for v in above})
            # Ascending, so that the version in service goes last: until then it serves, and then
            # the target is the highest.
            self._rename(
                [(v.path, self.root) for v in back] + [(v.path, self._withdrawn) for v in above]
            )
            withdrawn = tuple(sorted({v.number for v in above}))
            return self.record("rolled back", to, reason, withdrawn)

    def undo_rollback(self, before: Sequence[Version]) -> None:
        """Puts every folder back to where it was before a rollback, damaged ones, too.

        Args:
            before: all versions as they were.

        Raises:
            UserError: a folder cannot be moved.
        """
        with self._changing("Cannot undo the rollback"):
            moved = [v for v in before if not v.path.exists()]
            restored = [v for v in moved if v.state == "withdrawn"]
            # Descending, so that a server goes back in one step.
            left = [v for v in reversed(moved) if v.state != "withdrawn"]
            self._rename(
                [(self._withdrawn / v.path.name, self.root) for v in left]
                + [(self.root / v.path.name, self._withdrawn) for v in restored]
            )
            why = "the rollback was undone"
            for number in sorted({v.number for v in left}):
                self.record("restored", number, why)
            for number in sorted({v.number for v in restored}):
                self.record("withdrawn", number, why, withdrawn=(number,))

    def verify(self, number: int | None = None) -> dict[int, list[Problem]]:
        """Recomputes the hashes of one version, or of all, withdrawn ones included.

        Returns:
            What differs from the manifest, by version; an empty list where nothing does.

        Raises:
            UserError: there is no such version.
        """
        versions = self.versions()
        if number is not None:
            versions = self._choose(versions, number)
        with explained(f"Cannot verify {self.root}"):
            events = self.history()
            problems: dict[int, list[Problem]] = {}
            for version in versions:
                problems.setdefault(version.number, []).extend(soundness.problems(version, events))
        return problems

    def _choose(self, versions: Sequence[Version], number: int) -> list[Version]:
        """The folders of one version: usually one; `7` and `007` are the same to a server."""
        chosen = [v for v in versions if v.number == number]
        if not chosen:
            there = ", ".join(str(n) for n in sorted({v.number for v in versions})) or "none"
            raise UserError(
                f"There is no version {number} in {self.root}; there are: {there}. "
                "`graftline versions` shows them."
            )
        return chosen

    def below_service(self) -> int:
        """The version to go back to from the one in service.

        Raises:
            UserError: there is none.
        """
        versions = self.versions()
        serving = next((v for v in versions if v.state == "in service"), None)
        if serving is None:
            raise UserError(
                f"No version is in service in {self.root}, so there is none to go back from. "
                "Publish one with `graftline run`."
            )
        present = (v.number for v in versions if v.state == "present")
        below = max((number for number in present if number < serving.number), default=None)
        if below is None:
            raise UserError(
                f"Version {serving.number} is in service and there is none below it to go back "
                "to. `graftline versions` lists withdrawn ones too; `graftline rollback --to V` "
                "goes to one of them."
            )
        return below

    def require_servable(self, number: int) -> None:
        """Refuses a version that servers cannot be told to serve.

        Raises:
            UserError: there is no such version, it is withdrawn, or not what was published.
        """
        chosen = [v for v in self._choose(self.versions(), number) if v.state != "withdrawn"]
        if not chosen:
            raise UserError(
                f"Version {number} is withdrawn, so no server sees it. `graftline restore "
                f"{number}` puts it back."
            )
        soundness.require(chosen, self.history())

    def _require_unneeded(self, numbers: set[int]) -> None:
        """Refuses to take versions away that `models.config` tells servers to serve."""
        needed = models_config.needed(self.root) & numbers
        if needed:
            number = max(needed)
            raise UserError(
                f"Servers are told to serve version {number} ({self.root.parent}/"
                f"{models_config.FILE_NAME}), so it is not taken away from them. Have them serve "
                "another first: `graftline promote V` or `graftline pin V`; `graftline rollback` "
                "does both."
            )

    def _published_as(self, model_id: str) -> int | None:
        for version in self.versions():
            recorded = version.manifest
            if recorded is not None and recorded.model_id == model_id:
                return version.number
        return None

    def _publish_new(self, saved_model: Path, description: Manifest) -> int:
        staged = self._staging / f"version-{uuid.uuid4().hex}"
        try:
            copy_tree(saved_model, staged)
            files = manifest.hash_files(staged)
            with self._change_lock():
                number = self._number(staged, msgspec.structs.replace(description, files=files))
                self._record_publication(number)
            return number
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _number(self, staged: Path, description: Manifest) -> int:
        """Gives a staged model the number after the highest ever issued, and renames it."""
        while True:
            issued = [v.number for v in self.versions()] + [e.version for e in self.history()]
            number = max([0, *issued]) + 1
            if number > HIGHEST_NUMBER:
                raise UserError(
                    f"Version {HIGHEST_NUMBER} in {self.root} is the highest that a server can "
                    "read, so there is no number for the next. Move that folder away."
                )
            final = msgspec.structs.replace(description, version=number, created=history.now())
            card = staged / model_card.FILE_NAME
            write(card, model_card.render(final).encode())
            files = {**final.files, card.name: manifest.hash_file(card)}
            final = msgspec.structs.replace(final, files=files)
            write(staged / manifest.FILE_NAME, final.encode())
            sync(staged)
            try:
                # Does not replace a folder that holds anything, whoever put it there meanwhile.
                staged.rename(self.root / str(number))
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    continue
                raise
            sync(self.root)
            return number

    def _rename(self, steps: Sequence[tuple[Path, Path]]) -> None:
        self._withdrawn.mkdir(exist_ok=True)
        move_all(steps)

    def _record_publication(self, number: int) -> None:
        """Records a publication, once."""
        if history.publication(self.history(), number) is None:
            [version, *_] = self._choose(self.versions(), number)
            digest = manifest.hash_file(version.path / manifest.FILE_NAME).sha256
            self.record("published", number, "", manifest_sha256=digest)

    def record(
        self,
        what: Change,
        number: int,
        reason: str,
        withdrawn: tuple[int, ...] = (),
        manifest_sha256: str = "",
    ) -> Event:
        """Appends a change that was made to the history.

        Args:
            what: the change.
            number: the version that it named or ended at.
            reason: why, in the words of whoever made it.
            withdrawn: versions that were withdrawn with it.
            manifest_sha256: of a publication.
        """
        event = Event(
            when=history.now(),
            who=history.whoami(),
            what=what,
            version=number,
            in_service=self.in_service(),
            withdrawn=withdrawn,
            reason=reason,
            manifest_sha256=manifest_sha256,
        )
        try:
            history.append(self._history, event)
        except OSError as error:
            # A rollback must not fail because the disk is full: the change stands.
            logging.getLogger("graftline").warning(
                "Done, but it could not be recorded in %s (%s): %s", self._history, error, event
            )
        return event

    @contextlib.contextmanager
    def _changing(self, failure: str) -> Iterator[None]:
        with explained(f"{failure} in {self.root}"):
            if not self.root.exists():
                raise UserError(
                    f"{failure}: nothing is published in {self.root} yet. `graftline run` "
                    "publishes a first version."
                )
            with self._change_lock():
                yield

    def _change_lock(self) -> contextlib.AbstractContextManager[None]:
        return locked(self._staging / "change.lock", _CHANGE_TIMEOUT_SECONDS)
