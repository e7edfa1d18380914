"""`graftline predict`: classify images with a published version."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import click
import msgspec

from graftline.components.ingest.config import DropConfig
from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.console import Console
from graftline.pipeline.project import Project
from graftline.serving.base_path import BasePath

_BATCH = 32


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is said about one file: its classes by falling probability, or why there is none."""

    file: str
    classes: list[tuple[str, float]] = []
    error: str = ""


@project_command("predict")
@click.argument(
    "images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path)
)
@click.option("--version", type=int, metavar="V", help="Default: the version in service.")
@click.option("--top", type=click.IntRange(min=1), default=1, help="How many classes to show.")
def predict(
    project: Project, as_json: bool, images: tuple[Path, ...], version: int | None, top: int
) -> None:
    """Classify images with the version in service."""
    folder = BasePath(project.base_path).folder(version)
    # What TensorFlow and Google's libraries say on the way would drown the answer.
    with Console(Path(os.devnull), quiet=as_json) as console:
        console.progress(f"loading TensorFlow and version {int(folder.name)}")
        answers = list(_classify(folder, images, project.config.drop, top))
    failed = [answer for answer in answers if answer.error]
    if as_json:
        print(msgspec.json.encode({"version": int(folder.name), "images": answers}).decode())
    else:
        _print_table(answers)
        for answer in failed:
            print(f"{answer.file}: {answer.error}", file=sys.stderr)
        done = len(answers) - len(failed)
        print(f"{done} of {len(answers)} classified by version {int(folder.name)}.")
    if failed:
        sys.exit(2)


def _classify(folder: Path, images: Sequence[Path], drop: DropConfig, top: int) -> Iterator[Answer]:
    from graftline.serving.predictor import Predictor

    predictor = Predictor(folder)
    remaining = iter(images)
    while batch := list(islice(remaining, _BATCH)):
        contents = [_read(path, drop) for path in batch]
        readable = [content for content in contents if isinstance(content, bytes)]
        results = iter(predictor.predict(readable) if readable else [])
        for path, content in zip(batch, contents, strict=True):
            file = click.format_filename(path)
            if isinstance(content, str):
                yield Answer(file, error=content)
            elif classes := next(results):
                yield Answer(file, classes[:top])
            else:
                yield Answer(file, error="is no image that the model can decode.")


def _read(path: Path, drop: DropConfig) -> bytes | str:
    """The bytes of an image file, or in words why it is not shown to the model."""
    from graftline.serving.image_check import Limits, UnusableImage, check_header

    # What a drop would not take in is not what the model was trained for.
    limits = msgspec.convert(drop, Limits, from_attributes=True)
    try:
        with path.open("rb") as stream:
            content = stream.read(limits.max_bytes + 1)
        check_header(content, limits)
    except OSError as error:
        return f"cannot be read: {error.strerror}."
    except UnusableImage as error:
        return f"{error}."
    return content


def _print_table(answers: Sequence[Answer]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("image", overflow="fold"), "class", box=None)
    table.add_column("probability", justify="right")
    for answer in answers:
        for rank, (name, probability) in enumerate(answer.classes):
            table.add_row("" if rank else answer.file, name, f"{probability:.3f}")
    if table.rows:
        Console(markup=False, emoji=False, highlight=False).print(table)
