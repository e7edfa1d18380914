"""Test accuracy of the main job: init, drop in two parts, run, run, rollback, predict.

    python benchmarks/accuracy.py IMAGES [--seeds 1 2 3] [--drops 2] [--json FILE]
                                  [SECTION.KEY=VALUE ...]

IMAGES   folder with one sub-folder per class, or the same below train, eval and test

Every other image of a class comes in the second drop. The first seed trains on the first drop, and
on both; further seeds train on both again, with the same split. Prints the accuracy of each run on
the test split, its size, and the mean and standard deviation over the seeds; at last it goes back a
version and predicts a few images, which has to work. With one drop the seconds of the first line
are those of the whole way from the images to the published version.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftline.components.verdict import Verdict
from graftline.pipeline.run_record import RunRecord, records


def graftline(project: Path, *arguments: str) -> str:
    """Runs a command on a project and returns what it prints.

    Raises:
        SystemExit: it failed; what it printed is shown.
    """
    command = [sys.executable, "-m", "graftline.pipeline.cli.main", *arguments]
    done = subprocess.run(
        [*command, "--project", str(project)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"graftline {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def resolved(overrides: Sequence[str]) -> list[str]:
    """The overrides with absolute paths: in a configuration they count from the project."""
    return [
        f"{key}={Path(value).resolve() if Path(value).is_file() else value}"
        for key, _, value in (override.partition("=") for override in overrides)
    ]


def divide(images: Path, parts: Sequence[Path]) -> None:
    """Links the images of every folder to the parts by turns."""
    numbers: collections.Counter[Path] = collections.Counter()
    for path in sorted(path for path in images.rglob("*") if path.is_file()):
        target = parts[numbers[path.parent] % len(parts)] / path.relative_to(images)
        numbers[path.parent] += 1
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)


def last_run(project: Path) -> tuple[RunRecord, float]:
    """The newest run of a project, and the accuracy that the model gate found."""
    record = next(records(project / "runs"))
    verdict = Verdict.read(project / "runs" / record.run_id / "model_gate.json")
    accuracy = next(
        check.candidate
        for check in verdict.checks
        if check.metric == "accuracy" and check.slice == "overall" and check.candidate is not None
    )
    return record, accuracy


def result(project: Path, seed: int, seconds: float) -> dict[str, Any]:
    """What the last run found, and how long it took with the drop before it."""
    record, accuracy = last_run(project)
    spans = json.loads(graftline(project, "drops", "--json"))
    trained = {entry.span for entry in record.window}
    return {
        "seed": seed,
        "spans": len(trained),
        "accuracy": round(accuracy, 4),
        "test_images": sum(
            sum(span["counts"].get("test", {}).values())
            for span in spans
            if span["span"] in trained
        ),
        "seconds": round(seconds, 1),
        "published": record.published_version,
    }


def main() -> None:
    """Runs the main job on one set and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--drops", type=int, default=2, help="in how many the images come")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_intermixed_args()
    images = options.images.resolve()
    options.overrides = resolved(options.overrides)
    results = []
    with tempfile.TemporaryDirectory(prefix="graftline-accuracy-") as name:
        folder, project = Path(name), Path(name) / "project"
        parts = [folder / f"drop{number}" for number in range(options.drops)]
        divide(images, parts)
        command = [sys.executable, "-m", "graftline.pipeline.cli.main", "init", str(project)]
        subprocess.run([*command, "--images", str(images)], check=True, stdout=subprocess.PIPE)
        runs: list[tuple[Path | None, int]] = [(part, options.seeds[0]) for part in parts]
        runs += [(None, seed) for seed in options.seeds[1:]]
        for source, seed in runs:
            started = time.monotonic()
            if source:
                graftline(project, "drop", str(source))
            # Seeds are drawn to be compared, not to be published: the gate's tolerance is lifted.
            overrides = (*options.overrides, f"trainer.seed={seed}", "model_gate.tolerance=1")
            graftline(project, "run", *([] if source else ["--force"]), *overrides)
            seconds = time.monotonic() - started
            results.append(result(project, seed, seconds))
            row = results[-1]
            print(
                f"seed {seed}  spans {row['spans']}  accuracy {row['accuracy']:.4f}  of "
                f"{row['test_images']} test images  {row['seconds']:.0f} s",
                flush=True,
            )
        both = [row["accuracy"] for row in results if row["spans"] == len(parts)]
        spread = statistics.stdev(both) if len(both) > 1 else 0.0
        print(f"mean {statistics.mean(both):.4f}  standard deviation {spread:.4f}", flush=True)
        before = results[-2]["published"]
        graftline(project, "rollback")
        some = [str(path) for path in sorted(images.rglob("*")) if path.is_file()][:3]
        answers = json.loads(graftline(project, "predict", "--json", *some))
        print(f"back to version {before}; it predicts: {json.dumps(answers)[:300]}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
