"""Peak memory of this process, stage by stage."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path


def begin() -> None:
    """From now on the peak counts anew, where the system can do that (proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> int:
    """Highest resident memory since `begin`, in MB; without it, since the process began."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
