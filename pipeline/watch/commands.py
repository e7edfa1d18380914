"""The commands that a watcher has carried out: those that people type, in processes of their own.

A crash, a leak or a kill of one leaves the watcher as it was, and the watcher stays small.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import msgspec

from graftline.pipeline.project import Project

LOG_NAME = "watch.log"
_PROGRAM = (sys.executable, "-m", "graftline.pipeline.cli.main")
# How long a command that was told to end may take for it.
_GRACE_SECONDS = 30.0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended.

    Attributes:
        code: its exit code, negative for a signal.
        document: the JSON that it printed; empty where it printed none.
    """

    code: int
    document: dict[str, Any]

    @property
    def problem(self) -> str:
        """In words, what went wrong."""
        for key in ("error", "refused", "crash", "interrupted"):
            if key in self.document:
                return str(self.document[key])
        return f"ended by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"


class Commands:
    """Runs `graftline` commands on a project, one at a time, until it is stopped.

    Attributes:
        stopping: set once it is to end.
        log: what the commands say beside their answers.
    """

    def __init__(
        self, project: Project, overrides: Sequence[str] = (), program: Sequence[str] = _PROGRAM
    ) -> None:
        """Takes what all commands have in common.

        Args:
            project: the project.
            overrides: `section.key=value` each, passed on to the commands.
            program: what runs as `graftline`.
        """
        self.stopping = threading.Event()
        self._program = program
        self._common = ["--project", str(project.root), "--json", *overrides]
        self.log = project.runs / LOG_NAME
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str) -> Answer:
        """Runs one command to its end; what it says beside its answer goes to `runs/watch.log`."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._program, *arguments, *self._common],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            try:
                if self.stopping.is_set():
                    self._process.terminate()
                output, _ = self._process.communicate()
            finally:
                _end(self._process)
        return Answer(code=self._process.returncode, document=_document(output))

    def stop(self) -> None:
        """Ends the command under way, politely, and lets no other begin; for signal handlers."""
        self.stopping.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leaves no process behind where waiting for it was broken off."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _document(output: bytes) -> dict[str, Any]:
    """The JSON that a command printed, its last document where a failure came after an answer."""
    for text in (output, output.strip().rpartition(b"\n")[2]):
        try:
            found = json.loads(text)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}
