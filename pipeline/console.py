"""The screen of a long command: one line per step, everything else in a log file.

TensorFlow, Beam and the C++ libraries below them write to the process's own output. While a
console is open, that output goes to the log; only what is passed to the console is shown.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from graftline.components import progress

if TYPE_CHECKING:
    from rich.table import Table

# Without a terminal, e.g. in CI, progress inside a step is shown at most this often, in seconds.
_QUIET_INTERVAL = 20.0


_latest_log: Path | None = None


def latest_log() -> Path | None:
    """The log file of the console that this command opened last, if it did."""
    return _latest_log


def begin_command() -> None:
    """Forgets the log of a command that this process ran before."""
    global _latest_log
    _latest_log = None


class Console:
    """Redirects the process's output to a log file and writes single lines to the screen."""

    def __init__(self, log: Path, *, quiet: bool = False):
        """Takes where things go.

        Args:
            log: the file that receives all output, appended; os.devnull for none.
            quiet: show nothing (the command prints JSON at its end).
        """
        self._log = log
        self._quiet = quiet
        self._last_progress = time.monotonic()
        self._open_line = False

    def __enter__(self) -> Console:
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = [os.dup(1), os.dup(2)]
        self._screen = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        self._terminal = self._screen.isatty()
        self._file = self._log.open("a", buffering=1, encoding="utf-8")
        for number in (1, 2):
            os.dup2(self._file.fileno(), number)
        global _latest_log
        _latest_log = self._log if self._log.is_file() else None
        self._handler = logging.StreamHandler(self._file)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
        own = logging.getLogger("graftline")
        own.addHandler(self._handler)
        own.setLevel(logging.INFO)
        own.propagate = False
        progress.listen(self.progress)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        progress.listen(None)
        self._clear()
        logging.getLogger("graftline").removeHandler(self._handler)
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, number)
            os.close(saved)
        self._screen.close()
        self._file.close()

    def line(self, text: str) -> None:
        """Shows one lasting line."""
        logging.getLogger("graftline").info(text)
        self._clear()
        if not self._quiet:
            self._screen.write(text + "\n")

    def table(self, table: Table) -> None:
        """Shows a table; the log has it too."""
        import rich.console

        self._clear()
        rich.console.Console(file=self._file, width=120).print(table)
        if not self._quiet:
            rich.console.Console(file=self._screen).print(table)

    def progress(self, text: str) -> None:
        """Shows how far the current step is: overwritten on a terminal, sparse elsewhere."""
        logging.getLogger("graftline").info(text)
        if self._quiet:
            return
        if self._terminal:
            width = os.get_terminal_size(self._screen.fileno()).columns - 1
            self._screen.write("\r\x1b[2K" + f"    {text}"[:width])
            self._screen.flush()
            self._open_line = True
        elif time.monotonic() - self._last_progress > _QUIET_INTERVAL:
            self._last_progress = time.monotonic()
            self._screen.write(f"    {text}\n")

    def _clear(self) -> None:
        if self._open_line:
            self._screen.write("\r\x1b[2K")
            self._screen.flush()
            self._open_line = False
