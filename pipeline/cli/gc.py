"""`graftline gc`: removes what earlier runs have left that nothing needs any more."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from graftline.pipeline import run_record
from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.project import Project
from graftline.serving.errors import UserError

if TYPE_CHECKING:
    from graftline.pipeline.garbage import Garbage


@project_command("gc")
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
def gc(project: Project, as_json: bool, dry_run: bool) -> None:
    """Remove what earlier runs left and nothing needs: old outputs, features, checkpoints.

    Spans, versions, withdrawn ones too, what tells how they came about and what the window needs
    stay. It does not run beside a run.
    """
    with run_record.lock(project.runs):
        # Not before it is known that nothing is under way.
        from graftline.pipeline import garbage

        stores = garbage.open_stores(project)
        found = garbage.find(project, stores)
        if not dry_run:
            try:
                garbage.remove(project, stores, found)
            except OSError as error:
                raise UserError(
                    f"{error.filename} cannot be removed: {error.strerror}. What was removed so "
                    "far is gone for good and recorded; make the rest writable and try again."
                ) from error
    _show(found, as_json, dry_run)


def _show(found: Sequence[Garbage], as_json: bool, dry_run: bool) -> None:
    count: Counter[str] = Counter(one.kind for one in found)
    freed: Counter[str] = Counter()
    for one in found:
        freed[one.kind] += one.bytes
    total = sum(freed.values())
    if as_json:
        kinds = {kind: {"items": count[kind], "bytes": freed[kind]} for kind in count}
        print(json.dumps({"dry_run": dry_run, "bytes": total, "kinds": kinds}, indent=2))
        return
    if not found:
        click.echo("Nothing to remove: all that is there is needed.")
        return
    from rich.console import Console as Screen
    from rich.table import Table

    table = Table("", box=None, header_style="bold", pad_edge=False)
    table.add_column("folders", justify="right")
    table.add_column("MB", justify="right")
    for kind in sorted(count, key=lambda kind: -freed[kind]):
        table.add_row(kind, str(count[kind]), f"{freed[kind] / 1e6:.1f}")
    Screen().print(table)
    if dry_run:
        click.echo(f"{total / 1e6:.1f} MB would be freed; nothing is removed yet: graftline gc")
    else:
        click.echo(f"{total / 1e6:.1f} MB freed.")
