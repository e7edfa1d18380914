"""The output folder of a batch prediction: what was asked, what is done, who is at work.

predictions-00000-of-00012.jsonl    one row per image; a part is whole or not there
bad-00003-of-00012.jsonl            images without a prediction, where there are any
summary.json                        written at the end
.graftline/plan.json                what was asked; there once the listing is whole
.graftline/listing/                 the images of each part
.graftline/done/                    what became of each part
.graftline/model/                   the version, kept until the end
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import filelock
import msgspec

from graftline.components.batch_prediction.tables import PARTIAL, SUFFIXES
from graftline.serving.errors import UserError
from graftline.serving.file_system import link_or_copy, sync
from graftline.serving.image_check import Limits

WORK = ".graftline"
SUMMARY = "summary.json"
_PLAN = "plan.json"
_LOCK = "lock"
_HOLDER = "holder"
_LOCK_SECONDS = 0.5


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of a batch prediction.

    Attributes:
        source: folder, manifest or TFRecords, absolute.
        kind: of the source.
        version: number of the version.
        format: of the tables.
        feature: with the encoded image, where the source is TFRecords; else empty.
        limits: what an image may be.
        images: how many are listed; 0 where files of records were listed, whose images nobody has
            counted.
        parts: of how many files each table is.
        begun: UTC, ISO 8601.
    """

    source: str
    kind: str
    version: int
    format: str
    feature: str
    limits: Limits
    images: int
    parts: int
    begun: str


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one part: images by predicted class, and by reason where there is none."""

    classes: dict[str, int]
    bad: dict[str, int]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What came out.

    Attributes:
        source, version, format: as asked.
        images: with a prediction.
        classes: how many of each class were predicted.
        bad: how many have no prediction, by reason.
        parts: of how many files the tables are.
        begun, ended: UTC, ISO 8601.
    """

    source: str
    version: int
    format: str
    images: int
    classes: dict[str, int]
    bad: dict[str, int]
    parts: int
    begun: str
    ended: str


class Output:
    """An output folder that this process holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / WORK
        self.listing = self.work / "listing"
        self.model = self.work / "model"
        self._done = self.work / "done"

    def plan(self) -> Plan | None:
        """What was asked before; None where nothing was, or its listing was not finished."""
        try:
            return msgspec.json.decode((self.work / _PLAN).read_bytes(), type=Plan)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise UserError(
                f"{self.work / _PLAN} is damaged ({error}): delete {self.folder}, or name another "
                "output folder."
            ) from error

    def check(
        self, source: Path, version: int | None, kind: str, feature: str, limits: Limits
    ) -> Plan | None:
        """What was asked before, where that is what is asked now.

        Args:
            source: what is asked now.
            version: likewise; None: whichever.
            kind: the format, likewise.
            feature: likewise.
            limits: likewise.

        Raises:
            UserError: it is another prediction, and two in one folder cannot be told apart.
        """
        plan = self.plan()
        if plan is None:
            return None
        wanted = (str(source), kind, version or plan.version)
        if (plan.source, plan.format, plan.version) != wanted:
            raise UserError(
                f"{self.folder} holds predictions of {plan.source} by version {plan.version} as "
                f"{plan.format}, begun {plan.begun}. Ask for the same to go on with them, or name "
                "another folder."
            )
        before = {"features.image": plan.feature, **msgspec.structs.asdict(plan.limits)}
        now = {"features.image": feature, **msgspec.structs.asdict(limits)}
        if other := [f"drop.{key} {value}" for key, value in before.items() if now[key] != value]:
            raise UserError(
                f"{self.folder} holds predictions that were begun with {', '.join(other)}. Set it "
                "to that to go on with them, or name another folder."
            )
        return plan

    def begin(self, version: Path) -> None:
        """Makes the folders, and holds the version: it may be withdrawn before the end."""
        for stale in (self.listing, self.model, self._done):
            shutil.rmtree(stale, ignore_errors=True)
        self.listing.mkdir()
        self._done.mkdir()
        shutil.copytree(version, self.model, copy_function=link_or_copy)

    def keep(self, plan: Plan) -> None:
        """Writes what was asked, once everything is listed."""
        _replace(self.work / _PLAN, plan)

    def clear_partial(self) -> None:
        """Removes what a process that died has half written."""
        for partial in self.folder.glob(f".*{PARTIAL}"):
            partial.unlink()

    def part_file(self, table: str, number: int, plan: Plan) -> Path:
        """The file of a part of `predictions` or `bad`."""
        name = f"{table}-{number:05d}-of-{plan.parts:05d}{SUFFIXES[plan.format]}"
        return self.folder / name

    def note(self, number: int, part: Part) -> None:
        """Writes what became of a part, before the part itself is there."""
        _replace(self._done / f"{number:05d}.json", part)

    def missing(self, plan: Plan) -> list[int]:
        """The numbers of the parts that are not there yet."""
        return [
            number
            for number in range(plan.parts)
            if not self.part_file("predictions", number, plan).exists()
        ]

    def check_complete(self, plan: Plan) -> None:
        """Refuses a folder that was complete and is no more.

        Raises:
            UserError: parts are gone.
        """
        if missing := self.missing(plan):
            raise UserError(
                f"{len(missing)} of the {plan.parts} parts are gone from {self.folder}, whose "
                "prediction was complete. Delete the folder, or name another one, and predict anew."
            )

    def conclude(self, plan: Plan) -> Summary:
        """Adds up the parts, writes the summary and lets the version go."""
        classes: Counter[str] = Counter()
        bad: Counter[str] = Counter()
        for path in self._done.glob("*.json"):
            part = msgspec.json.decode(path.read_bytes(), type=Part)
            classes.update(part.classes)
            bad.update(part.bad)
        summary = Summary(
            source=plan.source,
            version=plan.version,
            format=plan.format,
            images=sum(classes.values()),
            classes=dict(classes.most_common()),
            bad=dict(bad.most_common()),
            parts=plan.parts,
            begun=plan.begun,
            ended=now(),
        )
        _replace(self.folder / SUMMARY, summary)
        shutil.rmtree(self.model, ignore_errors=True)
        shutil.rmtree(self.listing, ignore_errors=True)
        return summary

    def summary(self) -> Summary | None:
        """What came out; None before the end."""
        try:
            return msgspec.json.decode((self.folder / SUMMARY).read_bytes(), type=Summary)
        except FileNotFoundError:
            return None


def is_begun(folder: Path) -> bool:
    """Whether a folder holds a batch prediction that can go on."""
    return (folder / WORK / _PLAN).is_file()


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[Output]:
    """An output folder, made where there is none, held against other processes.

    Raises:
        UserError: it holds something else, another process writes it, it cannot be written, or the
            disk is full.
    """
    with explained(folder):
        if folder.is_dir() and not (folder / WORK).is_dir() and any(folder.iterdir()):
            raise UserError(
                f"The output folder {folder} holds other things already. Name one that is new or "
                "empty, or the folder of a batch prediction that is to go on."
            )
        work = folder / WORK
        work.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(work / _LOCK, timeout=_LOCK_SECONDS):
                (work / _HOLDER).write_text(f"process {os.getpid()}, since {now()}")
                output = Output(folder)
                output.clear_partial()
                yield output
        except filelock.Timeout:
            raise UserError(
                f"Another batch prediction writes to {folder} ({_who(work)}). Wait until it has "
                "ended, or name another folder."
            ) from None


def _who(work: Path) -> str:
    try:
        return (work / _HOLDER).read_text()
    except OSError:
        return "it has just begun"


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Says what a person can do about a disk that is full or a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk of {folder} is full. Free some space, then run the same command again: "
                "it goes on with the parts that are missing."
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"The output folder {folder} cannot be written: {error.strerror}. Name a folder "
                "that is writable for this user."
            ) from error
        raise


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _replace(path: Path, content: msgspec.Struct) -> None:
    staged = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    staged.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2))
    sync(staged)
    staged.replace(path)
