"""Commands in processes of their own, quickly: TFX is imported once, every process forks from it.

Such a process is as real as one from the shell: it has its own memory and working folder, can be
killed, and ends with an exit code. Only the half minute of imports is shared.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from graftline.pipeline import run_record
from graftline.pipeline.run_record import RunRecord

_PRELOADED = [
    "graftline.pipeline.create_pipeline",
    "graftline.pipeline.local_runner",
    "graftline.pipeline.retrain",
    "graftline.components.trainer.run",
    "graftline.components.tuner.tuner",
    "graftline.components.ingest.drop",
    "graftline.serving.server.server",  # what model_servers.py wants, for there is one such list
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOADED)

# What tells colours apart, without or with a pretrained network.
FROM_SCRATCH = """
  backbone: lenet5
  weights: none
  phases: [{name: all, epochs: 4, rate: 2e-3, fraction: 1.0}]
  batch_size: 16
"""
PRETRAINED = """
  phases: [{name: frozen, epochs: 6, rate: 3e-3}]
  batch_size: 16
"""

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210)}


# Without an executor of their own: they are stopped before they resolve anything.
RESOLVERS = ("previous_span", "window", "in_service")


def _command(
    module: str,
    arguments: list[str],
    folder: str,
    streams: list[Path],
    halt_in: str,
    halted: Path,
    environment: Mapping[str, str],
    nothing_else: bool,
) -> None:
    # Tests that run in the background may have inherited that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if nothing_else:
        os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, output in zip((1, 2), streams, strict=True):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    if halt_in:
        _halt_in(halt_in, halted)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


def _halt_in(node: str, halted: Path) -> None:
    """Makes this process stand still in a node whose outputs are written, not yet registered."""
    from tfx.orchestration.portable.launcher import Launcher

    method = "launch" if node in RESOLVERS else "_run_executor"
    original = getattr(Launcher, method)

    def halting(launcher: Launcher, *arguments: object) -> object:
        result = None if node in RESOLVERS else original(launcher, *arguments)
        if launcher._pipeline_node.node_info.id == node:
            halted.touch()
            for _ in range(6000):
                time.sleep(0.1)
                if not halted.exists():
                    break
            else:
                os._exit(1)
        return original(launcher, *arguments) if node in RESOLVERS else result

    setattr(Launcher, method, halting)


class Command:
    """A `graftline` command under way, or another `python -m MODULE`.

    Args:
        folder: where it runs.
        arguments: what follows `graftline`.
        halt_in: a node in which it stands still, to be killed or to go on there.
        environment: variables that are set for it.
        nothing_else: it has no other variables.
        module: what is run.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        halt_in: str = "",
        environment: Mapping[str, str] | None = None,
        nothing_else: bool = False,
        module: str = "graftline.pipeline.cli.main",
    ):
        name = f"{folder.name}-{time.monotonic_ns()}"
        self.streams = [folder.parent / f"{name}.{stream}" for stream in ("out", "err")]
        self._halted = folder.parent / f"{name}.halted"
        self.process = _context.Process(
            target=_command,
            args=(
                module,
                list(arguments),
                str(folder),
                self.streams,
                halt_in,
                self._halted,
                dict(environment or {}),
                nothing_else,
            ),
        )
        self.process.start()

    def wait(self, timeout: float = 600) -> int:
        """Waits for the end; returns the exit code, negative for a signal."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running: {self.output}"
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        """What it printed to standard output so far."""
        return self.streams[0].read_text() if self.streams[0].exists() else ""

    @property
    def output(self) -> str:
        """What it printed so far, errors last."""
        return "".join(stream.read_text() for stream in self.streams if stream.exists())

    def wait_halted(self) -> None:
        """Waits until it stands still in its node."""
        while not self._halted.exists():
            assert self.process.is_alive(), self.output
            time.sleep(0.01)

    def go_on(self) -> None:
        """Lets it go on from where it stands still."""
        self._halted.unlink()

    def kill(self, number: int) -> int:
        """Sends a signal once it stands still in its node; returns the exit code."""
        self.wait_halted()
        os.kill(self.process.pid or 0, number)
        return self.wait()


def there(folder: Path, pattern: str) -> list[Path]:
    """Files that are there just now; none where another process removes folders meanwhile."""
    try:
        return list(folder.glob(pattern))
    except FileNotFoundError:
        return []


def graftline(folder: Path, *arguments: str, expect: int = 0) -> str:
    """Runs a command to its end and returns what it printed."""
    command = Command(folder, *arguments)
    assert command.wait() == expect, command.output
    return command.output


def answer(folder: Path, *arguments: str, expect: int = 0) -> Any:
    """Runs a command with `--json` and returns its document, all that it prints."""
    command = Command(folder, *arguments, "--json")
    assert command.wait() == expect, command.output
    return json.loads(command.stdout)


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
