"""Commands around runs on Kubeflow Pipelines: `submit`, `schedule`, `status`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.project import Project
from graftline.serving.errors import UserError

if TYPE_CHECKING:
    from graftline.kubeflow.api import Api, Message
    from graftline.kubeflow.package import Package

_MOST_RUNS = 10
# Where `graftline kubeflow compile` puts it.
_PACKAGE_NAME = "kubeflow.yaml"
_package = click.option(
    "--package",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The compiled package. Default: where `graftline kubeflow compile` puts it.",
)


@project_command("submit")
@_package
@click.option("--newest", is_flag=True, help="Run the version uploaded last, whoever did it.")
@click.option("--wait", is_flag=True, help="Follow the run; fail unless it succeeds.")
@click.option("--name", default="", help="Of the run: one that is there already is not run again.")
@click.option("--span", type=click.IntRange(min=1), help="Default: the next that is untrained.")
@click.option("--window", type=click.IntRange(min=1), help="Train on so many newest spans.")
@click.option("--force", is_flag=True, help="Train again; without --span, the newest span.")
@click.option("--accept-anomalies", is_flag=True, help="Let the span pass the data gate.")
@click.option("--bless", is_flag=True, help="Let the candidate pass the model gate.")
@click.option("--reason", default="", help="Why an override is right; recorded.")
def submit(
    project: Project,
    as_json: bool,
    package: Path | None,
    newest: bool,
    wait: bool,
    name: str,
    **asked: Any,
) -> None:
    """Run the pipeline on Kubeflow Pipelines.

    With --wait the exit code is that of the run: 0 succeeded, 1 failed, 3 a gate said no.
    """
    from graftline.kubeflow import submit as submission
    from graftline.kubeflow.package import Package

    if package and newest:
        raise UserError("--newest runs what was uploaded before: leave --package out.")
    overrides = click.get_current_context().meta["overrides"]
    api = _api(project)
    found = (
        submission.newest(api, project)
        if newest
        else Package.read(package or project.root / _PACKAGE_NAME)
    )
    parameters = {key: value for key, value in asked.items() if value}
    if overrides:
        parameters["overrides"] = json.dumps(overrides)
    say = _say(as_json)
    run = submission.submit(api, project, found, parameters, say, name)
    if not wait:
        if as_json:
            click.echo(json.dumps(_run(api, run, found), indent=2))
        else:
            click.echo("Follow it: graftline kubeflow status")
        return
    run = submission.follow(api, str(run["run_id"]), found, say)
    try:
        said = submission.conclude(api, project, run, found)
    except submission.Failed as failure:
        if as_json:
            click.echo(json.dumps({**_run(api, run, found), "error": str(failure), "exit_code": 1}))
        else:
            click.echo(str(failure), err=True)
        click.get_current_context().exit(1)
    click.echo(json.dumps(_run(api, run, found), indent=2) if as_json else said)


@project_command("schedule")
@click.argument("cron", required=False)
@_package
@click.option("--window", type=click.IntRange(min=1), help="Train on so many newest spans.")
@click.option("--list", "listing", is_flag=True, help="Show the schedule.")
@click.option("--pause", is_flag=True, help="Start no run until it is resumed.")
@click.option("--resume", is_flag=True, help="Start runs again.")
@click.option("--delete", is_flag=True, help="Delete the schedule; its runs stay.")
def schedule(
    project: Project,
    as_json: bool,
    cron: str | None,
    package: Path | None,
    window: int | None,
    **actions: bool,
) -> None:
    """Train at fixed times: CRON has six fields, seconds first, "0 0 2 * * *" every night at two.

    Each run takes the next span that is complete and untrained, with the newest version of the
    pipeline. One run at a time; what was missed is not caught up on.
    """
    chosen = [name for name, is_set in actions.items() if is_set]
    if len(chosen) + (cron is not None) != 1:
        raise UserError(
            'Give one of: a time such as "0 0 2 * * *", --list, --pause, --resume, --delete.'
        )
    if cron is not None:
        _put_schedule(project, as_json, cron, package, window)
        return
    from graftline.kubeflow import schedule as schedules
    from graftline.kubeflow.submit import experiment_name

    api = _api(project)
    experiment = api.find_experiment(experiment_name(project))
    found = schedules.find(api, project, experiment) if experiment else []
    if not found and not actions["listing"]:
        raise UserError('There is no schedule. Make one: graftline kubeflow schedule "0 0 2 * * *"')
    for one in found:
        if actions["pause"]:
            api.disable_schedule(one.id)
        elif actions["resume"]:
            api.enable_schedule(one.id)
        elif actions["delete"]:
            api.delete_schedule(one.id)
    if not actions["listing"]:
        click.echo(
            json.dumps({"schedules": [one.id for one in found]})
            if as_json
            else {"pause": "Paused.", "resume": "It starts runs again.", "delete": "Deleted."}[
                chosen[0]
            ]
        )
        return
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(found), indent=2))
        return
    for one in found:
        click.echo(_told(one))
    if not found:
        click.echo('No schedule. Make one: graftline kubeflow schedule "0 0 2 * * *"')


def _put_schedule(
    project: Project, as_json: bool, cron: str, package: Path | None, window: int | None
) -> None:
    from graftline.kubeflow import cron as times
    from graftline.kubeflow import schedule as schedules
    from graftline.kubeflow import submit as submission
    from graftline.kubeflow.package import Package

    line = times.check(cron)
    overrides = click.get_current_context().meta["overrides"]
    parameters: dict[str, Any] = {"window": window} if window else {}
    if overrides:
        parameters["overrides"] = json.dumps(overrides)
    found = Package.read(package or project.root / _PACKAGE_NAME)
    parameters = found.check(parameters)
    api = _api(project)
    where = submission.target(api, project)
    submission.upload(api, where.pipeline_id, found)
    put, is_new = schedules.put(
        api, project, where.experiment_id, where.pipeline_id, line, parameters
    )
    if as_json:
        click.echo(json.dumps({**msgspec.to_builtins(put), "changed": is_new}, indent=2))
        return
    click.echo(f"{'Scheduled' if is_new else 'Nothing changed'}: {_told(put)}")
    if put.version:
        click.echo(
            "This backend keeps the version of now; `graftline kubeflow submit` and `schedule` "
            "replace it when there is a new one. From Kubeflow Pipelines 2.5 on it is always the "
            "newest."
        )


def _told(one: Any) -> str:
    parameters = "".join(f", {name}={value}" for name, value in one.parameters.items())
    version = "the newest version" if not one.version else f"version {one.version}"
    paused = "" if one.enabled else ", PAUSED"
    return (
        f'"{one.cron}" by the clock of the cluster (UTC unless it is set otherwise), {version}'
        f"{parameters}{paused}"
    )


@project_command("status")
@click.argument("run", required=False)
def status(project: Project, as_json: bool, run: str | None) -> None:
    """Show the last runs on Kubeflow Pipelines, or the steps of RUN, by its id."""
    from graftline.kubeflow.api import NotThereError
    from graftline.kubeflow.package import Package
    from graftline.kubeflow.submit import experiment_name, steps

    api, path = _api(project), project.root / _PACKAGE_NAME
    package = Package.read(path) if path.is_file() else None
    if run:
        try:
            found = api.run(run)
        except NotThereError:
            raise UserError(f"There is no run {run} at {api.address}.") from None
        runs = [found]
    else:
        experiment = api.find_experiment(experiment_name(project))
        listed = api.runs(experiment) if experiment else iter(())
        runs = [one for _, one in zip(range(_MOST_RUNS), listed, strict=False)]
    if as_json:
        click.echo(json.dumps([_run(api, one, package) for one in runs], indent=2))
        return
    if not runs:
        click.echo("No run yet. Start one: graftline kubeflow submit")
        return
    for one in runs:
        created = str(one.get("created_at", ""))[:16].replace("T", " ")
        click.echo(f"{created}  {one.get('state', 'PENDING'):<10} {one.get('display_name', '')}")
    for name, state in steps(runs[0], package):
        click.echo(f"  {name:<24}{state.lower()}")
    click.echo(api.run_page(str(runs[0]["run_id"])))


def _api(project: Project) -> Api:
    from graftline.kubeflow.api import Api

    return Api(project.config.kubeflow.api, project.root)


def _run(api: Api, run: Message, package: Package | None) -> dict[str, Any]:
    from graftline.kubeflow.submit import steps

    return {
        "run_id": run["run_id"],
        "name": run.get("display_name", ""),
        "state": run.get("state", ""),
        "created": run.get("created_at", ""),
        "steps": [{"step": name, "state": state} for name, state in steps(run, package)],
        "page": api.run_page(str(run["run_id"])),
    }


def _say(as_json: bool) -> Callable[[str], None]:
    return lambda line: click.echo(line, err=as_json)
