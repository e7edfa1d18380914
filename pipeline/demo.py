"""`make demo`: the main job on scikit-learn's handwritten digits, from images to a rollback.

Writes the scans that scikit-learn carries as an image folder, then runs the commands that a user
would type, in processes of their own, and checks that each ends as it should and what came out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# The scans are 8x8 pixels of 17 greys: enlarged so that a photograph's backbone sees strokes.
_ENLARGED = 64
# Digits are learnt sooner than photographs: the demo is to take minutes on two cores.
_SHORT = ("trainer.phases.fine_tune.epochs=2",)
_ACCURATE = 0.95
MARKER = ".graftline-demo"


def write_digits(folder: Path, part: slice) -> None:
    """Writes a part of the digits as PNG files, one folder per class.

    Args:
        folder: where to; made when missing.
        part: which of the 1797 scans.
    """
    digits = load_digits()
    indices = range(len(digits.target))[part]
    for index in indices:
        pixels = (255 - digits.images[index] * (255 / 16)).astype(np.uint8)
        target = folder / _NAMES[digits.target[index]] / f"scan-{index:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((_ENLARGED, _ENLARGED), Image.Resampling.BICUBIC).save(
            target
        )


def break_some(folder: Path) -> int:
    """Adds images that no one can use: cut short, not an image, a bomb. Returns how many."""
    whole = sorted((folder / "zero").glob("*.png"))[0].read_bytes()
    broken = {
        "cut-short.png": whole[: len(whole) // 2],
        "notes.png": b"these are not pixels",
        "empty.png": b"",
    }
    for name, content in broken.items():
        (folder / "zero" / name).write_bytes(content)
    Image.new("1", (20_000, 20_000)).save(folder / "zero" / "bomb.png")
    return len(broken) + 1


def graftline(*arguments: str, project: Path, code: int = 0) -> None:
    """Runs a command as the user would, showing it and what it prints.

    Raises:
        SystemExit: it ended otherwise than expected.
    """
    shown = " ".join(arguments)
    print(f"\n\033[1m$ graftline {shown}\033[0m", flush=True)
    command = [sys.executable, "-m", "graftline.pipeline.cli.main", *arguments]
    ended = subprocess.run(command, cwd=project, check=False).returncode
    expect(f"the exit code of `graftline {shown}`", ended, code)


def answer(*arguments: str, project: Path) -> Any:
    """What a command answers with `--json`."""
    command = [sys.executable, "-m", "graftline.pipeline.cli.main", *arguments, "--json"]
    return json.loads(subprocess.run(command, cwd=project, check=True, capture_output=True).stdout)


def expect(fact: str, found: object, expected: object) -> None:
    """Ends the demo with an error where it came out otherwise than it must.

    Raises:
        SystemExit: it did.
    """
    if found != expected:
        raise SystemExit(f"The demo went wrong: {fact} should be {expected}, found {found}.")


def make_folder(folder: Path) -> None:
    """Empties the folder of an earlier demo, or makes a new one.

    Raises:
        SystemExit: the folder holds something else.
    """
    marker = folder / MARKER
    if marker.exists():
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise SystemExit(
            f"{folder} is no folder of an earlier demo and is left alone: name another."
        )
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the demo in a folder that is made anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"))
    folder = parser.parse_args(arguments).folder.resolve()
    started = time.monotonic()
    make_folder(folder)
    project, images = folder / "project", folder / "images"
    project.mkdir()

    say("A first drop: 900 handwritten digits, one folder per class.")
    write_digits(images / "first", slice(0, 900))
    graftline("init", ".", "--images", "../images/first", "--name", "digits", project=project)
    graftline("drop", "../images/first", project=project)
    graftline("run", *_SHORT, project=project)
    samples = [str(next((images / "first" / name).glob("*.png"))) for name in _NAMES[3:6]]
    graftline("predict", *samples, project=project)

    say("A second drop: 600 more, and some files that are broken.")
    write_digits(images / "second", slice(900, 1500))
    broken = break_some(images / "second")
    graftline("drop", "../images/second", project=project)
    graftline("run", *_SHORT, project=project)
    drops = answer("drops", project=project)
    expect("files in quarantine", sum(drops[1]["quarantined"].values()), broken)

    say("A third drop holds a class that the schema does not know: the data gate refuses it.")
    write_digits(images / "third", slice(1500, 1797))
    (images / "third" / "nine").rename(images / "third" / "letter-g")
    graftline("drop", "../images/third", project=project)
    graftline("run", project=project, code=3)
    published = answer("versions", project=project)
    expect("the versions", [version["version"] for version in published["versions"]], [1, 2])
    expect("the version in service", published["in_service"], 2)
    accuracy = published["versions"][1]["accuracy"]
    expect(f"whether {_ACCURATE} of the test images are told", accuracy >= _ACCURATE, True)

    say("The newest version turns out to be bad: back in one command.")
    graftline("rollback", "--reason", "demo", project=project)
    graftline("versions", project=project)
    expect("the version in service", answer("versions", project=project)["in_service"], 1)
    print(
        f"\nDone in {time.monotonic() - started:.0f} s. The project is in {project}: look at "
        "graftline.yaml, runs/ and serving/."
    )


def say(text: str) -> None:
    """Announces the next act."""
    print(f"\n\033[1;36m{text}\033[0m", flush=True)


if __name__ == "__main__":
    main()
