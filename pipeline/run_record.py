"""The record of a run: `runs/<run-id>/run.json`, readable without TFX.

Written anew, in one rename, at every event of the run, so that `status`, `drops` and whoever looks
after a crash find out how far it came.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import filelock
import msgspec

from graftline.components.verdict import GATES
from graftline.pipeline.plan import SpanVersion
from graftline.serving.errors import UserError
from graftline.serving.file_system import is_held

FILE_NAME = "run.json"
LOG_NAME = "run.log"
LOCK_NAME = ".lock"
_ALIVE = ".alive"

RUNNING = "running"
PUBLISHED = "published"
REFUSED = "refused"
TUNED = "tuned"
FAILED = "failed"
INTERRUPTED = "interrupted"


class NodeRecord(msgspec.Struct, kw_only=True):
    """One node of a run.

    Attributes:
        id: its name.
        state: how it ended: `done`, `cached`, `failed`, or `running`.
        seconds: how long it took.
        peak_mb: highest memory of the process that ran it and those below it; 0: not measured.
    """

    id: str
    state: str
    seconds: float = 0.0
    peak_mb: int = 0


class RunRecord(msgspec.Struct, kw_only=True):
    """One run.

    Attributes:
        run_id: its name and folder.
        span: number of the span that it ingested.
        version: version of that span.
        window: all spans that it trained on.
        state: running, published, refused, tuned, failed or interrupted.
        started: UTC, ISO 8601.
        finished: UTC, empty while it runs.
        pid: process that runs it.
        cluster: the run of Kubeflow Pipelines whose steps run it, in place of a process; else
            empty.
        lease_minutes: after how long without a sign of life such a run counts as dead.
        nodes: the nodes so far, in order.
        refused_by: `data`, `model` or `probe` where a gate said no.
        refused_spans: spans that the data gate refused in this run.
        published_version: version under the base path, where it got so far.
        error: last line of what went wrong.
        digest: of the code and the schema that it ran with last.
        took_up: the earlier run whose refused candidate this one publishes, else empty.
        tunes: whether it tries values and publishes nothing.
        attempt: counts up when a run is resumed with other code or another schema.
    """

    run_id: str
    span: int
    version: int
    window: tuple[SpanVersion, ...] = ()
    state: str = RUNNING
    started: str = msgspec.field(default_factory=lambda: now())
    finished: str = ""
    pid: int = msgspec.field(default_factory=os.getpid)
    cluster: str = ""
    lease_minutes: int = 0
    nodes: list[NodeRecord] = []
    refused_by: str = ""
    refused_spans: tuple[SpanVersion, ...] = ()
    published_version: int | None = None
    error: str = ""
    digest: str = ""
    took_up: str = ""
    tunes: bool = False
    attempt: int = 1

    def write(self, runs: Path) -> None:
        """Replaces the record on disk in one rename."""
        path = runs / self.run_id / FILE_NAME
        staged = path.with_suffix(".tmp")
        staged.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2))
        staged.replace(path)

    @property
    def target(self) -> SpanVersion:
        """The span that the run ingested."""
        return SpanVersion(self.span, self.version)

    @property
    def refuser(self) -> str:
        """Which gate said no, as people call it; empty where none did."""
        return GATES.get(self.refused_by, "")

    @property
    def can_go_on(self) -> bool:
        """Whether it may be taken up again: it broke off, or a server may do better next time."""
        if self.state == REFUSED:
            return self.refused_by == "probe"
        return self.state not in (PUBLISHED, TUNED)

    @property
    def key(self) -> str:
        """Its name in the metadata store, which may outlive a folder of runs that was emptied.

        Under the same name a node that is complete there is not looked at again.
        """
        again = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"{self.run_id} of {self.started}{again}"

    @property
    def seconds(self) -> float:
        """Sum over the nodes."""
        return sum(node.seconds for node in self.nodes)


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def new_run_id(runs: Path) -> str:
    """A name for the next run: a number that counts up."""
    return f"run-{max(map(_number, runs.glob('run-*')), default=0) + 1:04d}"


def _number(folder: Path) -> int:
    digits = folder.name.removeprefix("run-")
    return int(digits) if digits.isdigit() else 0


def records(runs: Path) -> Iterator[RunRecord]:
    """All runs of a project, the newest first; a run whose process is gone is `interrupted`."""
    live = is_locked(runs)
    found = runs.glob(f"run-*/{FILE_NAME}")
    for path in sorted(found, key=lambda path: _number(path.parent), reverse=True):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=RunRecord)
        except msgspec.DecodeError as error:
            raise UserError(
                f"The record {path} is damaged ({error}): move its folder out of {runs}."
            ) from error
        if record.state == RUNNING and not (_is_alive(runs, record) if record.cluster else live):
            record.state = INTERRUPTED
        yield record


def lock(runs: Path, cluster: str = "") -> AbstractContextManager[object]:
    """Takes the lock that a run holds on its project; the system frees it when the process dies.

    A run on a cluster holds it only while it begins; after that its signs of life keep others off.

    Args:
        runs: the folder of the runs.
        cluster: the run of Kubeflow Pipelines that wants it, if it is one.

    Returns:
        a context that ends the hold.

    Raises:
        UserError: another run holds it, or the folder cannot be written.
    """
    try:
        runs.mkdir(parents=True, exist_ok=True)
        # `status` probes the lock for an instant.
        held = filelock.FileLock(runs / LOCK_NAME).acquire(timeout=1)
    except filelock.Timeout:
        current = next((record for record in records(runs) if record.state == RUNNING), None)
        raise _under_way(runs, current) from None
    except OSError as error:
        raise UserError(
            f"The folder of the runs, {runs}, cannot be written: {error.strerror}."
        ) from error
    for record in records(runs):
        if record.state == RUNNING and record.cluster and record.cluster != cluster:
            held.lock.release()
            raise _under_way(runs, record)
    return held


def _under_way(runs: Path, record: RunRecord | None) -> UserError:
    if record is None:
        who = "it has just begun, or is `graftline gc`"
    elif record.cluster:
        who = (
            f"{record.run_id} (run {record.cluster} of Kubeflow Pipelines, since {record.started}; "
            f"its last sign of life was {_silence(runs, record) / 60:.0f} min ago, and after "
            f"{record.lease_minutes} min without one it counts as dead)"
        )
    else:
        who = f"{record.run_id} (process {record.pid}, since {record.started})"
    return UserError(
        f"Another run is under way in this project: {who}. Wait for it, look at it with "
        "`graftline status`, or stop it; then try again."
    )


def show_life(runs: Path, run_id: str) -> None:
    """Leaves a sign of life of a run on a cluster."""
    (runs / run_id / _ALIVE).touch()


@contextlib.contextmanager
def changing(runs: Path, run_id: str) -> Iterator[RunRecord]:
    """The record of a run on a cluster, to be changed; steps that run at once take turns."""
    folder = runs / run_id
    with filelock.FileLock(folder / LOCK_NAME).acquire():
        record = msgspec.json.decode((folder / FILE_NAME).read_bytes(), type=RunRecord)
        yield record
        record.write(runs)


def _is_alive(runs: Path, record: RunRecord) -> bool:
    return _silence(runs, record) < record.lease_minutes * 60


def _silence(runs: Path, record: RunRecord) -> float:
    """Seconds since the last sign of life of a run on a cluster.

    Measured by the clock of the file system, which all machines share, where it can be asked.
    """
    folder = runs / record.run_id
    try:
        seen = (folder / _ALIVE).stat().st_mtime
    except OSError:
        seen = (folder / FILE_NAME).stat().st_mtime
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            now = os.fstat(probe.fileno()).st_mtime
    except OSError:
        now = time.time()
    return max(0.0, now - seen)


def is_locked(runs: Path) -> bool:
    """Whether a run is under way; whoever may read the folder may ask."""
    return is_held(runs / LOCK_NAME)
