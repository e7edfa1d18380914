"""What more images cost: stages, memory, disk, a drop after a long history, batch prediction, plan.

    python benchmarks/scale.py IMAGES [WEIGHTS] [--parts stages history processes predict plan]
                               [--sizes 1000 10000] [--side 96] [--folder DIR] [--json FILE]

IMAGES   folder with one sub-folder per class
WEIGHTS  MobileNetV2 0.35 no-top weights (h5); without them the default network is trained

Images are IMAGES turned, resized to so many pixels and recompressed; their classes stay. Commands
run in processes of their own, one after the other. DIR keeps the projects; without it they go.

stages     for every size a new project: seconds and microseconds per image of each stage, peak
           memory of each process, disk from drop to published version in multiples of the images'
           bytes.
history    after the largest size: twice a drop of 1% of it, trained from the version in service
           with its head alone. Beside the first run: seconds, and accuracy on the test split.
processes  the same images of the largest size, drop and statistics, with one Beam process and
           with two, twice by turns.
predict    `graftline predict-batch` beside a bare loop over the SavedModel with the same batches:
           images per second beyond the start, by turns, the median of three.
plan       a project grows by drops of a quarter, a half and all of the smallest size, then by the
           sizes of --plan-sizes: each time `graftline plan` beside what then happened.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import drop
from accuracy import last_run
from main_job import measured

from graftline.components.ingest.spans import latest_span

_GRAFTLINE = [sys.executable, "-m", "graftline.pipeline.cli.main"]
_HEAD_ALONE = ["trainer.warm_start=true", "trainer.phases=[{name: head, epochs: 30, rate: 1e-3}]"]
_BATCH = 32
_ROUNDS = 3
_TURNS = 2
_PARTS = ("stages", "history", "processes", "predict", "plan")
# Reads, as a user's loop would, and asks the signature; prints images per second.
_BARE_LOOP = """
import json, sys, time
from pathlib import Path
import tensorflow as tf
model, folder, batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
loaded = tf.saved_model.load(model)
signature = loaded.signatures["serving_default"]
files = sorted(path for path in folder.rglob("*") if path.is_file())
def ask(names):
    images = tf.constant([name.read_bytes() for name in names])
    answer = signature(image_bytes=images)
    return answer["classes"].numpy(), answer["scores"].numpy()
ask(files[:batch])
started = time.monotonic()
for start in range(0, len(files), batch):
    ask(files[start:start + batch])
print(json.dumps(len(files) / (time.monotonic() - started)))
"""


class Maker:
    """Makes images of which no two are alike, as many as are asked for."""

    def __init__(self, images: Path, side: int) -> None:
        by_class = [
            sorted(path for path in folder.iterdir() if path.is_file())
            for folder in sorted(images.iterdir())
            if folder.is_dir()
        ]
        # By turns from every class, so that each drop has all of them.
        originals = [path for row in zip(*by_class, strict=False) for path in row]
        self._side = side
        self._variants = enumerate(
            (again, turn, original)
            for again in itertools.count()
            for turn in drop.TURNS
            for original in originals
        )

    def make(self, count: int, folder: Path) -> Path:
        """Writes the next so many, a folder per class."""
        for number, (again, turn, original) in itertools.islice(self._variants, count):
            target = folder / original.parent.name / f"{number:07d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(drop.variant(again, turn, original, self._side))
        return folder


class Bench:
    """A project to measure, and what is measured on it."""

    def __init__(self, folder: Path, images: Path, weights: Path | None, side: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.project = folder / "project"
        self.log = folder / "log.txt"
        self.maker = Maker(images, side)
        self.network = [
            f"image.size={side}",
            "model_gate.min_accuracy=0.0",
            "model_gate.min_class_recall=0.0",
        ]
        if weights:
            self.network += [
                "trainer.backbone=mobilenet_v2",
                "trainer.alpha=0.35",
                f"trainer.weights={weights}",
            ]

    def command(self, *arguments: str) -> tuple[float, float, str]:
        """Seconds, peak memory in MB and output of a command on the project."""
        return measured([*_GRAFTLINE, *arguments, "--project", str(self.project)], self.log)

    def take_in(self, count: int) -> tuple[float, float]:
        """Makes so many images and takes them in; seconds and peak memory."""
        name = f"images-{len(list(self.folder.glob('images-*'))):02d}"
        images = self.maker.make(count, self.folder / name)
        if not self.project.exists():
            measured([*_GRAFTLINE, "init", str(self.project), "--images", str(images)], self.log)
        seconds, peak, _ = self.command("drop", str(images))
        return seconds, peak

    def run(self, *more: str) -> tuple[float, float]:
        """Trains and publishes; seconds and peak memory."""
        seconds, peak, _ = self.command("run", *self.network, *more)
        return seconds, peak

    def disk(self) -> float:
        """What lies on disk from drop to published version, by the images' bytes."""
        kept = (self.project / "spans", self.project / "tfx", self.project / "serving")
        files = {
            (path.stat().st_dev, path.stat().st_ino): path.stat().st_size
            for folder in kept
            for path in folder.rglob("*")
            if path.is_file() and "features" not in path.relative_to(folder).parts
        }
        images = sum(
            path.stat().st_size for path in self.folder.glob("images-*/*/*") if path.is_file()
        )
        return sum(files.values()) / images


def stages(bench: Bench, size: int) -> dict[str, Any]:
    """One size, from images to the published version."""
    drop_seconds, drop_peak = bench.take_in(size)
    run_seconds, run_peak = bench.run()
    record, accuracy = last_run(bench.project)
    rows = {"drop": (latest_span(bench.project / "spans").summary.seconds, drop_peak)}
    rows |= {node.id: (node.seconds, node.peak_mb) for node in record.nodes}
    for name, (seconds, peak) in rows.items():
        per_image = f"{1e6 * seconds / size:10.0f} us/image{peak:8.0f} MB"
        print(f"{size:>8}  {name:<20}{seconds:9.1f} s{per_image}", flush=True)
    disk = bench.disk()
    print(
        f"{size:>8}  drop {drop_seconds:.0f} s, run {run_seconds:.0f} s as commands; peaks "
        f"{drop_peak:.0f} and {run_peak:.0f} MB; disk {disk:.2f} times the images; accuracy "
        f"{accuracy:.3f}",
        flush=True,
    )
    return {
        "part": "stages",
        "images": size,
        "rows": rows,
        "drop_seconds": drop_seconds,
        "run_seconds": run_seconds,
        "run_peak_mb": run_peak,
        "disk": disk,
        "accuracy": accuracy,
    }


def history(bench: Bench, first: dict[str, Any]) -> list[dict[str, Any]]:
    """Two small drops after a large one."""
    whole = first["drop_seconds"] + first["run_seconds"]
    results = []
    for number in (1, 2):
        count = first["images"] // 100
        drop_seconds, _ = bench.take_in(count)
        run_seconds, peak = bench.run(*_HEAD_ALONE)
        record, accuracy = last_run(bench.project)
        share = (drop_seconds + run_seconds) / whole
        print(
            f"drop {number} of {count} after {first['images']}: {drop_seconds:.0f} + "
            f"{run_seconds:.0f} s, {share:.3f} of the first; peak {peak:.0f} MB; accuracy "
            f"{accuracy:.3f} after {first['accuracy']:.3f}",
            flush=True,
        )
        for node in record.nodes:
            print(f"          {node.id:<20}{node.seconds:9.1f} s", flush=True)
        results.append({"part": "history", "share": share, "accuracy": accuracy})
    return results


def processes(bench: Bench, images: Path) -> dict[str, Any]:
    """Drop and statistics with one process and with two, by turns."""
    found: dict[str, dict[int, list[float]]] = {}
    for turn, count in itertools.product(range(_TURNS), (1, 2)):
        bench.project = bench.folder / f"project-{turn}-{count}"
        measured([*_GRAFTLINE, "init", str(bench.project), "--images", str(images)], bench.log)
        parallel = f"beam.parallelism={count}"
        bench.command("drop", str(images), parallel)
        took = {"drop": latest_span(bench.project / "spans").summary.seconds}
        # Without one of its classes the data gate stops the run after the statistics.
        schema = bench.project / "schema" / "schema.pbtxt"
        lines = schema.read_text().splitlines()
        values = [place for place, line in enumerate(lines) if line.strip().startswith("value:")]
        del lines[values[0]]
        schema.write_text("\n".join(lines))
        subprocess.run(
            [*_GRAFTLINE, "run", *bench.network, parallel, "--project", str(bench.project)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        took |= {node.id: node.seconds for node in next(_records(bench.project)).nodes}
        for name in ("drop", "ImportExampleGen", "StatisticsGen"):
            found.setdefault(name, {}).setdefault(count, []).append(took[name])
        shutil.rmtree(bench.project)
    for name, seconds in found.items():
        ratio = sum(seconds[1]) / sum(seconds[2])
        print(
            f"{name}: one process {seconds[1]} s, two {seconds[2]} s, {ratio:.2f} times as fast",
            flush=True,
        )
    return {"part": "processes", **found}


def predict(bench: Bench, images: Path) -> dict[str, Any]:
    """Batch prediction beside the bare loop."""
    [*_, model] = sorted(path for path in (bench.project / "serving").glob("*/[0-9]*"))
    files = sorted(path for path in images.rglob("*") if path.is_file())
    few = bench.folder / "few"
    for file in files[: max(1, len(files) // 10)]:
        target = few / file.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
    count = sum(1 for path in few.rglob("*") if path.is_symlink())
    ours, bare, peaks = [], [], []
    for _ in range(_ROUNDS):
        took = {}
        for name, source in (("few", few), ("all", images)):
            output = bench.folder / "predictions"
            shutil.rmtree(output, ignore_errors=True)
            arguments = [str(source), "--output", str(output), "--batch-size", str(_BATCH)]
            took[name], peak, _ = bench.command("predict-batch", *arguments)
        ours.append((len(files) - count) / (took["all"] - took["few"]))
        peaks.append(peak)
        _, _, output_text = measured(
            [sys.executable, "-c", _BARE_LOOP, str(model), str(images), str(_BATCH)], bench.log
        )
        bare.append(json.loads(output_text.splitlines()[-1]))
    rate, other = statistics.median(ours), statistics.median(bare)
    print(
        f"predict-batch {rate:.0f} images/s, bare loop {other:.0f}: {rate / other:.2f}; peak "
        f"{max(peaks):.0f} MB; {len(files)} images in batches of {_BATCH}; all: "
        f"{[round(one) for one in ours]}, {[round(one) for one in bare]}",
        flush=True,
    )
    return {"part": "predict", "images_per_second": rate, "bare": other, "ratio": rate / other}


def plan(bench: Bench, smallest: int, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """`graftline plan` beside what then happened."""
    for size in (smallest // 4, smallest // 2, smallest):
        bench.take_in(size)
        bench.run()
    results = []
    for size in sizes:
        _, _, text = bench.command("plan", "--images", str(size), "--json", *bench.network)
        said = json.loads(text)
        bench.take_in(size)
        bench.run()
        record, _ = last_run(bench.project)
        happened = latest_span(bench.project / "spans").summary.seconds + record.seconds
        off = said["seconds"] / happened - 1
        print(
            f"plan of a drop of {size}: {said['seconds']:.0f} s ({said['seconds_low']:.0f} to "
            f"{said['seconds_high']:.0f}), {happened:.0f} s happened, {100 * off:+.0f}%; memory "
            f"{said['peak_mb']:.0f} MB, {max(node.peak_mb for node in record.nodes)} MB happened",
            flush=True,
        )
        for stage in said["stages"]:
            took = {node.id: node.seconds for node in record.nodes}
            took["drop"] = latest_span(bench.project / "spans").summary.seconds
            if took.get(stage["name"], 0) > 1:
                print(
                    f"          {stage['name']:<20}{stage['seconds']:8.1f} s planned"
                    f"{took[stage['name']]:8.1f} s happened",
                    flush=True,
                )
        results.append({"part": "plan", "images": size, "off": off})
    return results


def _records(project: Path) -> Any:
    from graftline.pipeline.run_record import records

    return records(project / "runs")


def main() -> None:
    """Measures the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("--parts", nargs="+", default=list(_PARTS), choices=_PARTS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--plan-sizes", type=int, nargs="+", default=[500, 2000, 4000])
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    images, weights = options.images.resolve(), options.weights and options.weights.resolve()
    print(json.dumps({"images": str(images), "parts": options.parts, "side": options.side}))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="graftline-scale-") as name:
        root = options.folder or Path(name)

        def bench(part: str) -> Bench:
            return Bench(root / part, images, weights, options.side)

        for size in options.sizes:
            of_size = bench(f"{size}")
            if {"stages", "history", "predict"} & set(options.parts):
                results.append(stages(of_size, size))
        started = time.strftime("%H:%M:%S")
        print(f"stages are measured, {started}", flush=True)
        if "predict" in options.parts:
            results.append(predict(of_size, of_size.folder / "images-00"))
        if "history" in options.parts:
            results += history(of_size, results[len(options.sizes) - 1])
        if "processes" in options.parts:
            two = bench("processes")
            results.append(processes(two, two.maker.make(options.sizes[-1], two.folder / "images")))
        if "plan" in options.parts:
            results += plan(bench("plan"), options.sizes[0], options.plan_sizes)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
