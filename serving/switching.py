"""Changes of what servers serve, as sequences of steps that never leave a request unanswered.

Servers that follow a `models.config` refuse it whole when it puts a label on a version that is not
loaded, and unload what it does not name (tensorflow_serving/model_servers/server_core.cc). So a
version is loaded beside the old one first, then labels move, then the split of the gateway, then
the old version goes; after each step every server has to report it. When one does not, what was
there before is written again, which servers can take at any of these moments, for the old version
is loaded until the last step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import msgspec

from graftline.serving import traffic
from graftline.serving.base_path import BasePath
from graftline.serving.config import ServingConfig
from graftline.serving.errors import UserError
from graftline.serving.file_system import explained, locked
from graftline.serving.history import Change, Event
from graftline.serving.models_config import Choice, ModelsConfig
from graftline.serving.server_states import Servers, ServerState
from graftline.serving.traffic import STABLE, Traffic

_LOCK_TIMEOUT_SECONDS = 5.0


class Switched(msgspec.Struct, frozen=True):
    """What a change came to.

    Attributes:
        event: what was recorded; None where everything was as asked for already.
        asked: addresses of the servers that follow.
        warning: what is still to come; empty where nothing is.
    """

    event: Event | None
    asked: tuple[str, ...] = ()
    warning: str = ""


class Switchboard:
    """Changes what the servers of one model serve."""

    def __init__(self, base_path: BasePath, config: ServingConfig, wait: bool = True) -> None:
        """Prepares, and asks nobody yet.

        Args:
            base_path: of the model.
            config: where its servers are.
            wait: whether to wait for them. Without, only what they will read at their start is
                written: for servers that do not run.
        """
        self._base_path = base_path
        self._file = ModelsConfig(base_path.root, config.mounted_at)
        self._seconds = config.wait_seconds
        self._servers = Servers(config.servers if wait else (), base_path.root.name)
        self._wait = wait

    def write(self) -> tuple[Choice, bool]:
        """Makes the model's entry in `models.config`: the newest version, until told otherwise.

        Returns:
            What servers are told, and whether that is new.

        Raises:
            UserError: the file does not parse, or cannot be written.
        """
        with self._changing("Cannot write the entry"):
            try:
                choice = self._file.read()
            except UserError:
                self._file.replace(Choice())  # refuses a file that does not parse
                return Choice(), True
            self._file.replace(choice or Choice())  # the base path may be seen elsewhere by now
            return choice or Choice(), choice is None

    def pin(self, number: int, reason: str = "") -> Switched:
        """Has servers answer with one version, whatever is published later.

        Raises:
            UserError: there is no such version, labels are in use, or servers do not follow; then
                all is as before.
        """
        with self._changing(f"Cannot pin version {number}"):
            before = self._before()
            if before.labels:
                raise UserError(
                    f"The label {next(iter(before.labels))} is in use. `graftline promote "
                    f"{number}` moves `{STABLE}`; `graftline unpin` takes the labels away."
                )
            self._base_path.require_servable(number)
            if before.versions == (number,):
                return Switched(None)
            with self._undone(before):
                self._file.replace(Choice((number,)))
                self._await(_answers_with(number), f"version {number} alone")
            return self._record("pinned", number, reason)

    def unpin(self, reason: str = "") -> Switched:
        """Has servers follow the newest version again, and takes the labels away.

        Raises:
            UserError: servers do not follow; then all is as before.
        """
        with self._changing("Cannot unpin"):
            before = self._before()
            if before == Choice():
                return Switched(None)
            newest = self._newest()
            with self._undone(before):
                self._split(Traffic())
                self._file.replace(Choice())
                self._await(_answers_with(newest), f"version {newest} alone")
            return self._record("unpinned", newest, reason)

    def promote(self, number: int, reason: str = "") -> Switched:
        """Moves the label `stable`, and with it what answers; a canary of this version ends.

        Raises:
            UserError: there is no such version, or servers do not follow; then all is as before.
        """
        with self._changing(f"Cannot promote version {number}"):
            before = self._labelled()
            self._base_path.require_servable(number)
            kept = before.canary if before.canary != number else None
            after = before.with_labels(stable=number, canary=kept).loading(number)
            if after == before:
                return Switched(None)
            warning = self._move(before, after)
            return self._record("promoted", number, reason, warning)

    def canary(self, number: int, percent: float, reason: str = "") -> Switched:
        """Has some callers answered by another version: the label `canary`, and the split.

        What was in service carries the label `stable` from then on.

        Raises:
            UserError: there is no such version, it is the stable one, or servers do not follow;
                then all is as before.
        """
        with self._changing(f"Cannot make version {number} the canary"):
            before = self._labelled()
            stable = self._base_path.in_service()
            self._base_path.require_servable(number)
            if stable is None or number == stable:
                raise UserError(
                    f"Version {number} is in service: a canary is another one beside it. "
                    "`graftline versions` shows them."
                )
            after = before.with_labels(stable=stable, canary=number).loading(stable, number)
            split = Traffic(stable=stable, canary=number, canary_percent=percent)
            if after == before:
                if traffic.read(self._base_path.root) == split:
                    return Switched(None)
                self._split(split)
                return self._record("canary", number, reason)
            warning = self._move(before, after, percent)
            return self._record("canary", number, reason, warning)

    def end_canary(self, reason: str = "") -> Switched:
        """Has all callers answered by the stable version again.

        Raises:
            UserError: servers do not follow; then all is as before.
        """
        with self._changing("Cannot end the canary"):
            before = self._before()
            if before.canary is None:
                return Switched(None)
            warning = self._move(before, self._without_canary(before))
            return self._record("canary ended", before.canary, reason, warning)

    def rollback(self, to: int | None = None, reason: str = "") -> Switched:
        """Goes to another version, by default the one below, and withdraws every one above it.

        Servers that are held at a version are moved first; those that watch the base path follow
        when the versions above are gone. A canary ends.

        Raises:
            UserError: there is nothing to go to, or servers that are held at a version cannot be
                asked or do not follow; then all is as before.
        """
        with self._changing("Cannot roll back"):
            before = self._file.read() if self._file.path.exists() else None
            if before is None or before.held is None:
                return self._rollback_by_base_path(to, reason)
            # Unasked, they could lose the version that they serve before they have another.
            self._require_someone_to_ask("A version that servers are held at can only be withdrawn")
            target = self._base_path.below_service() if to is None else to
            restored = self._base_path.restore(target, reason)
            try:
                self._base_path.require_servable(target)
                warning = ""
                base = self._without_canary(before)
                if STABLE in before.labels:
                    after = base.with_labels(stable=target).loading(target)
                else:
                    after = Choice((target,))
                if after != before:
                    warning = self._move(before, after)
            except BaseException:
                if restored:
                    self._base_path.withdraw(target, "the rollback was undone")
                raise
            try:
                event = self._base_path.rollback(target, reason)
            except UserError as late:
                if after == before:
                    raise
                # Callers are answered by the target already.
                event, warning = None, " ".join(filter(None, [warning, f"Done, but: {late}"]))
            if event is None and after != before:
                event = self._base_path.record("rolled back", target, reason)
            return Switched(event, self._servers.addresses, warning)

    def _rollback_by_base_path(self, to: int | None, reason: str) -> Switched:
        """For servers that follow the newest version."""
        before = self._base_path.versions()
        event = self._base_path.rollback(to, reason)
        if event is None:
            return Switched(None)
        try:
            self._await(_answers_with(event.version), f"version {event.version} alone")
        except BaseException:
            self._base_path.undo_rollback(before)
            raise
        return Switched(event, self._servers.addresses)

    def _move(self, before: Choice, after: Choice, percent: float | None = None) -> str:
        """Goes from the one to the other; returns what is still to come.

        Raises:
            UserError: servers do not follow; then all is as before.
        """
        if not self._wait:
            self._split(Traffic())
            self._file.replace(after)
            self._split(self._split_of(after, percent))
            return ""
        now = before.versions or (self._newest(),)
        # What carries a label keeps it until no caller asks for it any more.
        old_canary = before.canary if after.canary is None else after.canary
        beside = after.with_labels(canary=old_canary).loading(*now, *after.versions)
        with self._undone(before):
            loaded = set(after.versions or now)
            self._file.replace(before.loading(*now, *after.versions))
            self._await(lambda state: loaded <= state.available, f"{_named(loaded)} loaded")
            self._file.replace(beside)
            wanted = dict(beside.labels)
            self._await(
                lambda state: wanted.items() <= state.labels.items(),
                ", ".join(f"label {label} on {number}" for label, number in wanted.items()),
                tuple(wanted),
            )
            self._split(self._split_of(after, percent))
        # From here on everything that was asked for is in force: nothing is undone any more.
        self._file.replace(after)
        try:
            gone = set(now) - after.needed
            self._await(lambda state: not gone & state.available, f"{_named(gone)} unloaded")
        except UserError as late:
            return f"Done, but: {late}"
        return ""

    def _newest(self) -> int:
        """The version that servers serve that are told none.

        Raises:
            UserError: there is none.
        """
        newest = self._base_path.highest()
        if newest is None:
            raise UserError(
                f"There is no version in {self._base_path.root} that could be served. `graftline "
                "run` publishes one."
            )
        return newest

    def _split_of(self, choice: Choice, percent: float | None) -> Traffic:
        if percent is None:
            percent = traffic.read(self._base_path.root).canary_percent
        if choice.canary is None:
            return Traffic(stable=choice.labels.get(STABLE))
        return Traffic(
            stable=choice.labels.get(STABLE), canary=choice.canary, canary_percent=percent
        )

    def _split(self, split: Traffic) -> None:
        if traffic.read(self._base_path.root) != split:
            traffic.replace(self._base_path.root, split)

    @staticmethod
    def _without_canary(choice: Choice) -> Choice:
        rest = tuple(number for number in choice.versions if number != choice.canary)
        return msgspec.structs.replace(choice.with_labels(canary=None), versions=rest)

    def _before(self) -> Choice:
        """What servers are told now.

        Raises:
            UserError: they are told nothing.
        """
        choice = self._file.read() if self._file.path.exists() else None
        if choice is None:
            raise UserError(
                f"There is no entry for {self._base_path.root.name} in {self._file.path}, so "
                "servers watch the base path and follow the newest version. `graftline "
                "serve-config` writes it and says how to start servers with it."
            )
        return choice

    def _labelled(self) -> Choice:
        """The same, where labels can be moved.

        Raises:
            UserError: nobody can be asked whether a version is loaded.
        """
        choice = self._before()
        self._require_someone_to_ask("A label can only be moved")
        return choice

    def _require_someone_to_ask(self, change: str) -> None:
        if self._wait and not self._servers.addresses:
            raise UserError(
                f"{change} once servers have loaded the version that is to answer, and "
                "serving.servers names none to ask. Name them in graftline.yaml or here, "
                "serving.servers=[http://HOST:8501]; or, where no server runs, write what they "
                "will start with: --no-wait."
            )

    def _await(
        self, wanted: Callable[[ServerState], bool], what: str, labels: tuple[str, ...] = ()
    ) -> None:
        if self._servers.addresses:
            self._servers.wait(wanted, what, self._seconds, labels)

    @contextlib.contextmanager
    def _undone(self, before: Choice) -> Iterator[None]:
        """Writes again what was there when something fails."""
        split = traffic.read(self._base_path.root)
        try:
            yield
        except BaseException:
            self._file.replace(before)
            self._split(split)
            raise

    @contextlib.contextmanager
    def _changing(self, failure: str) -> Iterator[None]:
        root = self._base_path.root
        with explained(f"{failure} in {root}"):
            if not root.exists():
                raise UserError(
                    f"{failure}: nothing is published in {root} yet. `graftline run` publishes a "
                    "first version."
                )
            with locked(root / ".graftline" / "switch.lock", _LOCK_TIMEOUT_SECONDS):
                yield

    def _record(self, what: Change, number: int, reason: str, warning: str = "") -> Switched:
        event = self._base_path.record(what, number, reason)
        return Switched(event, self._servers.addresses, warning)


def _answers_with(number: int) -> Callable[[ServerState], bool]:
    return lambda state: state.available == {number}


def _named(numbers: set[int]) -> str:
    return "version " + ", ".join(map(str, sorted(numbers)))
