"""A file that is read again when it changes, so that nothing is restarted for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from graftline.serving.errors import UserError

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class WatchedFile(Generic[_T]):
    """What a file says. One that cannot be read any more leaves what it said before in force."""

    def __init__(self, path: Path, read: Callable[[Path], _T]) -> None:
        """Reads the file for the first time.

        Args:
            path: of the file.
            read: turns it into a value; raises UserError where it is not as it should be.

        Raises:
            UserError: it cannot be read.
        """
        self._path = path
        self._read = read
        self._lock = threading.Lock()
        self._state = self._look()
        self.value = self._read_now()

    def look(self, missed: bool = False) -> None:
        """Reads the file again if it changed. It may wait for the disk: call it in a thread.

        Args:
            missed: something was not there that should be; makes no difference to a file.
        """
        with self._lock:
            state = self._look()
            if state == self._state:
                return
            try:
                self.value = self._read_now()
            except UserError as error:
                _log.error("What was in force before stays in force: %s", error)
            # A file that is wrong is not tried again before it changes again.
            self._state = state

    def _read_now(self) -> _T:
        try:
            return self._read(self._path)
        except (OSError, UnicodeDecodeError) as error:
            said = getattr(error, "strerror", None) or "it is not text"
            raise UserError(f"{self._path} cannot be read: {said}.") from error

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
