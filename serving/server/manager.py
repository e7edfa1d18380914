"""Loads and unloads versions until what is loaded is what is aspired to, without a gap in
service.

In: for each model the versions that should be loaded. Out: handles on what is loaded, and states.
The rules are those of `tensorflow_serving/core/availability_preserving_policy.cc`: the new version
is loaded first and the old one unloaded then; a new one that fails leaves the old one in service. A
version that failed is tried again a few times, then never while it stays aspired to. While it waits
for its next try, others are loaded: in the real server they wait, too.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from graftline.serving.server.servable import Servable
from graftline.serving.server.states import State, States
from graftline.serving.server.status import Code, Failure, explain

_log = logging.getLogger(__name__)


class _Version:
    """One version on its way from START to END."""

    def __init__(self, model: str, number: int, path: Path) -> None:
        self.model = model
        self.number = number
        self.path = path
        self.aspired = True
        self.state = State.START
        self.servable: Servable | None = None
        self.failures = 0
        self.retry_at: float | None = None  # monotonic seconds, while a retry is waited for
        self.users = 0

    @property
    def is_new(self) -> bool:
        return self.state is State.START

    @property
    def is_ready(self) -> bool:
        return self.state is State.AVAILABLE

    @property
    def is_over(self) -> bool:
        return self.state is State.END

    def __str__(self) -> str:
        return f"{{name: {self.model} version: {self.number}}}"


class Manager:
    """Brings what is loaded to what is aspired to; one thread decides, others load and unload."""

    def __init__(
        self,
        load: Callable[[str, int, Path], Servable],
        states: States,
        *,
        load_threads: int,
        unload_threads: int,
        retries: int,
        retry_interval: float,
    ) -> None:
        """Starts its threads; `close` ends them.

        Args:
            load: loads the version of a model from a folder; its exceptions count as failures.
            states: where every change is recorded.
            load_threads: versions loaded at once.
            unload_threads: versions unloaded at once.
            retries: how often a failed load is tried again.
            retry_interval: seconds before that; below 0 for at once.
        """
        self._load = load
        self._states = states
        self._retries = retries
        self._retry_interval = max(0.0, retry_interval)
        self._aspired: dict[str, Mapping[int, Path]] = {}
        self._versions: dict[str, dict[int, _Version]] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._loaders = ThreadPoolExecutor(load_threads, "load")
        self._unloaders = ThreadPoolExecutor(unload_threads, "unload")
        self._thread = threading.Thread(target=self._manage, name="manager", daemon=True)
        self._thread.start()

    def aspire(self, model: str, versions: Mapping[int, Path]) -> None:
        """Says which versions of a model should be loaded; none to unload all."""
        with self._changed:
            self._aspired[model] = versions
            self._changed.notify_all()

    def set_load_threads(self, count: int) -> None:
        """Changes how many versions are loaded at once, for loads that have not begun."""
        with self._changed:
            before, self._loaders = self._loaders, ThreadPoolExecutor(count, "load")
        before.shutdown(wait=False)

    @contextlib.contextmanager
    def use(self, model: str, number: int | None) -> Iterator[tuple[int, Servable]]:
        """Holds a loaded version, so that it is not unloaded meanwhile.

        Args:
            model: its name.
            number: the version; None for the highest one that is loaded.

        Raises:
            Failure: it is not loaded.
        """
        version = self._acquire(model, number)
        try:
            assert version.servable is not None
            yield version.number, version.servable
        finally:
            with self._changed:
                version.users -= 1
                if not version.users and version.state is State.UNLOADING:
                    self._changed.notify_all()

    def close(self, seconds: float = 30.0) -> bool:
        """Unloads everything, once nothing is used any more, and ends the threads.

        Args:
            seconds: how long to wait for that.

        Returns:
            Whether it came to that; else something still runs, in threads that nobody can end.
        """
        with self._changed:
            self._aspired = {model: {} for model in self._versions}
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not any(self._versions.values()), seconds)
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._loaders.shutdown(wait=False, cancel_futures=True)
        self._unloaders.shutdown(wait=False, cancel_futures=True)
        return done

    def _acquire(self, model: str, number: int | None) -> _Version:
        with self._changed:
            ready = {n: v for n, v in self._versions.get(model, {}).items() if v.is_ready}
            chosen = ready.get(max(ready, default=0) if number is None else number)
            if chosen is None:
                asked = f"Latest({model})" if number is None else f"Specific({model}, {number})"
                raise Failure(Code.NOT_FOUND, f"Servable not found for request: {asked}")
            chosen.users += 1
            return chosen

    def _manage(self) -> None:
        with self._changed:
            while not self._closing:
                acted = False
                for model in list(self._aspired):
                    acted |= self._take_over(model)
                    acted |= self._act(list(self._versions.get(model, {}).values()))
                if not acted:
                    self._changed.wait(self._until_retry())

    def _take_over(self, model: str) -> bool:
        """Notes what is aspired to; a version that is being unloaded is taken up again after."""
        aspired = self._aspired[model]
        versions = self._versions.setdefault(model, {})
        changed = False
        for number, version in list(versions.items()):
            version.aspired = number in aspired and version.state is not State.UNLOADING
            if version.aspired:
                continue
            if version.retry_at is not None:
                version.retry_at = None
                self._end(version, Failure(Code.CANCELLED, "Loading was cancelled"))
            if version.is_new or version.is_over:
                if version.is_new:
                    self._set(version, State.END)
                del versions[number]
                self._changed.notify_all()
                changed = True
        for number, path in aspired.items():
            if number not in versions:
                versions[number] = _Version(model, number, path)
                self._set(versions[number], State.START)
                changed = True
        return changed

    def _act(self, versions: list[_Version]) -> bool:
        """Takes at most one action on a model's versions; says whether it did."""
        ready = [v for v in versions if v.is_ready]
        unaspired = [v for v in ready if not v.aspired]
        in_service = any(v.aspired for v in ready)
        if unaspired and (not any(v.aspired for v in versions) or in_service or len(unaspired) > 1):
            leaving = min(unaspired, key=lambda v: v.number)
            self._set(leaving, State.UNLOADING)
            self._unloaders.submit(self._unload, leaving)
            return True
        now = time.monotonic()
        due = [v for v in versions if v.retry_at is not None and v.retry_at <= now]
        for version in due:
            version.retry_at = None
            self._loaders.submit(self._try_to_load, version)
        new = [v for v in versions if v.is_new and v.aspired]
        if new:
            highest = max(new, key=lambda v: v.number)
            self._set(highest, State.LOADING)
            self._loaders.submit(self._try_to_load, highest)
        return bool(due or new)

    def _until_retry(self) -> float | None:
        waiting = [
            version.retry_at
            for versions in self._versions.values()
            for version in versions.values()
            if version.retry_at is not None
        ]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _try_to_load(self, version: _Version) -> None:
        began = time.monotonic()
        servable: Servable | None = None
        error: Failure | None = None
        try:
            servable = self._load(version.model, version.number, version.path)
        except Exception as raised:
            error = explain(raised)
        with self._changed:
            if error is None:
                version.servable = servable
                self._set(version, State.AVAILABLE)
                _log.info("Loaded %s in %.1f s", version, time.monotonic() - began)
            elif version.failures < self._retries and version.aspired:
                version.failures += 1
                version.retry_at = time.monotonic() + self._retry_interval
                _log.warning(
                    "Loading %s failed, try %d of %d: %s",
                    *(version, version.failures, self._retries + 1, error),
                )
            else:
                _log.error("Loading %s failed for good: %s", version, error)
                self._end(version, error)
            self._changed.notify_all()

    def _unload(self, version: _Version) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not version.users)
            servable, version.servable = version.servable, None
        try:
            if servable is not None:
                servable.close()
        except Exception:
            _log.exception("Unloading %s failed", version)
        del servable
        with self._changed:
            self._end(version, None)
            # Forgotten, unlike one that failed: aspired to again, it is loaded again.
            del self._versions[version.model][version.number]
            _log.info("Unloaded %s", version)
            self._changed.notify_all()

    def _end(self, version: _Version, error: Failure | None) -> None:
        self._set(version, State.END, error)

    def _set(self, version: _Version, state: State, error: Failure | None = None) -> None:
        version.state = state
        self._states.set(version.model, version.number, state, error)
