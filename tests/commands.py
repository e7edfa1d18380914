"""Commands in processes of their own, quickly: TFX is imported once, every process forks from it.

Such a process is as real as one from the shell: it has its own memory and working folder, can be
killed, and ends with an exit code. Only the half minute of imports is shared.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
from PIL import Image

from graftline.pipeline import run_record
from graftline.pipeline.run_record import RunRecord

_PRELOADED = [
    "graftline.pipeline.create_pipeline",
    "graftline.pipeline.local_runner",
    "graftline.pipeline.retrain",
    "graftline.components.trainer.run",
    "graftline.components.ingest.drop",
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOADED)

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210)}


def _command(arguments: list[str], folder: str, output: str) -> None:
    os.chdir(folder)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    from graftline.pipeline.cli.main import main

    main(arguments)


class Command:
    """A `graftline` command under way."""

    def __init__(self, folder: Path, *arguments: str):
        self.folder = folder
        self.output_file = folder.parent / f"{folder.name}-output-{time.monotonic_ns()}.txt"
        self.process = _context.Process(
            target=_command, args=(list(arguments), str(folder), str(self.output_file))
        )
        self.process.start()

    def wait(self, timeout: float = 600) -> int:
        """Waits for the end; returns the exit code, negative for a signal."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running: {self.output}"
        return self.process.exitcode

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self.output_file.read_text() if self.output_file.exists() else ""

    def kill_in(self, node: str, number: int = signal.SIGKILL) -> bool:
        """Sends a signal while a node runs; False when the node or the command ended before."""
        while self.process.is_alive():
            record = last_run(self.folder)
            if record and record.pid == self.process.pid:
                state = next((n.state for n in record.nodes if n.id == node), None)
                if state == "running":
                    os.kill(self.process.pid, number)
                    self.process.join()
                    return True
                if state is not None:
                    return False
            time.sleep(0.002)
        return False


def graftline(folder: Path, *arguments: str, expect: int = 0) -> str:
    """Runs a command to its end and returns what it printed."""
    command = Command(folder, *arguments)
    assert command.wait() == expect, command.output
    return command.output


def answer(folder: Path, *arguments: str) -> object:
    """Runs a command with `--json` and returns its document."""
    output = graftline(folder, *arguments, "--json")
    return json.loads(output[output.index("[" if output.lstrip().startswith("[") else "{") :])


def last_run(folder: Path) -> RunRecord | None:
    """The newest run of a project."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return next(run_record.records(folder / "runs"), None)
    return None


def draw(folder: Path, count: int, seed: int, **colours: tuple[int, int, int]) -> Path:
    """Writes noisy blobs on grey, one folder per colour."""
    random = np.random.default_rng(seed)
    for name, colour in (colours or COLOURS).items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.normal(128, 25, (48, 48, 3))
            top, left = random.integers(4, 20, 2)
            pixels[top : top + 24, left : left + 24] += np.subtract(colour, 128)
            # A coarse pattern of its own keeps any two from being near-duplicates.
            pixels += np.kron(random.normal(0, 30, (6, 6, 1)), np.ones((8, 8, 1)))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{seed}-{number:03d}.png")
    return folder
