"""`runs`: all runs in a table, or some of them side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.comparison import (
    ComparedRun,
    compared_runs,
    differences,
    find_runs,
)
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import PUBLISHED, REFUSED

_MOST = 30
_MOST_DIFFERENCES = 3


@project_command("runs")
@click.argument("names", nargs=-1, metavar="[RUN]...")
@click.option("--all", "all_runs", is_flag=True, help=f"Show more than the {_MOST} newest.")
def runs(project: Project, as_json: bool, names: tuple[str, ...], all_runs: bool) -> None:
    """List the runs and what each changed, or compare those that are named."""
    found = find_runs(project, names) if names else list(compared_runs(project))
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(found), indent=2, ensure_ascii=False))
    elif not found:
        click.echo("No run yet. Start one with `graftline run`.")
    elif names:
        _compare(found)
    else:
        _list(found, None if all_runs else _MOST)


def _list(found: Sequence[ComparedRun], most: int | None) -> None:
    from rich.console import Console as Screen
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("run", "started", "spans", "ended"):
        table.add_column(name, no_wrap=True)
    for name in ("accuracy", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = found[:most]
    for run in shown:
        record = run.record
        table.add_row(
            record.run_id,
            record.started[:16].replace("T", " "),
            _spans(run),
            _ended(run),
            "" if run.accuracy is None else f"{run.accuracy:.3f}",
            f"{record.seconds:.0f}",
        )
    if len(shown) < len(found):
        table.caption = f"{len(found) - len(shown)} earlier runs: --all"
    Screen().print(table)
    for run, before in zip(shown, found[1:], strict=False):
        if changed := _changed(before.configuration, run.configuration):
            click.echo(f"{run.record.run_id} changed {changed}")
    if len(found) > 1:
        click.echo(
            f"Side by side: graftline runs {found[1].record.run_id} {shown[0].record.run_id}"
        )


def _compare(found: Sequence[ComparedRun]) -> None:
    from rich.console import Console as Screen
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for run in found:
        table.add_column(run.record.run_id, justify="right")

    def row(name: str, values: Sequence[object]) -> None:
        table.add_row(escape(name), *(escape(_text(value)) for value in values))

    row("started", [run.record.started[:16].replace("T", " ") for run in found])
    row("ended", [_ended(run) for run in found])
    row("spans", [_spans(run) for run in found])
    table.add_section()
    for name in dict.fromkeys(name for run in found for name in run.measures):
        row(name, [run.measures.get(name) for run in found])
    table.add_section()
    row("seconds", [round(run.record.seconds) for run in found])
    for node in dict.fromkeys(node.id for run in found for node in run.record.nodes):
        seconds = ({n.id: n.seconds for n in run.record.nodes}.get(node) for run in found)
        row(f"  {node}", [None if s is None else round(s, 1) for s in seconds])
    table.add_section()
    for name in dict.fromkeys(p.name for run in found if run.training for p in run.training.phases):
        row(f"epochs of {name}", [_epochs(run, name) for run in found])
    table.add_section()
    first = found[0].configuration
    changed = dict.fromkeys(
        key for run in found[1:] for key in differences(first, run.configuration)
    )
    for key in changed:
        row(key, [run.configuration.get(key) for run in found])
    Screen().print(table)
    if not changed and len(found) > 1:
        click.echo("Their configurations are the same.")


def _spans(run: ComparedRun) -> str:
    numbers = [entry.span for entry in run.record.window] or [run.record.span]
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _ended(run: ComparedRun) -> str:
    record = run.record
    if record.state == PUBLISHED:
        return f"version {record.published_version}"
    return f"refused, {record.refuser}" if record.state == REFUSED else record.state


def _epochs(run: ComparedRun, phase: str) -> int | None:
    phases = run.training.phases if run.training else ()
    return next((len(one.epochs) for one in phases if one.name == phase), None)


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    found = differences(before, now)
    shown = [f"{key}={_text(value)}" for key, (_, value) in list(found.items())[:_MOST_DIFFERENCES]]
    if len(found) > len(shown):
        shown.append(f"and {len(found) - len(shown)} more")
    return ", ".join(shown)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
