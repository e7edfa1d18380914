"""The whole pipeline beside the Keras script that a user would have written instead.

    python benchmarks/main_job.py IMAGES WEIGHTS RECIPE [--seeds 1 2 3] [--loaders tfdata generator]

IMAGES   folder with one sub-folder per class
WEIGHTS  MobileNetV2 0.35 no-top weights (h5)
RECIPE   the plain Keras script: `RECIPE IMAGES WEIGHTS --loader L --seed S`, prints one JSON line

All contenders run one after the other on this machine, in this order, in processes of their own.
The images on which the tf.data form of the script validates are Graftline's test split; of the
others Graftline keeps a tenth for early stopping. The generator form holds out the first fifth of
each class by name, and so gets links to the images whose names put the test split first: it
validates on the same images, but for the few per class by which a fifth of it is more or less.
Prints their share, and seconds per node, totals, accuracy and peak memory of each contender, as a
table and as one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from accuracy import last_run

# The recipe's.
_HELD_OUT_SHARE = 0.2
# What image_dataset_from_directory holds out, asked of Keras itself in a process of its own.
_HELD_OUT = """
import json, sys, tensorflow as tf
images, seed = sys.argv[1], int(sys.argv[2])
valid = tf.keras.utils.image_dataset_from_directory(
    images, validation_split=0.2, seed=seed, subset="validation", image_size=(8, 8))
print(json.dumps(valid.file_paths))
"""


def measured(command: list[str], log: Path) -> tuple[float, float, str]:
    """Runs a command; returns wall-clock seconds, peak memory in MB and its standard output.

    Raises:
        SystemExit: the command failed.
    """
    # Graftline sets this for itself on import; the script runs on the Keras that it asks for.
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    started = time.monotonic()
    with log.open("ab") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
        assert process.stdout is not None
        output = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        # The log goes with its folder.
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"{' '.join(command)} failed:\n{output}{tail}")
    return time.monotonic() - started, usage.ru_maxrss / 1024, output


def split_like_the_script(images: Path, seed: int, folder: Path, log: Path) -> None:
    """Links the images into `train`, `eval`, `test`; test is what the script holds out."""
    _, _, output = measured([sys.executable, "-c", _HELD_OUT, str(images), str(seed)], log)
    held_out = {Path(path).resolve() for path in json.loads(output.splitlines()[-1])}
    for label in sorted(path for path in images.iterdir() if path.is_dir()):
        rest = 0
        for image in sorted(label.iterdir()):
            if image.resolve() in held_out:
                split = "test"
            else:
                rest += 1
                split = "eval" if rest % 10 == 0 else "train"
            target = folder / split / label.name / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(image.resolve())


def put_first_what_is_held_out(source: Path, folder: Path) -> float:
    """Links the images of a split once more, below their classes, the test split first by name.

    Returns:
        which share of what the generator form holds out is in the test split.
    """
    held_out = shared = 0
    for label in sorted(path.name for path in (source / "test").iterdir()):
        (folder / label).mkdir(parents=True)
        names = []
        for number, split in enumerate(("test", "eval", "train")):
            for image in sorted((source / split / label).iterdir()):
                names.append(split)
                (folder / label / f"{number}-{image.name}").symlink_to(image.resolve())
        first = names[: int(_HELD_OUT_SHARE * len(names))]
        held_out, shared = held_out + len(first), shared + first.count("test")
    return shared / held_out


def run_graftline(
    source: Path, weights: Path, seed: int, folder: Path, log: Path
) -> dict[str, Any]:
    """Init, drop and run in a new project; `seconds` are those of `graftline run`, a process."""
    graftline = [sys.executable, "-m", "graftline.pipeline.cli.main"]
    project = folder / "project"
    measured([*graftline, "init", str(project), "--images", str(source)], log)
    drop_s, drop_mb, _ = measured([*graftline, "drop", str(source), "--project", str(project)], log)
    seconds, memory, _ = measured(
        [
            *graftline,
            "run",
            "--project",
            str(project),
            "trainer.backbone=mobilenet_v2",
            "trainer.alpha=0.35",
            f"trainer.weights={weights}",
            f"trainer.seed={seed}",
            "image.size=224",
        ],
        log,
    )
    record, accuracy = last_run(project)
    return {
        "contender": "graftline",
        "seed": seed,
        "seconds": round(seconds, 1),
        "accuracy": round(accuracy, 4),
        "peak_mb": round(memory),
        "drop_seconds": round(drop_s, 1),
        "drop_peak_mb": round(drop_mb),
        "nodes": {node.id: node.seconds for node in record.nodes},
    }


def run_script(
    recipe: Path, images: Path, weights: Path, loader: str, seed: int, log: Path
) -> dict[str, Any]:
    """The plain script with one of its loaders."""
    command = [sys.executable, str(recipe), str(images), str(weights)]
    seconds, memory, output = measured([*command, "--loader", loader, "--seed", str(seed)], log)
    result = json.loads(output.splitlines()[-1])
    return {
        "contender": f"script, {loader}",
        "seed": seed,
        "seconds": round(seconds, 1),
        "accuracy": result["final_val_acc"],
        "peak_mb": round(memory),
    }


def main() -> None:
    """Runs all contenders for all seeds and prints what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--loaders", nargs="*", default=["tfdata", "generator"])
    options = parser.parse_args()
    images, weights = options.images.resolve(), options.weights.resolve()
    results = []
    with tempfile.TemporaryDirectory(prefix="graftline-main-job-") as name:
        for seed in options.seeds:
            folder = Path(name) / str(seed)
            folder.mkdir()
            log = folder / "log.txt"
            split_like_the_script(images, seed, folder / "split", log)
            results.append(run_graftline(folder / "split", weights, seed, folder, log))
            show(results[-1])
            for loader in options.loaders:
                given = images
                if loader == "generator":
                    given = folder / "ordered"
                    share = put_first_what_is_held_out(folder / "split", given)
                    print(f"{share:.1%} of what the generator form holds out is the test split")
                results.append(run_script(options.recipe, given, weights, loader, seed, log))
                show(results[-1])
    print(msgspec.json.encode(results).decode())


def show(result: dict[str, Any]) -> None:
    """Prints one contender's row, and its nodes where it has any."""
    print(
        f"{result['contender']:<20}seed {result['seed']:<6}{result['seconds']:8.1f} s"
        f"{result['accuracy']:9.4f}{result['peak_mb']:8.0f} MB",
        flush=True,
    )
    for node, seconds in result.get("nodes", {}).items():
        print(f"    {node:<24}{seconds:8.1f} s", flush=True)


if __name__ == "__main__":
    main()
