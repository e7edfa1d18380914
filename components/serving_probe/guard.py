"""Runs a command for as long as whoever started it lives: a server must not outlast its probe.

`python -m graftline.components.serving_probe.guard COMMAND...` runs the command in a process group
of its own and ends the group when its own standard input closes, which happens also when the
process at the other end is killed. Ends with the command's exit code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

GRACE = 5.0  # seconds, for a server to end by itself


def main(command: Sequence[str]) -> int:
    """Runs the command; returns its exit code, 128 and the signal's number where one ended it."""
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return 127
    threading.Thread(target=_end_with_parent, args=(child,), daemon=True).start()
    code = child.wait()
    _signal(child, signal.SIGKILL)  # what it may have left behind
    return code if code >= 0 else 128 - code


def _end_with_parent(child: subprocess.Popen[bytes]) -> None:
    # Not through sys.stdin, whose lock Python would want at its own end.
    while os.read(0, 1):
        pass
    _signal(child, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    _signal(child, signal.SIGKILL)


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    """Sends a signal to the command and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
