"""`graftline watch`: trains at every data drop."""

from __future__ import annotations

import datetime
import json
import signal
from typing import TYPE_CHECKING

import click
import msgspec

from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.project import Project
from graftline.serving.errors import UserError

if TYPE_CHECKING:
    from graftline.pipeline.watch.ledger import Ledger

_LOCK_NAME = ".watch.lock"


@project_command("watch")
@click.option("--once", is_flag=True, help="Take what is complete now, then end.")
@click.option("--submit", is_flag=True, help="Have Kubeflow Pipelines run it, not this machine.")
@click.option(
    "--again", metavar="DROP", multiple=True, help="Take this drop anew, however it ended."
)
@click.option("--list", "listing", is_flag=True, help="Only show what has become of every drop.")
def watch(
    project: Project, as_json: bool, once: bool, submit: bool, again: tuple[str, ...], listing: bool
) -> None:
    """Take in every complete drop, in order, and train on it.

    A drop is a folder in paths.drops, complete once its manifest is there and matches its files.
    With --once the exit code tells: 0 all trained, 1 a failure, 2 a drop that cannot be taken in,
    3 a gate said no.
    """
    from graftline.pipeline.watch.ledger import Ledger

    if listing:
        _show(Ledger(project.runs), as_json)
        return
    code = _watch(project, as_json, once=once, submit=submit, again=again)
    click.get_current_context().exit(code)


def _watch(
    project: Project, as_json: bool, *, once: bool, submit: bool, again: tuple[str, ...]
) -> int:
    import filelock

    from graftline.pipeline.watch.commands import Commands
    from graftline.pipeline.watch.ledger import Ledger
    from graftline.pipeline.watch.watcher import Watcher

    def say(drop: str, what: str) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        if as_json:
            click.echo(json.dumps({"time": now, "drop": drop, "event": what}, ensure_ascii=False))
        else:
            click.echo(f"{now} {f'{drop} ' if drop else ''}{what}")

    try:
        project.drops.mkdir(parents=True, exist_ok=True)
        project.runs.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(project.runs / _LOCK_NAME).acquire(timeout=0.5)
    except filelock.Timeout:
        raise UserError(
            f"Another `graftline watch` is at work in this project ({project.root}): one is enough."
        ) from None
    except OSError as error:
        raise UserError(
            f"{error.filename or project.drops} cannot be written: {error.strerror}. Set "
            "paths.drops and paths.runs to folders that this user may write."
        ) from error
    with lock:
        ledger = Ledger(project.runs)
        for name in again:
            if not ledger.forget(name):
                raise UserError(f"No drop called {name!r} was taken; see `graftline watch --list`.")
        commands = Commands(project, click.get_current_context().meta["overrides"])
        watcher = Watcher(project, commands, ledger, say, submit=submit)
        before = signal.signal(signal.SIGTERM, lambda number, frame: commands.stop())
        try:
            if once:
                return watcher.once()
            say("", f"watching {project.drops}; Ctrl-C or SIGTERM ends it")
            watcher.watch()
        finally:
            signal.signal(signal.SIGTERM, before)
        say("", "ended; a drop that was under way is taken up when watching begins again")
        return 0


def _show(ledger: Ledger, as_json: bool) -> None:
    entries = ledger.entries()
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(entries), indent=2, ensure_ascii=False))
        return
    if not entries:
        click.echo("No drop was taken yet. Put one into paths.drops, its manifest last.")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("drop", "span", "state", "failures", "since", ""):
        table.add_column(name)
    for entry in entries:
        table.add_row(
            escape(entry.name),
            str(entry.span or ""),
            entry.state,
            str(entry.failures or ""),
            entry.since[:16].replace("T", " "),
            escape(entry.note.partition("\n")[0]),
        )
    Console().print(table)
