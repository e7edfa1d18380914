"""`graftline predict-batch`: tables of predictions for any number of images."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import msgspec

from graftline.components.batch_prediction import output as outputs
from graftline.components.batch_prediction.output import Summary
from graftline.components.batch_prediction.tables import SUFFIXES
from graftline.components.ingest import sources
from graftline.pipeline.beam.check import check_beam
from graftline.pipeline.beam.failures import explained
from graftline.pipeline.beam.options import beam_options
from graftline.pipeline.beam.workers import preload
from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.console import Console
from graftline.pipeline.project import Project
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError
from graftline.serving.image_check import Limits

_AFTERWARDS = "Parts that are finished are kept: the same command goes on with the others."


@project_command("predict-batch")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New or empty; or one to go on with.",
)
@click.option("--version", type=int, metavar="V", help="Default: the version in service.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(SUFFIXES)),
    default="jsonl",
    show_default=True,
    help="Of the tables.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Images that the device is given at once. Default: found while it works.",
)
@click.option(
    "--part-size",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Images per file of the tables; of compressed TFRecords each file becomes one.",
)
def predict_batch(
    project: Project,
    as_json: bool,
    source: Path,
    output: Path,
    version: int | None,
    kind: str,
    batch_size: int | None,
    part_size: int,
) -> None:
    """Classify a folder, a manifest or TFRecords, of any size, into tables.

    Run again, it goes on with what is missing.
    """
    source, output = source.resolve(), output.resolve()
    found = sources.detect_unlabelled(source)
    feature = project.config.drop.features.image if found.kind == sources.TFRECORDS else ""
    limits = msgspec.convert(project.config.drop, Limits, from_attributes=True)
    _refuse_inside(source, output)
    began = time.monotonic()
    versions = BasePath(project.base_path)
    # A mistake in the version leaves no folder behind.
    folder = None if outputs.is_begun(output) else versions.folder(version)
    with outputs.hold(output) as held:
        plan = held.check(source, version, kind, feature, limits)
        summary = held.summary() if plan else None
        if plan and summary:
            held.check_complete(plan)
            _show(summary, output, as_json, None)
            return
        if plan:
            model, number = held.model, plan.version
        else:
            model = folder or versions.folder(version)
            number = int(model.name)
        log = held.work / "log.txt"
        with Console(log, quiet=as_json) as console:
            console.line(f"version {number} predicts {source}    log: {log}")
            console.progress("loading TensorFlow and Beam")
            beam = project.config.beam
            preload(beam, ["predict_batch"])
            from graftline.components.batch_prediction.predict import Request, predict

            request = Request(
                source=source,
                version=number,
                model=model,
                format=kind,
                feature=feature,
                limits=limits,
                part_size=part_size,
                batch_size=batch_size,
                devices=project.config.trainer.devices,
            )
            check_beam(beam, [held.folder], stages=["predict_batch"], sources=[source])
            with explained(beam, "predict_batch", afterwards=_AFTERWARDS):
                summary = predict(request, held, beam_options(beam, "predict_batch"))
    _show(summary, output, as_json, time.monotonic() - began)


def _refuse_inside(source: Path, output: Path) -> None:
    if source == output or (source.is_dir() and source in output.parents):
        raise UserError(
            f"The output folder {output} lies inside the source {source}, of which it would become "
            "a part. Name a folder elsewhere."
        )


def _show(summary: Summary, output: Path, as_json: bool, seconds: float | None) -> None:
    """Prints what came out; ends the process where nothing could be predicted."""
    bad = sum(summary.bad.values())
    if as_json:
        print(msgspec.json.encode(summary).decode())
    else:
        _print(summary, output, bad, seconds)
    if bad and not summary.images:
        sys.exit(2)


def _print(summary: Summary, output: Path, bad: int, seconds: float | None) -> None:
    from rich.console import Console as Screen
    from rich.table import Table

    table = Table("predicted as", box=None, header_style="bold", pad_edge=False)
    table.add_column("images", justify="right")
    for name, count in summary.classes.items():
        table.add_row(name, str(count))
    for reason, count in summary.bad.items():
        table.add_row(f"none: {reason}", str(count))
    Screen(markup=False, emoji=False, highlight=False).print(table)
    took = f" in {seconds:.0f} s" if seconds is not None else ", complete since " + summary.ended
    click.echo(
        f"{summary.images} of {summary.images + bad} predicted by version {summary.version}{took}."
    )
    suffix = SUFFIXES[summary.format]
    click.echo(f"Predictions: {output / f'predictions-*{suffix}'}")
    if bad:
        click.echo(f"Those without, with reasons: {output / f'bad-*{suffix}'}")
