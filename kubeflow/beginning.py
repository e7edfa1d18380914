"""How a run on a cluster begins: what the package brings, what is asked, what the steps will do.

The first step decides, once: span, window and baseline, and the pipeline that follows from them.
The steps that come find all of it in the run's folder.
"""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Any

import msgspec

from graftline.kubeflow import training_job
from graftline.pipeline import planning, retrain, run_record
from graftline.pipeline.config import FILE_NAME, override, parse_config, write_config
from graftline.pipeline.execution import Execution, Request
from graftline.pipeline.project import Project
from graftline.serving.errors import UserError

PIPELINE_NAME = "pipeline.pb"
# What `begin` hands over.
TRAIN, NOTHING = "train", "nothing"
COMPILE_ANEW = (
    "Compile the package anew with `graftline kubeflow compile`, for an image of this code."
)


class MadeFrom(msgspec.Struct, frozen=True, kw_only=True):
    """What a package was made from.

    Attributes:
        graftline: version of the program.
        configuration: the project's, plain data.
        nodes: ids of the pipeline's nodes, each of which is a step.
    """

    graftline: str
    configuration: dict[str, Any]
    nodes: tuple[str, ...]

    @staticmethod
    def read(text: str) -> MadeFrom:
        """Reads what the package says.

        Raises:
            UserError: it was made by another version.
        """
        try:
            return msgspec.json.decode(text, type=MadeFrom)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise UserError(
                f"This package was made by another version of Graftline than the image has "
                f"({error}). {COMPILE_ANEW}"
            ) from error


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a run.

    Attributes:
        span: number of the span; 0: the next that is complete and untrained.
        window: train on so many newest spans up to that one; 0: as configured.
        overrides: `section.key=value` each.
        force, accept_anomalies, bless, reason: as of `graftline run`; with force and without a
            span, it is the newest that is trained.
    """

    span: int = 0
    window: int = 0
    overrides: tuple[str, ...] = ()
    force: bool = False
    accept_anomalies: bool = False
    bless: bool = False
    reason: str = ""

    @staticmethod
    def read(given: dict[str, Any]) -> Parameters:
        """Reads what a step was given; `overrides` is JSON.

        Raises:
            UserError: a value is of the wrong type.
        """
        try:
            overrides = msgspec.json.decode(given["overrides"], type=tuple[str, ...])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise UserError(
                "The run's parameter `overrides` must be a list such as "
                f'["trainer.batch_size=64"], found {given["overrides"]!r} ({error}).'
            ) from error
        return msgspec.convert({**given, "overrides": overrides}, Parameters)

    def applied(self) -> tuple[str, ...]:
        """Everything that differs from the package's configuration."""
        window = (f"window.last={self.window}",) if self.window else ()
        return (*window, *self.overrides)


def begin(
    project_folder: Path,
    runs: Path,
    kubeflow_run: str,
    made_from: MadeFrom,
    schema: str,
    asked: Parameters,
) -> tuple[str, str]:
    """Decides what the run does, and compiles the pipeline for the steps that come.

    It puts the package's schema into the project's folder, makes the folder of the run, ingests
    what the window lacks and makes the metadata's tables. A step that is tried again takes up what
    it had begun.

    Args:
        project_folder: made if need be.
        runs: where the steps that come look for their run.
        kubeflow_run: id of the run on Kubeflow Pipelines.
        made_from: the package.
        schema: text of the curated schema.
        asked: parameters of the run.

    Returns:
        name of the run, empty where there is nothing to do, and `train` or `nothing`.

    Raises:
        UserError: a mistake that is seen before anything runs.
    """
    config = override(
        parse_config(made_from.configuration, "the package's configuration"), asked.applied()
    )
    training_job.refuse_workers(config)
    project = Project(project_folder, config)
    if project.runs != runs:
        raise UserError(
            f"The steps of this package look for their run in {runs}, and not in {project.runs}: "
            "paths.runs cannot be overridden for one run."
        )
    with run_record.lock(project.runs, kubeflow_run):
        if not any(r.cluster == kubeflow_run for r in run_record.records(project.runs)):
            _unpack(project, schema)
    begun = next((r for r in run_record.records(project.runs) if r.cluster == kubeflow_run), None)
    manner = retrain.Manner(
        cluster=kubeflow_run, work=lambda execution: _prepare(execution, made_from)
    )
    if begun is not None:
        return retrain.resume(project, manner).run_id, TRAIN
    span = asked.span or None
    if span is None and not asked.force and not asked.bless:
        found = planning.next_span(project, run_record.records(project.runs))
        if found is None:
            print("Nothing to do: there is no span that is complete and untrained.")
            nothing_to_do(project.runs, kubeflow_run).touch()
            return "", NOTHING
        span = found.span
    request = Request(
        span=span,
        force=asked.force,
        accept_anomalies=asked.accept_anomalies,
        bless=asked.bless,
        reason=asked.reason,
    )
    record = retrain.run(project, request, manner)
    if record.cluster != kubeflow_run:
        print(
            f"Nothing to do: {record.target} was trained by {record.run_id} and published as "
            f"version {record.published_version}. With force=true it is trained again."
        )
        nothing_to_do(project.runs, kubeflow_run).touch()
        return "", NOTHING
    return record.run_id, TRAIN


def nothing_to_do(runs: Path, kubeflow_run: str) -> Path:
    """The file that tells the last step that a run without a record is none that has failed."""
    return runs / f".nothing-{urllib.parse.quote(kubeflow_run, safe='')}"


def _unpack(project: Project, schema: str) -> None:
    """Puts what the package brings into the project's folder.

    Raises:
        UserError: it cannot be written.
    """
    try:
        project.schema.parent.mkdir(parents=True, exist_ok=True)
        if not (project.root / FILE_NAME).exists():
            write_config(project.config, project.root / FILE_NAME)
        if not project.schema.exists() or project.schema.read_text("utf-8") != schema:
            staged = project.schema.with_name(f".{project.schema.name}")
            staged.write_text(schema, encoding="utf-8")
            staged.replace(project.schema)
    except OSError as error:
        raise UserError(
            f"The project's folder, {project.root}, cannot be written: {error.strerror} "
            f"({error.filename}). See that kubeflow.project lies on a volume that the image's user "
            "may write to. Nothing was run."
        ) from error


def _prepare(execution: Execution, made_from: MadeFrom) -> None:
    """The first step's part of a run: the plan, and the pipeline that follows from it."""
    project, plan = execution.project, execution.plan()
    from graftline.pipeline.create_pipeline import compile_pipeline

    ir = compile_pipeline(project, plan)
    nodes = {entry.pipeline_node.node_info.id for entry in ir.nodes}
    if nodes != set(made_from.nodes):
        other = ", ".join(sorted(nodes ^ set(made_from.nodes)))
        raise UserError(
            f"The package has other steps than this run ({other}): an override, or another "
            f"version of the code, changes which nodes there are. {COMPILE_ANEW}"
        )
    folder = project.runs / plan.run_id
    (folder / PIPELINE_NAME).write_bytes(ir.SerializeToString(deterministic=True))
    run_record.show_life(project.runs, plan.run_id)
