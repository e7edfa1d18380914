"""Trainings that are repeated, to compare accuracies: parts of `training.py`."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from accuracy import graftline, last_run

GRAFTLINE = [sys.executable, "-m", "graftline.pipeline.cli.main"]
BATCH = 32
_KILLED = 2


def begin(folder: Path, images: Path, weights: Path) -> tuple[Path, list[str]]:
    """A project with the images taken in, and the overrides of the network that is measured."""
    project = folder / "project"
    command = [*GRAFTLINE, "init", str(project)]
    subprocess.run([*command, "--images", str(images)], check=True, stdout=subprocess.PIPE)
    graftline(project, "drop", str(images))
    return project, [
        "trainer.backbone=mobilenet_v2",
        "trainer.alpha=0.35",
        f"trainer.weights={weights}",
        "image.size=224",
        "model_gate.tolerance=1",
    ]


def workers(folder: Path, images: Path, weights: Path, seeds: list[int]) -> None:
    """Prints accuracy and seconds of training with one worker and with two.

    Two that take half the batch each take the steps of one, which the rate is for.
    """
    project, overrides = begin(folder, images, weights)
    for count, batch, scaling in ((1, BATCH, "sqrt"), (2, BATCH, "sqrt"), (2, BATCH // 2, "none")):
        chosen = [*overrides, f"trainer.workers={count}", f"trainer.batch_size={batch}"]
        chosen.append(f"trainer.rate_scaling={scaling}")
        name = f"{count} workers with {batch} images each"
        _with_seeds(project, chosen, seeds, name)


def killed(folder: Path, images: Path, weights: Path, seeds: list[int]) -> None:
    """Prints accuracies of undisturbed runs and of runs that were killed in both phases."""
    project, overrides = begin(folder, images, weights)
    _with_seeds(project, overrides, seeds, "undisturbed")
    for seed in seeds[:_KILLED]:
        command = [*GRAFTLINE, "run", "--force", *overrides, f"trainer.seed={seed}"]
        for phase in ("frozen", "fine_tune"):
            _kill_in(project, command, phase)
            command = [*GRAFTLINE, "resume"]
        graftline(project, "resume")
        _, accuracy = last_run(project)
        print(f"killed in both phases  seed {seed}  accuracy {accuracy:.4f}", flush=True)


def _with_seeds(project: Path, overrides: list[str], seeds: list[int], name: str) -> None:
    found = []
    for seed in seeds:
        graftline(project, "run", "--force", *overrides, f"trainer.seed={seed}")
        record, accuracy = last_run(project)
        seconds = next(node.seconds for node in record.nodes if node.id == "Trainer")
        found.append(accuracy)
        print(f"{name}  seed {seed}  accuracy {accuracy:.4f}  Trainer {seconds:.0f} s", flush=True)
    print(f"{name}  mean accuracy {statistics.mean(found):.4f}", flush=True)


def _kill_in(project: Path, command: list[str], phase: str) -> None:
    """Starts the command and kills it once the second epoch of the phase is over."""

    def told() -> int:
        logs = (path.read_text() for path in project.glob("runs/*/*.log"))
        return sum(log.count(f" {phase} 2/") for log in logs)

    before = told()
    output = subprocess.DEVNULL
    with subprocess.Popen(
        [*command, "--project", str(project)], stdout=output, stderr=output, start_new_session=True
    ) as process:
        while told() == before:
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended before the second epoch of {phase}")
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
