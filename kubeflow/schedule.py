"""The schedule of a project on Kubeflow Pipelines: a recurring run that goes by the model's name.

A schedule cannot be changed there, and several may have one name: it is replaced so that at no
moment two of them start runs; a replacement that was interrupted is put right by the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from graftline.kubeflow.api import Api, Message
from graftline.pipeline.project import Project


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A recurring run, as people want to know it.

    Attributes:
        id: of the recurring run.
        name: what it is called.
        cron: when it runs.
        enabled: whether it starts runs.
        parameters: of its runs.
        version: the version of the pipeline that it stays at; empty: always the newest.
        pipeline_id: whose version.
        copied: the package that it keeps a copy of, as some backends before 2.5 do.
    """

    id: str
    name: str
    cron: str
    enabled: bool
    parameters: dict[str, Any]
    version: str
    pipeline_id: str
    copied: dict[str, Any] = {}

    @staticmethod
    def of(message: Message) -> Schedule:
        """What the API says of a recurring run."""
        reference = message.get("pipeline_version_reference") or {}
        trigger = message.get("trigger") or {}
        pinned = reference.get("pipeline_version_id") or message.get("pipeline_version_id") or ""
        copied = {} if pinned else message.get("pipeline_spec") or {}
        return Schedule(
            id=str(message["recurring_run_id"]),
            name=str(message.get("display_name", "")),
            cron=str((trigger.get("cron_schedule") or {}).get("cron", "")),
            enabled=message.get("status") != "DISABLED",
            parameters=(message.get("runtime_config") or {}).get("parameters") or {},
            version="a copy" if copied else str(pinned),
            pipeline_id=str(reference.get("pipeline_id", "")),
            copied=copied,
        )


def find(api: Api, project: Project, experiment_id: str) -> list[Schedule]:
    """The project's schedule; several where replacing it was interrupted, or people made more."""
    name = project.config.model.name
    found = map(Schedule.of, api.schedules(experiment_id))
    return [schedule for schedule in found if schedule.name == name]


def put(
    api: Api,
    project: Project,
    experiment_id: str,
    pipeline_id: str,
    cron: str,
    parameters: Mapping[str, Any],
    *,
    enabled: bool = True,
) -> tuple[Schedule, bool]:
    """Lets the pipeline run at these times, always its newest version, one run at a time.

    Args:
        api: Kubeflow Pipelines.
        project: the project.
        experiment_id: where the runs go.
        pipeline_id: what is run.
        cron: when, as `cron.check` gives it.
        parameters: of the runs.
        enabled: whether it starts runs.

    Returns:
        the schedule, and whether it is another one than before.
    """
    before = find(api, project, experiment_id)
    if len(before) == 1:
        [only] = before
        same = (only.cron, only.parameters, only.enabled, only.pipeline_id, only.version)
        if same == (cron, dict(parameters), enabled, pipeline_id, ""):
            return only, False
    made = api.create_schedule(
        {
            "display_name": project.config.model.name,
            "description": "Made by graftline kubeflow schedule.",
            "experiment_id": experiment_id,
            "namespace": api.namespace,
            "service_account": project.config.kubeflow.api.service_account,
            # Without a version: backends from 2.5 on take the newest at every run, those before
            # keep the one that is the newest now, and `renew` replaces it.
            "pipeline_version_reference": {"pipeline_id": pipeline_id},
            "runtime_config": {"parameters": dict(parameters)},
            "trigger": {"cron_schedule": {"cron": cron}},
            "max_concurrency": "1",
            "no_catchup": True,
            # Not before the one that it replaces is gone.
            "mode": "DISABLE",
        }
    )
    schedule = Schedule.of(made)
    for old in before:
        api.delete_schedule(old.id)
    if enabled:
        api.enable_schedule(schedule.id)
    return Schedule.of(api.schedule(schedule.id)), True


def renew(
    api: Api, project: Project, experiment_id: str, pipeline_id: str, newest_version: str
) -> bool:
    """Makes a schedule anew that stays at another version than the newest.

    Returns:
        whether there was one.
    """
    before = find(api, project, experiment_id)
    pinned = [schedule for schedule in before if schedule.version]
    if all(
        _package(schedule.copied) == _package(api.version(pipeline_id, newest_version))
        if schedule.copied
        else schedule.version == newest_version
        for schedule in pinned
    ):
        return False
    latest = before[-1]
    enabled = any(schedule.enabled for schedule in before)
    put(
        api,
        project,
        experiment_id,
        pipeline_id,
        latest.cron,
        latest.parameters,
        enabled=enabled,
    )
    return True


def _package(message: Message) -> Message:
    """The package of a version, or of a copy, without its part for the platform."""
    while "pipeline_spec" in message:
        message = message["pipeline_spec"]
    return message
