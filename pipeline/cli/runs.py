"""Commands around runs: `run`, `tune`, `resume`, `status`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
import msgspec

from graftline.pipeline import run_record, tuned
from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.config import load_config
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError


@project_command("run")
@click.option("--span", type=click.IntRange(min=1), help="Number of the span. Default: the latest.")
@click.option("--force", is_flag=True, help="Train again, taking nothing from the cache.")
@click.option("--like", metavar="RUN", help="Train again as that run did: span and configuration.")
@click.option("--accept-anomalies", is_flag=True, help="Let the span pass the data gate.")
@click.option("--bless", is_flag=True, help="Let the candidate pass the model gate.")
@click.option("--reason", default="", help="Why an override is right; recorded.")
def run(project: Project, as_json: bool, like: str | None, **request: object) -> None:
    """Check, train, gate and publish: from a span to the next version."""
    from graftline.pipeline import execution, retrain

    overrides = click.get_current_context().meta["overrides"]
    if overrides and request["bless"] and not request["force"]:
        raise UserError(
            f"A refused candidate is published as it was made, so {' '.join(overrides)} cannot be "
            "given. Train another one with `graftline run --force`."
        )
    if like:
        if request["span"]:
            raise UserError(f"--like {like} names a span already: leave --span out.")
        project, span = _as_it_was(project, like, overrides)
        request |= {"span": span, "force": True}
    known = {record.run_id for record in run_record.records(project.runs)}
    asked = msgspec.convert(request, execution.Request)
    record = retrain.run(project, asked, retrain.Manner(quiet=as_json))
    if record.run_id in known and not as_json:
        number = record.published_version
        states = {v.number: v.state for v in BasePath(project.base_path).versions()}
        state = states.get(number or 0, "deleted")
        now = f", which is {state} now" if state in ("withdrawn", "deleted") else ""
        click.echo(
            f"{record.target} was trained by {record.run_id} and published as version {number}"
            f"{now}: nothing to do. Train it again with --force, or bring new images with "
            "`graftline drop SOURCE`."
        )
        return
    _end(project, record, as_json)


@project_command("tune")
@click.option("--span", type=click.IntRange(min=1), help="Number of the span. Default: the latest.")
@click.option("--force", is_flag=True, help="Try again, taking nothing from the cache.")
def tune(project: Project, as_json: bool, **request: object) -> None:
    """Try values for the trainer; all later runs train with the best.

    What is tried for which key stands in the section tuner of the configuration.
    """
    from graftline.pipeline import execution, retrain

    asked = msgspec.convert({**request, "tune": True}, execution.Request)
    _end(project, retrain.run(project, asked, retrain.Manner(quiet=as_json)), as_json)


@project_command("resume")
def resume(project: Project, as_json: bool) -> None:
    """Go on with the run that crashed, was killed or not served, from the node that failed."""
    overrides = click.get_current_context().meta["overrides"]
    if overrides:
        raise UserError(
            f"A resumed run keeps the configuration that it began with, so {' '.join(overrides)} "
            "cannot be given. Start anew with `graftline run` to run with another."
        )
    from graftline.pipeline import retrain

    _end(project, retrain.resume(project, retrain.Manner(quiet=as_json)), as_json)


@project_command("status")
def status(project: Project, as_json: bool) -> None:
    """Show the last run: its nodes, their times, how it ended."""
    record = next(run_record.records(project.runs), None)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(record), indent=2))
        return
    if record is None:
        click.echo("No run yet. Start one with `graftline run`.")
        return
    spans = ", ".join(str(entry.span) for entry in record.window) or "not decided yet"
    click.echo(f"{record.run_id}: {record.state}    {record.target}    window: {spans}")
    for node in record.nodes:
        note = "" if node.state == "done" else f"  ({node.state})"
        click.echo(f"  {node.id:<20}{node.seconds:8.1f} s{note}")
    if record.error:
        click.echo(f"  {record.error}")
    click.echo(f"  log: {project.runs / record.run_id / run_record.LOG_NAME}")
    click.echo(_next_step(record))


def _next_step(record: RunRecord) -> str:
    if record.state == run_record.PUBLISHED:
        return f"Version {record.published_version} is published. Try it: graftline predict IMAGE"
    if record.state == run_record.TUNED:
        return f"Its values are in {tuned.FILE_NAME}. Train with them: graftline run"
    if record.state == run_record.RUNNING:
        return "It is under way; its log grows."
    if record.state == run_record.REFUSED:
        return (
            f"The {record.refuser} said no; the verdict, and what to do, is at the end of the log."
        )
    return "Go on from where it stopped: graftline resume"


def _as_it_was(project: Project, name: str, overrides: Sequence[str]) -> tuple[Project, int]:
    """The project as an earlier run was configured, overrides on top, and the run's span.

    Raises:
        UserError: there is no such run.
    """
    records = {record.run_id: record for record in run_record.records(project.runs)}
    if name not in records:
        raise UserError(
            f"There is no run called {name!r}. There are: {', '.join(records) or 'none yet'}."
        )
    config = load_config(project.runs / name / "config.yaml", overrides)
    return Project(project.root, config), records[name].span


def _end(project: Project, record: RunRecord, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(record), indent=2))
    elif record.state == run_record.TUNED:
        path = project.root / tuned.FILE_NAME
        click.echo(
            f"All runs from now on have {tuned.told(tuned.read_tuned(project.root))} ({path}; "
            f"{record.seconds:.0f} s in nodes). Next: graftline run, with --force where the span "
            "is trained already"
        )
    else:
        # As it was configured when the run began.
        begun = Project(project.root, load_config(project.runs / record.run_id / "config.yaml"))
        said = (
            f"Version {record.published_version} is published in {begun.base_path} "
            f"({record.seconds:.0f} s in nodes)."
        )
        held = BasePath(begun.base_path).in_service()
        if held == record.published_version:
            click.echo(f"{said} Try it: graftline predict IMAGE")
        else:
            click.echo(
                f"{said} Servers are told to stay at version {held}: graftline promote "
                f"{record.published_version} puts it in service"
            )
