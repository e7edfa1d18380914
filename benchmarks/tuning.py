"""What tuning costs and what it gains.

    python benchmarks/tuning.py IMAGES [--seeds 1 2 3] [SECTION.KEY=VALUE ...]

IMAGES   folder with one sub-folder per class, or the same below train, eval and test

Trains with the configuration as it is for every seed, tunes once, trains with what was found for
every seed. Prints accuracy on the test split, which tuning has not seen, and the seconds of all.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from accuracy import graftline, last_run, resolved

from graftline.pipeline import run_record


def train(project: Path, seeds: list[int], overrides: list[str]) -> tuple[list[float], list[float]]:
    """Accuracies and seconds in nodes of one run per seed."""
    accuracies, seconds = [], []
    for seed in seeds:
        chosen = [f"trainer.seed={seed}", "model_gate.tolerance=1"]
        graftline(project, "run", "--force", *overrides, *chosen)
        record, accuracy = last_run(project)
        accuracies.append(accuracy)
        seconds.append(record.seconds)
        print(f"  seed {seed}  accuracy {accuracy:.4f}  {record.seconds:.0f} s", flush=True)
    return accuracies, seconds


def main() -> None:
    """Runs, tunes, runs again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_intermixed_args()
    images, overrides = options.images.resolve(), resolved(options.overrides)
    with tempfile.TemporaryDirectory(prefix="graftline-tuning-") as name:
        project = Path(name) / "project"
        command = [sys.executable, "-m", "graftline.pipeline.cli.main", "init", str(project)]
        subprocess.run([*command, "--images", str(images)], check=True, stdout=subprocess.PIPE)
        graftline(project, "drop", str(images))
        print("as configured", flush=True)
        before, normal = train(project, options.seeds, overrides)
        graftline(project, "tune", *overrides)
        record = next(run_record.records(project / "runs"))
        print(f"tuning  {record.seconds:.0f} s in nodes", flush=True)
        print((project / "tuned.yaml").read_text(), end="", flush=True)
        print("as tuned", flush=True)
        after, _ = train(project, options.seeds, overrides)
    mean = statistics.mean
    print(
        f"accuracy {mean(before):.4f} as configured, {mean(after):.4f} as tuned; tuning took "
        f"{record.seconds / mean(normal):.2f} times a normal run"
    )


if __name__ == "__main__":
    main()
