"""What became of every version that was ever asked for: the answer to GetModelStatus.

As `tensorflow_serving/core/servable_state_monitor.cc`: entries are never forgotten, so a version
that was unloaded is END for as long as the process lives.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterable, Mapping

import msgspec

from graftline.serving.server.status import Failure


class State(enum.IntEnum):
    """Numbered as in `apis/get_model_status.proto`."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


class VersionState(msgspec.Struct, frozen=True):
    """One version's state.

    Attributes:
        state: where it is.
        error: why it ended, where it did so by failing.
        change: counts up with every change of any version.
    """

    state: State
    error: Failure | None
    change: int


class States:
    """The states of all versions of all models; safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._change = 0
        self._models: dict[str, dict[int, VersionState]] = {}

    def set(self, model: str, version: int, state: State, error: Failure | None = None) -> None:
        """Records a change and wakes whoever waits for one."""
        with self._changed:
            self._change += 1
            versions = self._models.setdefault(model, {})
            versions[version] = VersionState(state, error, self._change)
            self._changed.notify_all()

    def of(self, model: str) -> Mapping[int, VersionState]:
        """All versions of a model, the highest first."""
        with self._changed:
            versions = self._models.get(model, {})
            return {number: versions[number] for number in sorted(versions, reverse=True)}

    @property
    def change(self) -> int:
        """The number of the last change, to wait for what comes after it."""
        with self._changed:
            return self._change

    def wait(
        self, models: Iterable[str], since: int, wanted: Callable[[], bool]
    ) -> dict[tuple[str, int], VersionState]:
        """Waits until each model has a version that is AVAILABLE, or only ones that ended.

        Args:
            models: their names.
            since: changes up to this one do not count.
            wanted: asked four times a second; the waiting ends when it says no.

        Returns:
            The versions that ended without any of their model being available.
        """
        models = list(models)
        with self._changed:
            while True:
                verdicts = [self._verdict(model, since) for model in models]
                if all(verdict is not None for verdict in verdicts) or not wanted():
                    return {
                        (model, number): state
                        for model, verdict in zip(models, verdicts, strict=True)
                        for number, state in (verdict or {}).items()
                    }
                self._changed.wait(0.25)

    def _verdict(self, model: str, since: int) -> dict[int, VersionState] | None:
        """None: not decided; empty: one is available; else those that ended."""
        versions = {
            number: state
            for number, state in self._models.get(model, {}).items()
            if state.change > since
        }
        if any(state.state is State.AVAILABLE for state in versions.values()):
            return {}
        if versions and all(state.state is State.END for state in versions.values()):
            return versions
        return None
