"""Commands around drops: `drop`, `drops`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from graftline.components.ingest.spans import SPLITS, Span, Summary, list_spans
from graftline.pipeline import run_record
from graftline.pipeline.beam.check import check_beam
from graftline.pipeline.beam.failures import explained
from graftline.pipeline.beam.options import beam_options
from graftline.pipeline.beam.workers import preload
from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.past_runs import ran_on
from graftline.pipeline.project import Project
from graftline.serving.errors import Rejected

if TYPE_CHECKING:
    from rich.table import Table

# What fits on a screen; --json has everything.
_MOST_SPANS = 5
_MOST_CLASSES = 40


@project_command("drop")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--span", type=click.IntRange(min=1), help="Number of the span. Default: the next.")
@click.option("--version", type=click.IntRange(min=1), help="Replaces a span: its next version.")
def drop(
    project: Project, as_json: bool, source: Path, span: int | None, version: int | None
) -> None:
    """Take labelled images in: a folder per class, a manifest, or TFRecords."""
    from graftline.components.ingest import sources
    from graftline.pipeline.console import Console
    from graftline.pipeline.notify.tell import tell_rejected
    from graftline.schemas import curated

    classes = curated.classes(curated.read(project.schema))
    sources.detect(source.resolve())
    project.runs.mkdir(parents=True, exist_ok=True)
    with Console(project.runs / "drops.log", quiet=as_json) as console:
        console.progress("loading TensorFlow and Beam")
        beam = project.config.beam
        preload(beam, ["drop"])
        from graftline.components.ingest.drop import drop as take_in

        check_beam(beam, [project.spans], stages=["drop"], sources=[source.resolve()])
        try:
            with explained(beam, "drop", afterwards="Nothing was taken in: drop again then."):
                taken = take_in(
                    source,
                    project.spans,
                    project.quarantine,
                    project.config.drop,
                    classes,
                    span=span,
                    version=version,
                    beam_options=beam_options(beam, "drop"),
                    ran_on=ran_on(project.config)["drop"],
                )
        except Rejected as error:
            tell_rejected(project, source, str(error))
            raise
    summary = taken.summary
    if as_json:
        print(json.dumps(_as_data(taken, None, None), indent=2, ensure_ascii=False))
        return
    _print_summary(taken, summary, project)


@project_command("drops")
def drops(project: Project, as_json: bool) -> None:
    """List the spans: images per split and class, and by which runs they were trained."""
    spans = list_spans(project.spans)
    trained, refused = _trained(project), _refused(project)
    if as_json:
        rows = [
            _as_data(span, trained.get(key), refused.get(key))
            for span in spans
            for key in [(span.number, span.version)]
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not spans:
        click.echo("No span yet. Bring images: graftline drop SOURCE")
        return
    from rich.console import Console as Screen
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("span", "version", "train", "eval", "test", "quarantined", "taken in", "trained"):
        table.add_column(name, justify="right" if name in ("train", "eval", "test") else "left")
    for span in spans:
        key, summary = (span.number, span.version), span.summary
        split = summary.per_split
        table.add_row(
            str(span.number),
            str(span.version),
            *(str(split[name]) for name in ("train", "eval", "test")),
            str(sum(summary.quarantined.values())),
            summary.created[:16].replace("T", " "),
            trained.get(key) or refused.get(key) or "not yet",
        )
    Screen().print(table)
    Screen().print(_classes(spans))
    click.echo(_next_step(spans, trained, refused))


_Fates = Mapping[tuple[int, int], str]


def _next_step(spans: Sequence[Span], trained: _Fates, refused: _Fates) -> str:
    newest = {span.number: (span.number, span.version) for span in spans}
    open_spans = [key for key in newest.values() if key not in trained]
    if any(key not in refused for key in open_spans):
        return "Next: graftline run"
    if open_spans:
        return "What was refused is told, with what to do, by: graftline status"
    return "All are trained. Next: graftline drop SOURCE"


def _classes(spans: Sequence[Span]) -> Table:
    """Images per class, in each of the newest spans: to train / eval / test."""
    from rich.markup import escape
    from rich.table import Table

    newest = list({span.number: span for span in spans}.values())
    shown = newest[-_MOST_SPANS:]
    totals: Counter[str] = Counter()
    for span in newest:
        totals.update(span.summary.per_class)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class")
    for span in shown:
        table.add_column(f"span {span.number}", justify="right")
    table.add_column("all spans", justify="right")
    for label, total in totals.most_common(_MOST_CLASSES):
        counts = (
            " / ".join(str(span.summary.counts.get(name, {}).get(label, 0)) for name in SPLITS)
            for span in shown
        )
        table.add_row(escape(label), *counts, str(total))
    left_out = []
    if len(totals) > _MOST_CLASSES:
        left_out.append(f"{len(totals) - _MOST_CLASSES} smaller classes")
    if len(newest) > _MOST_SPANS:
        left_out.append(f"{len(newest) - _MOST_SPANS} earlier spans")
    also = f"; --json has {' and '.join(left_out)}, too" if left_out else ""
    table.caption = f"{' / '.join(SPLITS)}{also}"
    table.caption_justify = "left"
    return table


def _trained(project: Project) -> dict[tuple[int, int], str]:
    """By which run each span was trained last, and as which version that was published."""
    found: dict[tuple[int, int], str] = {}
    for record in run_record.records(project.runs):
        if record.state == run_record.PUBLISHED:
            for entry in (record.target, *record.window):
                told = f"{record.run_id}, version {record.published_version}"
                found.setdefault((entry.span, entry.version), told)
    return found


def _refused(project: Project) -> dict[tuple[int, int], str]:
    """Which run refused a span, or the candidate that was trained on it, last."""
    found: dict[tuple[int, int], str] = {}
    for record in run_record.records(project.runs):
        for entry in record.refused_spans:
            told = f"{record.run_id}, refused by the data gate"
            found.setdefault((entry.span, entry.version), told)
        if record.state == run_record.REFUSED and record.refused_by in ("model", "probe"):
            told = f"{record.run_id}, refused by the {record.refuser}"
            found.setdefault((record.span, record.version), told)
    return found


def _as_data(span: Span, trained: str | None, refused: str | None) -> dict[str, object]:
    return {
        "span": span.number,
        "version": span.version,
        "path": str(span.path),
        "trained": trained,
        "refused": refused,
        **msgspec.to_builtins(span.summary),
    }


def _print_summary(span: Span, summary: Summary, project: Project) -> None:
    from rich.console import Console as Screen
    from rich.markup import escape
    from rich.table import Table

    screen = Screen()
    split = summary.per_split
    click.echo(
        f"Span {span.number} version {span.version}: {summary.images} images taken in, "
        f"{split['train']} to train, {split['eval']} to stop by, {split['test']} to test with."
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class")
    for name in split:
        table.add_column(name, justify="right")
    for label in summary.per_class:
        counts = (str(summary.counts.get(name, {}).get(label, 0)) for name in split)
        table.add_row(escape(label), *counts)
    screen.print(table)
    if summary.quarantined:
        folder = project.quarantine / f"span-{span.number}" / f"version-{span.version}"
        aside = Table(box=None, header_style="bold", pad_edge=False)
        aside.add_column("quarantined")
        aside.add_column("files", justify="right")
        for reason, count in summary.quarantined.items():
            aside.add_row(reason, str(count))
        screen.print(aside)
        click.echo(f"Each file with its reason: {folder / 'quarantine.jsonl'}")
    for warning in summary.warnings:
        click.secho(f"Note: {warning}", fg="yellow" if sys.stdout.isatty() else None)
    click.echo(f"Next: graftline run --span {span.number}")
