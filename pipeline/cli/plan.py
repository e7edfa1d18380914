"""`graftline plan`: what a drop of so many images will cost."""

from __future__ import annotations

import re

import click
import msgspec

from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.forecast import Forecast, forecast
from graftline.pipeline.project import Project
from graftline.serving.errors import UserError

_UNITS = {"": 1, "k": 1e3, "M": 1e6}


@project_command("plan")
@click.option(
    "--images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images of the drop. Default: as many as the newest one had.",
)
@click.option(
    "--size",
    metavar="S",
    help="Mean bytes of an image, e.g. 120k. Default: as in the drops so far.",
)
def plan(project: Project, as_json: bool, images: int | None, size: str | None) -> None:
    """Tell beforehand what a drop will cost: time, memory, disk and, given prices, money.

    Learnt from this project's runs on this machine.
    """
    found = forecast(project, images, _bytes(size) if size else None)
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        _print(found)


def _bytes(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kM]?)", text)
    if not match or not float(match[1]):
        raise UserError(f"--size {text!r} is no size: give bytes, or 120k, or 1.5M.")
    return float(match[1]) * _UNITS[match[2]]


def _print(found: Forecast) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", box=None, header_style="bold", pad_edge=False)
    with_money = bool(found.money or found.money_per_month)
    for name in ("time", "from", "to", "memory", "disk", *(("money",) if with_money else ())):
        table.add_column(name, justify="right")
    for stage in found.stages:
        if stage.seconds_high < 0.5 and stage.disk_bytes < 1e5:
            continue
        money = (f"{stage.money:.2f}",) if with_money else ()
        table.add_row(
            stage.name,
            _time(stage.seconds),
            _time(stage.seconds_low),
            _time(stage.seconds_high),
            f"{stage.peak_mb:,.0f} MB" if stage.peak_mb else "",
            _disk(stage.disk_bytes),
            *money,
        )
    money = (f"{found.money:.2f}",) if with_money else ()
    table.add_section()
    table.add_row(
        "all",
        _time(found.seconds),
        _time(found.seconds_low),
        _time(found.seconds_high),
        f"{found.peak_mb:,.0f} MB" if found.peak_mb else "",
        _disk(found.disk_bytes),
        *money,
    )
    click.echo(
        f"A drop of {found.images:,} images of {found.bytes_per_image / 1e3:,.0f} kB, and the run "
        f"on it, from {found.runs} run{'s' if found.runs > 1 else ''} so far:"
    )
    Console(markup=False, emoji=False, highlight=False).print(table)
    if with_money:
        click.echo(
            f"{found.money:.2f} {found.currency} for the machines, {found.money_per_month:.2f} "
            f"{found.currency} a month for the disk."
        )
    for note in found.notes:
        click.echo(f"Note: {note}")
    for advice in found.advice:
        click.echo(advice)
    if not found.advice:
        click.echo("Memory and disk of this machine do.")


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _disk(size: float) -> str:
    if size < 1e5:
        return ""
    return f"{size / 1e6:,.0f} MB" if size < 1e10 else f"{size / 1e9:,.0f} GB"
