"""`graftline predict`: classify images with a published version, here or on a model server."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from graftline.components.ingest.config import DropConfig
from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.console import Console
from graftline.pipeline.project import Project
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError

if TYPE_CHECKING:
    from graftline.serving.client.client import Client

_BATCH = 32
_UNDECODABLE = "is no image that the model can decode."
_FILE = click.Path(path_type=Path, dir_okay=False)


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What is said about one file.

    Attributes:
        file: as it was given.
        classes: by falling probability.
        error: why there are none.
        version: that answered; 0: the one named for all, or no answer.
    """

    file: str = ""
    classes: list[tuple[str, float]] = []
    error: str = ""
    version: int = 0


# Encoded images in, one answer for each out.
_Classifier = Callable[[Sequence[bytes]], list[Answer]]


@project_command("predict")
@click.argument(
    "images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path)
)
@click.option("--version", type=int, metavar="V", help="Default: the version in service.")
@click.option("--top", type=click.IntRange(min=1), default=1, help="How many classes to show.")
@click.option(
    "--server",
    metavar="URL",
    help="Ask a model server: grpc://HOST:8500, http://HOST:8501, grpcs://, https://, unix://.",
)
@click.option("--label", default="", metavar="L", help="With --server: the version labelled L.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help=f"With --server: seconds for {_BATCH} images, tries and waits included.",
)
@click.option("--ca", type=_FILE, help="With --server: whom to trust, PEM.")
@click.option("--certificate", type=_FILE, help="With --server: the client's own, PEM.")
@click.option("--key", type=_FILE, help="With --server: its key, PEM.")
def predict(
    project: Project,
    as_json: bool,
    images: tuple[Path, ...],
    version: int | None,
    top: int,
    server: str | None,
    label: str,
    timeout: float,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
) -> None:
    """Classify images with the version in service."""
    if not server and (label or ca or certificate or key):
        raise UserError("--label, --ca, --certificate and --key belong to --server URL.")
    # What TensorFlow and Google's libraries say on the way would drown the answer.
    with Console(Path(os.devnull), quiet=as_json) as console:
        if server:
            from graftline.serving.client.address import Tls
            from graftline.serving.client.client import Client

            with Client(
                server,
                project.config.model.name,
                version=version,
                label=label,
                seconds=timeout,
                tls=Tls(ca=ca, certificate=certificate, key=key),
                on_retry=lambda said: console.progress(f"{server}: {said}; trying again"),
            ) as client:
                number = client.describe().version
                answers = list(_answers(images, project.config.drop, top, _ask(client)))
        else:
            folder = BasePath(project.base_path).folder(version)
            number = int(folder.name)
            console.progress(f"loading TensorFlow and version {number}")
            answers = list(_answers(images, project.config.drop, top, _load(folder)))
    _show(answers, number, as_json)


def _load(folder: Path) -> _Classifier:
    """A version in this process."""
    from graftline.serving.predictor import Predictor

    predictor = Predictor(folder)
    return lambda contents: [
        Answer(classes=classes) if classes else Answer(error=_UNDECODABLE)
        for classes in predictor.predict(contents)
    ]


def _ask(client: Client) -> _Classifier:
    """A version on a server."""
    return lambda contents: [
        Answer(classes=found.classes, error=found.error, version=found.version)
        for found in client.predict(contents)
    ]


def _answers(
    images: Sequence[Path], drop: DropConfig, top: int, classify: _Classifier
) -> Iterator[Answer]:
    remaining = iter(images)
    while batch := list(islice(remaining, _BATCH)):
        contents = [_read(path, drop) for path in batch]
        readable = [content for content in contents if isinstance(content, bytes)]
        answers = iter(classify(readable) if readable else [])
        for path, content in zip(batch, contents, strict=True):
            answer = Answer(error=content) if isinstance(content, str) else next(answers)
            yield msgspec.structs.replace(
                answer, file=click.format_filename(path), classes=answer.classes[:top]
            )


def _show(answers: Sequence[Answer], version: int, as_json: bool) -> None:
    """Prints the answers; ends the process where there is one missing.

    Args:
        answers: one for each file.
        version: that the server named before it answered.
        as_json: print one JSON document.
    """
    failed = [answer for answer in answers if answer.error]
    versions = sorted({answer.version for answer in answers if answer.version}) or [version]
    if len(versions) == 1:
        answers = [msgspec.structs.replace(answer, version=0) for answer in answers]
    if as_json:
        # A version that is published meanwhile may answer for some of many images.
        one = versions[0] if len(versions) == 1 else None
        print(msgspec.json.encode({"version": one, "images": answers}).decode())
    else:
        _print_table(answers)
        for answer in failed:
            print(f"{answer.file}: {answer.error}", file=sys.stderr)
        done = len(answers) - len(failed)
        named = " and ".join(map(str, versions))
        by = f"version {named}" if len(versions) == 1 else f"versions {named}"
        print(f"{done} of {len(answers)} classified by {by}.")
    if failed:
        sys.exit(2)


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
