"""Runs a package on Kubeflow Pipelines: uploads it as a version, starts a run, follows it.

The same package is the same version, and a run that goes by a name of the caller's is found again,
so that whoever submits twice, after a crash for one, does not train twice.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from graftline.kubeflow import schedule
from graftline.kubeflow.api import Api, Message, ThereAlreadyError, Unanswered
from graftline.kubeflow.package import Package
from graftline.pipeline import run_record
from graftline.pipeline.notify.notice import verdicts
from graftline.pipeline.project import Project
from graftline.serving.errors import Refused, UserError

SUCCEEDED = "SUCCEEDED"
# A run in one of these goes on.
_UNDER_WAY = ("", "RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "CANCELING", "PAUSED")
_NO_STEP = re.compile(r"|root|executor(\(\d+\))?|.*driver|condition-.*|exit-handler-.*")
# The step that ends a run which a gate stopped.
REFUSED_STEP = "refused"
_DESCRIPTION = "Trains, judges and publishes a classifier; made by graftline kubeflow compile."
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 20.0
_MOST_VERSIONS = 1000
_MOST_SILENCES = 15

Say = Callable[[str], None]


class Failed(Exception):
    """A run that came to another end than it should have; in words."""


class Target(msgspec.Struct, frozen=True):
    """Where a project's runs go.

    Attributes:
        pipeline_id: the pipeline that the packages are versions of.
        experiment_id: what groups the runs.
    """

    pipeline_id: str
    experiment_id: str


def target(api: Api, project: Project) -> Target:
    """The pipeline and the experiment of a project, made if need be; both go by the model's name.

    Raises:
        UserError: as `Api`.
    """
    name, group = project.config.model.name, experiment_name(project)
    pipeline = api.find_pipeline(name)
    if pipeline is None:
        try:
            pipeline = api.create_pipeline(name, _DESCRIPTION)
        except ThereAlreadyError:
            pipeline = api.find_pipeline(name)
    if pipeline is None:
        raise UserError(
            f"There is a pipeline {name!r} that this user may not see. Set kubeflow.api.namespace, "
            "or call the model otherwise (model.name)."
        )
    experiment = api.find_experiment(group)
    if experiment is None:
        try:
            experiment = api.create_experiment(group)
        except ThereAlreadyError:
            experiment = api.find_experiment(group)
    if experiment is None:
        raise UserError(
            f"The experiment {group!r} can be neither made nor found: it may be archived, or in "
            "another namespace (kubeflow.api.namespace). Name another in kubeflow.api.experiment."
        )
    return Target(str(pipeline["pipeline_id"]), experiment)


def experiment_name(project: Project) -> str:
    """What groups the runs of a project."""
    return project.config.kubeflow.api.experiment or project.config.model.name


def newest(api: Api, project: Project) -> Package:
    """The version of the project's pipeline that was uploaded last.

    Raises:
        UserError: there is none.
    """
    pipeline = api.find_pipeline(project.config.model.name)
    pipeline_id = str(pipeline["pipeline_id"]) if pipeline else ""
    version = next(api.versions(pipeline_id), None) if pipeline_id else None
    if version is None:
        raise UserError(
            f"No version of the pipeline {project.config.model.name!r} was uploaded yet. Do so: "
            "graftline kubeflow compile, then graftline kubeflow submit."
        )
    version = api.version(pipeline_id, str(version["pipeline_version_id"]))
    return Package.uploaded(
        str(version["pipeline_version_id"]),
        str(version.get("display_name") or version.get("name")),
        version.get("pipeline_spec") or {},
    )


def upload(api: Api, pipeline_id: str, package: Package) -> tuple[str, bool]:
    """Makes a package the newest version of its pipeline, where it is a file.

    Returns:
        the version's id, and whether it is new: the newest one may be this very package.
    """
    if package.path is None:
        return package.version_id, False
    last = next(api.versions(pipeline_id), None)
    if last and _revision(last) == package.revision:
        return str(last["pipeline_version_id"]), False
    # What was the newest once and is to be so again gets a name of its own.
    for number in range(1, _MOST_VERSIONS):
        name = package.revision + (f"-{number}" if number > 1 else "")
        try:
            made = api.upload_version(pipeline_id, name, package.path)
        except ThereAlreadyError:
            continue
        return str(made["pipeline_version_id"]), True
    raise UserError(f"{package.name} was uploaded {_MOST_VERSIONS} times already.")


def submit(
    api: Api,
    project: Project,
    package: Package,
    parameters: Mapping[str, Any],
    say: Say,
    name: str = "",
) -> Message:
    """Starts a run of a package, or finds the one of this name that is under way or has succeeded.

    Args:
        api: Kubeflow Pipelines.
        project: the project.
        package: what is run.
        parameters: of the run; those that the package has no default for.
        say: told what happens.
        name: of the run; empty: one is made up, and nothing is looked for.

    Raises:
        UserError: as `Api`, or a parameter is refused.
    """
    wanted = package.check(parameters)
    where = target(api, project)
    if name:
        for found in api.runs(where.experiment_id, name):
            if _state(found) in (*_UNDER_WAY, SUCCEEDED):
                say(f"The run {name} is there already: {_state(found) or 'PENDING'}")
                return found
    version_id, is_new = upload(api, where.pipeline_id, package)
    if is_new:
        say(f"Uploaded {package.name} as version {package.revision}")
    # Also where it was uploaded before: whoever did so may have been cut off after it.
    if schedule.renew(api, project, where.experiment_id, where.pipeline_id, version_id):
        say("The schedule was made anew with the newest version")
    scheduled = schedule.find(api, project, where.experiment_id)
    if scheduled and not any(one.enabled for one in scheduled):
        # By a person, or because replacing it was interrupted.
        say("Note: the schedule is paused. Resume it: graftline kubeflow schedule --resume")
    made = api.create_run(
        {
            "display_name": name or _name(project, wanted),
            "experiment_id": where.experiment_id,
            "service_account": project.config.kubeflow.api.service_account,
            "pipeline_version_reference": {
                "pipeline_id": where.pipeline_id,
                "pipeline_version_id": version_id,
            },
            "runtime_config": {"parameters": wanted},
        }
    )
    say(f"Started {made.get('display_name', '')}: {api.run_page(str(made['run_id']))}")
    return made


def follow(
    api: Api,
    run_id: str,
    package: Package,
    say: Say,
    pause: Callable[[float], None] = time.sleep,
) -> Message:
    """Waits for the end of a run, and tells of each of its steps as it ends.

    Args:
        api: Kubeflow Pipelines.
        run_id: the run.
        package: what it is a run of.
        say: told what happens.
        pause: waits so many seconds.

    Returns:
        the run.

    Raises:
        UserError: as `Api`; a server that is not there for some minutes is asked again.
        NotThereError: the run was deleted.
    """
    told: set[tuple[str, str]] = set()
    wait, silences = _FIRST_PAUSE, 0
    while True:
        try:
            run = api.run(run_id)
        except Unanswered as error:
            # The run goes on whether or not it can be seen from here.
            silences += 1
            if silences > _MOST_SILENCES:
                raise
            say(f"  (asking again: {error})")
            pause(_LONGEST_PAUSE)
            continue
        silences = 0
        for step in steps(run, package):
            if step not in told and step[1] not in _UNDER_WAY:
                told.add(step)
                say(f"  {step[0]:<24}{step[1].lower()}")
                wait = _FIRST_PAUSE
        if _state(run) not in _UNDER_WAY:
            return run
        pause(wait)
        wait = min(wait * 1.5, _LONGEST_PAUSE)


def steps(run: Message, package: Package | None) -> list[tuple[str, str]]:
    """Name and state of each step of a run so far, in the order in which they began.

    Beside the steps the API tells of drivers, branches and the pods of steps, by names like theirs.

    Args:
        run: the run.
        package: what it is a run of, which tells the steps from all else; None: guess.
    """
    details = (run.get("run_details") or {}).get("task_details") or []
    details = sorted(details, key=lambda one: str(one.get("start_time") or one.get("create_time")))
    found: dict[str, str] = {}
    for one in details:
        name, state = str(one.get("display_name", "")), str(one.get("state", ""))
        if package is not None:
            shown = package.steps.get(name) or (name if name in package.steps.values() else "")
        else:
            shown = "" if _NO_STEP.fullmatch(name) else name
        if shown and state != "SKIPPED":
            found[shown] = state
    return list(found.items())


def conclude(api: Api, project: Project, run: Message, package: Package) -> str:
    """What came of a run that is at its end.

    Args:
        api: Kubeflow Pipelines.
        project: the project; where its folder is the one that the steps write to, its record tells
            more than the API can.
        run: the run.
        package: what it is a run of.

    Returns:
        in words, that it succeeded.

    Raises:
        Refused: a gate said no; with the verdict where the record is at hand.
        Failed: it came to any other end than SUCCEEDED.
    """
    run_id, state = str(run["run_id"]), _state(run)
    page = api.run_page(run_id)
    record = _record(project, run_id)
    if record and record.state == run_record.REFUSED:
        found = verdicts(project.runs / record.run_id)
        said = [verdict for verdict in found if not verdict.passed]
        raise Refused(
            f"{record.error or 'A gate said no.'}\n{page}",
            msgspec.to_builtins(said[-1]) if said else None,
        )
    if (REFUSED_STEP, "FAILED") in steps(run, package):
        raise Refused(f"A gate said no: nothing was published. The verdict is in its log: {page}")
    if state != SUCCEEDED:
        failed = [name for name, end in steps(run, package) if end == "FAILED"]
        why = (run.get("error") or {}).get("message") or (record.error if record else "")
        raise Failed(
            f"The run ended {state}"
            + (f" at {', '.join(failed)}" if failed else "")
            + (f": {why}" if why else "")
            + f"\n{page}"
        )
    if record and record.published_version is not None:
        return f"Version {record.published_version} is published by {record.run_id}. {page}"
    return f"The run succeeded. {page}"


def _record(project: Project, run_id: str) -> run_record.RunRecord | None:
    """The record of a run on a cluster, where its folder can be seen from here."""
    return next((r for r in run_record.records(project.runs) if r.cluster == run_id), None)


def _state(run: Message) -> str:
    return str(run.get("state", ""))


def _revision(version: Message) -> str:
    return str(version.get("display_name") or version.get("name") or "").partition("-")[0]


def _name(project: Project, parameters: Mapping[str, Any]) -> str:
    span = parameters.get("span")
    about = f"span {span}" if span else "newest span" if parameters.get("force") else "next span"
    return f"{project.config.model.name}, {about}, {run_record.now()}"
