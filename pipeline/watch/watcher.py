"""Takes every complete drop in, in the order of their names, and trains on it; one at a time.

What it has begun is written down before it is begun (see `ledger`), so that a watcher that was
killed goes on where it was and nothing is taken twice. Waiting goes by the monotonic clock: a clock
that is set decides nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from graftline.components.ingest import completeness, workplace
from graftline.components.ingest.completeness import Arrival
from graftline.components.ingest.spans import list_spans
from graftline.pipeline import run_record
from graftline.pipeline.notify.tell import tell_given_up, tell_rejected
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord
from graftline.pipeline.watch.commands import Answer, Commands
from graftline.pipeline.watch.ledger import Entry, Ledger, State

# Told of a drop by name ("" where it is about none), what happened in words.
Say = Callable[[str, str], None]

_MISTAKE, _REFUSED, _INTERRUPTED = 2, 3, 130
# A drop is looked at twice, so far apart: someone may be writing it at this moment.
_SETTLE_SECONDS = 1.0
_BUSY_SECONDS = 2.0


class Watcher:
    """Watches the drops of a project."""

    def __init__(
        self, project: Project, commands: Commands, ledger: Ledger, say: Say, *, submit: bool
    ) -> None:
        """Takes what it works with.

        Args:
            project: the project.
            commands: runs the commands.
            ledger: what has become of every drop.
            say: told what happens.
            submit: have a cluster run the pipeline, not this machine.
        """
        self._project = project
        self._config = project.config.watch
        self._commands = commands
        self._ledger = ledger
        self._say = say
        self._submit = submit
        # By key of a drop that failed: when it may be tried again.
        self._not_before: dict[str, float] = {}
        # By name: the manifests of a drop that is done with.
        self._done: dict[str, tuple[object, ...]] = {}
        # By name: a drop as it was found last, its fingerprint, and since when it has been so.
        self._found: dict[str, tuple[str, Arrival, float]] = {}
        self._said: dict[str, str] = {}

    def watch(self) -> None:
        """Takes drops until it is stopped."""
        while not self._commands.stopping.is_set():
            # One, then a new look: what arrives meanwhile may stand before the others.
            arrival = next(self._arrived(), None)
            pause = self._config.interval_seconds
            if arrival is not None:
                ready = self._not_before.get(arrival.key, 0.0) - time.monotonic()
                if ready > 0:
                    pause = min(pause, ready)
                elif not self._is_busy():
                    self._take(arrival)
                    continue
            self._commands.stopping.wait(pause)

    def once(self) -> int:
        """Takes every drop that is complete now, each tried once.

        Returns:
            0: all were trained on, or there was none; 1: one failed; 2: one cannot be taken in, or
            its manifest does not match its files; 3: a gate refused one. The first that applies.
            130: it was stopped.
        """
        codes = set()
        for arrival in self._arrived():
            while self._is_busy() and not self._commands.stopping.wait(_BUSY_SECONDS):
                pass
            if self._commands.stopping.is_set():
                break
            codes.add(self._take(arrival))
            entry = self._ledger.find(arrival.key)
            if entry is not None and not entry.ended:
                break  # what comes after it waits its turn, as it waits for its next try
        if not codes:
            self._say("", "there is no complete drop that was not taken before")
        if any(arrival.manifest and arrival.problem for _, arrival, _ in self._found.values()):
            codes.add(_MISTAKE)
        return _INTERRUPTED if self._commands.stopping.is_set() else min(codes - {0}, default=0)

    def _arrived(self) -> Iterator[Arrival]:
        """Complete drops that are not done with, in order; looks at them as they are asked for."""
        for folder in self._folders():
            try:
                arrival = self._look(folder)
            except OSError as error:
                self._say_once(folder.name, f"cannot be read: {error.strerror}")
                continue
            if arrival is not None:
                yield arrival

    def _folders(self) -> list[Path]:
        try:
            children = [path for path in self._project.drops.iterdir() if path.is_dir()]
        except OSError as error:
            self._say_once("", f"{self._project.drops} cannot be read: {error.strerror}")
            return []
        self._said.pop("", None)
        return sorted((c for c in children if not c.name.startswith(".")), key=_in_order)

    def _look(self, folder: Path) -> Arrival | None:
        """A drop, where it is complete and not done with.

        Raises:
            OSError: it cannot be read.
        """
        stamp = completeness.stamp(folder)
        if stamp and self._done.get(folder.name) == stamp:
            return None
        entry = self._ledger.find(completeness.identify(folder).key)
        if entry is not None and entry.ended:
            self._done[folder.name] = stamp
            self._found.pop(folder.name, None)
            return None
        before = completeness.fingerprint(folder)
        known, arrival, since = self._found.get(folder.name, ("", None, 0.0))
        if arrival is None or before != known:
            arrival, since = completeness.inspect(folder), time.monotonic()
            if not arrival.problem:
                # Someone may be writing it at this very moment.
                self._commands.stopping.wait(_SETTLE_SECONDS)
                if completeness.fingerprint(folder) != before:
                    return None
            self._found[folder.name] = before, arrival, since
        if not arrival.problem:
            self._said.pop(folder.name, None)
            return arrival
        self._say_once(folder.name, f"waits: {arrival.problem}")
        if time.monotonic() - since >= self._config.patience_seconds and self._ledger.tell_once(
            folder.name, before
        ):
            tell_rejected(self._project, folder, f"It is not complete: {arrival.problem}.")
        return None

    def _is_busy(self) -> bool:
        """Whether someone else's drop or run is under way in this project."""
        if workplace.is_under_way(self._project.spans):
            self._say_once("", "waits: another drop is under way")
        elif self._run_under_way():
            self._say_once("", "waits: another run is under way")
        else:
            self._said.pop("", None)
            return False
        return True

    def _run_under_way(self) -> bool:
        """Whether there is a run here, or one on a cluster that shares the project's folder."""
        runs = self._project.runs
        return run_record.is_locked(runs) or any(
            record.state == run_record.RUNNING for record in run_record.records(runs)
        )

    def _take(self, arrival: Arrival) -> int:
        """Takes a drop in and trains on it, as far as that was not done before.

        Returns:
            the exit code of the command that decided how it ended, 0 where it is trained on.
        """
        entry = self._ledger.find(arrival.key) or Entry(name=arrival.path.name)
        if entry.state == "dropping" and not self._is_taken_in(entry, arrival):
            entry.span = (
                max((span.number for span in list_spans(self._project.spans)), default=0) + 1
            )
            self._ledger.put(arrival.key, entry, "dropping")
            self._say(entry.name, f"is complete; taking it in as span {entry.span}")
            answer = self._commands.run("drop", str(arrival.path), "--span", str(entry.span))
            if answer.code:
                return self._drop_failed(arrival, entry, answer)
        elif ended := self._trained(entry):
            # By the command of a watcher that was killed, or by a person.
            refused = ended.state == run_record.REFUSED
            state: State = "refused" if refused else "published"
            return self._end(
                arrival, entry, state, f"by {ended.run_id}", _REFUSED if refused else 0
            )
        self._ledger.put(arrival.key, entry, "training")
        self._say(
            entry.name, f"is span {entry.span}; {'submitting' if self._submit else 'training'}"
        )
        answer = self._commands.run(*self._training(arrival, entry))
        if answer.code == 0:
            return self._end(arrival, entry, "published", _published(answer), 0)
        if answer.code == _REFUSED:
            return self._end(arrival, entry, "refused", answer.problem, _REFUSED)
        return self._failed(arrival, entry, answer)

    def _trained(self, entry: Entry) -> RunRecord | None:
        """The last run of a drop's span, where it came to an end that is an outcome."""
        for record in run_record.records(self._project.runs):
            if record.span == entry.span and not record.tunes:
                ended = record.state in (run_record.PUBLISHED, run_record.REFUSED)
                return record if ended and not record.can_go_on else None
        return None

    def _is_taken_in(self, entry: Entry, arrival: Arrival) -> bool:
        """Whether the span is there that a watcher had begun when it was ended."""
        source = arrival.path.resolve()
        return any(
            source in (found := Path(span.summary.source), *found.parents)
            for span in list_spans(self._project.spans)
            if span.number == entry.span
        )

    def _training(self, arrival: Arrival, entry: Entry) -> list[str]:
        span = ["--span", str(entry.span)]
        if not self._submit:
            return ["run", *span]
        # Under this name a run that is under way already is found again.
        name = f"{entry.name}-{arrival.manifest[:8]}-span-{entry.span}"
        return ["kubeflow", "submit", "--newest", "--wait", "--name", name, *span]

    def _drop_failed(self, arrival: Arrival, entry: Entry, answer: Answer) -> int:
        if answer.document.get("rejected"):
            # The command has told people.
            return self._end(arrival, entry, "rejected", answer.problem, _MISTAKE)
        return self._failed(arrival, entry, answer)

    def _failed(self, arrival: Arrival, entry: Entry, answer: Answer) -> int:
        """Writes a failure down, which is none where the command was stopped or turned away."""
        if self._commands.stopping.is_set() or self._is_busy():
            return 0
        entry.failures += 1
        code = _MISTAKE if answer.code == _MISTAKE else 1
        if entry.failures >= self._config.tries:
            told = f"given up after {entry.failures} failures; the last: {answer.problem}"
            tell_given_up(self._project, arrival.path, told, self._commands.log)
            return self._end(arrival, entry, "given up", told, code)
        pause = min(
            self._config.first_pause_seconds * 2 ** (entry.failures - 1),
            self._config.longest_pause_seconds,
        )
        self._not_before[arrival.key] = time.monotonic() + pause
        self._ledger.put(arrival.key, entry, entry.state, answer.problem)
        self._say(
            entry.name,
            f"failed ({entry.failures} of {self._config.tries} tries), again in {pause:.0f} s: "
            f"{answer.problem}",
        )
        return code

    def _end(self, arrival: Arrival, entry: Entry, state: State, note: str, code: int) -> int:
        self._ledger.put(arrival.key, entry, state, note)
        self._say(entry.name, f"{state}: {note}" if note else state)
        return code

    def _say_once(self, name: str, what: str) -> None:
        """Says what holds a drop up when it begins to, not at every look."""
        if self._said.get(name) != what:
            self._said[name] = what
            self._say(name, what)


def _published(answer: Answer) -> str:
    """Which run published which version, as far as the command told."""
    version, run = (answer.document.get(name) for name in ("published_version", "run_id"))
    return f"version {version} by {run}" if version else f"by {run}" if run else ""


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Names in the order of their numbers: drop-9 before drop-10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
