"""Peak memory of this process and of those that it starts, stage by stage."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_LOOK_EVERY = 0.5  # seconds
_PAUSES = 20  # times as long as it looks


class _Below(threading.Thread):
    """Looks now and then at the processes below this one.

    Attributes:
        peak_kb: the highest that they had together at one time.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_kb = 0

    def run(self) -> None:
        while True:
            began = time.monotonic()
            now = sum(map(_shared_kb, _below(os.getpid())))
            self.peak_kb = max(self.peak_kb, now)
            # The system walks through all pages of a process, which in a large one takes a while.
            time.sleep(max(_LOOK_EVERY, _PAUSES * (time.monotonic() - began)))


_watch: _Below | None = None


def begin() -> None:
    """From now on the peak counts anew, where the system can do that (proc(5), clear_refs)."""
    global _watch
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if _watch is None:
        _watch = _Below()
        _watch.start()
    _watch.peak_kb = 0


def peak_mb() -> int:
    """Highest resident memory since `begin`, in MB; without it, since the process began.

    That of the processes below this one is added: what several share counts once, and what came and
    went between two looks not at all.
    """
    own = _kb("/proc/self/status", "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (own + (_watch.peak_kb if _watch else 0)) // 1024


def _below(process: int) -> Iterator[int]:
    """The processes that a process has started, and those that they have."""
    with contextlib.suppress(OSError):  # it has ended
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, _read(f"{thread}/children").split()):
                yield child
                yield from _below(child)


def _shared_kb(process: int) -> int:
    """A process's memory, of which what it shares with others counts in equal parts."""
    return _kb(f"/proc/{process}/smaps_rollup", "Pss")


def _kb(path: str, name: str) -> int:
    """A value from a file of the system; 0 where it is not there."""
    lines = _read(path).splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _read(path: str) -> str:
    """A file of the system; empty where it is not there, e.g. since its process has ended."""
    try:
        return Path(path).read_text("ascii")
    except OSError:
        return ""
