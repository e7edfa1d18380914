"""Images per second and peak memory of a drop, beside the plain decoding of the same files.

    python benchmarks/drop.py IMAGES [--sizes 1000 10000 50000] [--json FILE]

IMAGES is a folder with JPEG files. For every size as many files are made from them, each with other
bytes: turned upside down or mirrored by turns, and recompressed, in ten classes. Decoding (read,
tf.io.decode_image, in as many threads as there are cores) and drop run in processes of their own,
one after the other. Seconds are without imports; memory is the peak of the process, and what it is
above the same process after its imports.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

_CLASSES = 10
TURNS = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
)


def make(originals: list[Path], count: int, folder: Path) -> None:
    """Writes so many different files, in ten folders."""
    variants = (
        (again, turn, original)
        for again in itertools.count()
        for turn in TURNS
        for original in originals
    )
    for number, variant in enumerate(itertools.islice(variants, count)):
        _write(number, *variant, folder)


def _write(
    number: int, again: int, turn: Image.Transpose | None, original: Path, folder: Path
) -> None:
    target = folder / f"class-{number % _CLASSES}" / f"{number:06d}.jpg"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(variant(again, turn, original))


def variant(
    again: int, turn: Image.Transpose | None, original: Path, side: int | None = None
) -> bytes:
    """The file with other bytes: turned, resized to a square where `side` says so, recompressed."""
    image = Image.open(original)
    if turn is not None:
        image = image.transpose(turn)
    if side:
        image = image.resize((side, side))
    stream = io.BytesIO()
    # From the ninth time on a comment makes the bytes different, where the image is not.
    image.save(stream, "JPEG", quality=85, comment=f"{again}".encode())
    return stream.getvalue()


def decode(folder: Path) -> dict[str, float]:
    """Reads and decodes all files, in this process."""
    import tensorflow as tf

    def read(path: Path) -> int:
        return tf.io.decode_image(path.read_bytes(), expand_animations=False).shape[0]

    idle = _memory("VmRSS")
    started = time.monotonic()
    paths = _files(folder)
    count = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(itertools.islice(paths, 1000)):
            count += len(list(pool.map(read, batch)))
    return _figures(count, time.monotonic() - started, idle)


def take_in(folder: Path) -> dict[str, float]:
    """Takes all files in as a drop, in this process."""
    from graftline.components.ingest.config import DropConfig
    from graftline.components.ingest.drop import drop
    from graftline.pipeline.beam.config import BeamConfig
    from graftline.pipeline.beam.options import beam_options

    classes = [f"class-{number}" for number in range(_CLASSES)]
    idle = _memory("VmRSS")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder.parent) as project:
        span = drop(
            folder,
            Path(project) / "spans",
            Path(project) / "quarantine",
            DropConfig(),
            classes,
            beam_options=beam_options(BeamConfig(), "drop"),
        )
        seconds = time.monotonic() - started
        return _figures(span.summary.images, seconds, idle)


def _files(folder: Path) -> Iterator[Path]:
    for child in sorted(folder.iterdir()):
        yield from sorted(child.iterdir())


def _figures(images: int, seconds: float, idle: float) -> dict[str, float]:
    peak = _memory("VmHWM")
    return {
        "images": images,
        "seconds": round(seconds, 2),
        "images_per_second": round(images / seconds, 1),
        "peak_mb": round(peak),
        "above_idle_mb": round(peak - idle),
    }


def _memory(name: str) -> float:
    """Resident memory of this process now (VmRSS) or at its highest (VmHWM), in MB."""
    status = Path("/proc/self/status").read_text("ascii")
    return (
        next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) / 1024
    )


def _in_process(task: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--task", task, str(folder)]
    output = subprocess.run(command, capture_output=True, check=False, text=True)
    if output.returncode:
        sys.exit(output.stderr)
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    """Measures every size and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--task", choices=("decode", "drop"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps((decode if options.task == "decode" else take_in)(options.images)))
        return
    originals = sorted(options.images.rglob("*.jpg"))
    results = []
    columns = ("images", "decoding/s", "drop/s", "drop s", "peak MB", "above idle MB")
    print("".join(f"{name:>15}" for name in columns))
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            images = Path(folder) / "images"
            make(originals, size, images)
            result = {
                "decoding": _in_process("decode", images),
                "drop": _in_process("drop", images),
            }
        results.append(result)
        drop = result["drop"]
        row = (
            size,
            result["decoding"]["images_per_second"],
            drop["images_per_second"],
            drop["seconds"],
            drop["peak_mb"],
            drop["above_idle_mb"],
        )
        print("".join(f"{value:>15}" for value in row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
