"""A run begins, or is taken up again: what `graftline run`, `tune` and `resume` do.

What can be refused is refused here, before anything heavy is imported; `execution` does the rest.
"""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from graftline.components.ingest.spans import find_span, latest_span
from graftline.components.trainer.cluster import worker_number
from graftline.components.tuner import space
from graftline.pipeline import planning, run_record, tuned
from graftline.pipeline.beam.check import check_beam
from graftline.pipeline.beam.config import NODES
from graftline.pipeline.code_digest import code_digest, file_digest
from graftline.pipeline.config import load_config, write_config
from graftline.pipeline.console import Console
from graftline.pipeline.execution import Execution, Request, candidate_gone, renew_baseline
from graftline.pipeline.interruption import stop_on_signal
from graftline.pipeline.notify.tell import tell_of_run
from graftline.pipeline.plan import FILE_NAME as PLAN_NAME
from graftline.pipeline.plan import Plan, SpanVersion
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord
from graftline.schemas import curated
from graftline.serving.base_path import BasePath
from graftline.serving.errors import Refused, UserError


@dataclass(frozen=True)
class Manner:
    """How a run is run.

    Attributes:
        quiet: show nothing on screen.
        work: what is done of it here: all, or what its first step on a cluster does.
        cluster: the run of Kubeflow Pipelines whose steps run it, else empty.
    """

    quiet: bool = False
    work: Callable[[Execution], object] = Execution.all
    cluster: str = ""


def run(project: Project, request: Request, manner: Manner = Manner()) -> RunRecord:
    """Runs the pipeline on a span, after those of its window that were never ingested.

    It ends with a published version, or, where values are to be tried, with those that did best.

    Args:
        project: the project.
        request: what was asked.
        manner: how it is run.

    Returns:
        the record of the run, or of the earlier run that trained this span already (then its
        process is not this one).

    Raises:
        UserError: a mistake that is seen before anything runs.
        Refused: a gate said no; the message is the verdict.
    """
    if request.bless or request.accept_anomalies:
        _require_reason(request.reason)
    if request.reason and not (request.bless or request.accept_anomalies):
        raise UserError("--reason belongs to --bless or --accept-anomalies.")
    if worker_number():
        raise UserError(
            "The environment variable TF_CONFIG makes this machine a worker of a cluster, whose "
            "chief runs the pipeline. Run `graftline work` here."
        )
    curated.read(project.schema)
    if request.bless and not request.force:
        return _bless(project, request, manner)
    found = (
        latest_span(project.spans)
        if request.span is None
        else find_span(project.spans, request.span)
    )
    target = SpanVersion(found.number, found.version)
    if request.tune:
        space.check(project.config.trainer, project.config.tuner.space)
    elif not request.force:
        trained = _trained(project, target)
        if trained:
            return trained
    with run_record.lock(project.runs, manner.cluster):
        _check_writable(project)
        _check_weights(project)
        _check_probe(project)
        _check_beam(project, quiet=manner.quiet)
        return _begin(project, request, target, manner)


def resume(project: Project, manner: Manner = Manner()) -> RunRecord:
    """Takes up the last run, from the node that it stopped at: a crash, a kill, the serving probe.

    It goes on with the configuration and the plan that the run began with. Where the code or the
    schema has changed since, every node is looked at anew, and only what does not depend on the
    change comes from the cache.

    Args:
        project: the project.
        manner: how it is run; on a cluster it is the run of that cluster which is taken up.

    Raises:
        UserError: the last run came to its end, or there is none.
        Refused: a gate said no.
    """
    records = run_record.records(project.runs)
    last = next((r for r in records if manner.cluster in ("", r.cluster)), None)
    if last is None:
        raise UserError("There is no run to resume: start one with `graftline run`.")
    if last.cluster != manner.cluster:
        raise UserError(
            f"The last run, {last.run_id}, is {last.state}; it belongs to run {last.cluster} of "
            "Kubeflow Pipelines: retry it there, or start the next."
        )
    if not last.can_go_on:
        raise UserError(
            f"The last run, {last.run_id}, came to its end ({last.state}): nothing to resume. "
            "Start the next with `graftline run`."
        )
    with run_record.lock(project.runs, manner.cluster):
        begun, request = as_begun(project, last)
        curated.read(begun.schema)
        _check_weights(begun)
        _check_probe(begun)
        _check_beam(begun, quiet=manner.quiet)
        if last.digest != _digest(begun):
            if last.took_up:
                raise candidate_gone(last.took_up)
            published = _published_by(begun, last)
            if published is not None:
                # It died between the rename and its record, and other code must not judge it anew.
                last.state, last.published_version = run_record.PUBLISHED, published
                last.write(project.runs)
                return last
            last.digest, last.attempt = _digest(begun), last.attempt + 1
            renew_baseline(begun, project.runs / last.run_id)
        last.state, last.error, last.finished = run_record.RUNNING, "", ""
        last.refused_by = ""
        last.pid, last.nodes = os.getpid(), []
        last.write(project.runs)
        return _execute(begun, request, last, manner)


def _refused_candidate(project: Project, span: int | None) -> RunRecord:
    """The last run, whose candidate the model gate refused, and which was of the span asked for.

    Runs that were to publish it and can go on are passed over, and those that only tried values.

    Raises:
        UserError: the last run is another one, or there is none.
    """
    for last in run_record.records(project.runs):
        if last.tunes or (last.took_up and last.can_go_on):
            continue
        if (last.state, last.refused_by) == (run_record.REFUSED, "model"):
            if span in (None, last.span):
                return last
            raise UserError(
                f"{last.run_id}, whose candidate was refused last, was of span {last.span}, not of "
                f"span {span}. Publish it with `graftline run --bless --reason TEXT`, or train "
                f"another with `graftline run --span {span}`."
            )
        raise UserError(
            f"There is no candidate to bless: the last run, {last.run_id}, is {last.state}"
            + (f" by the {last.refuser}" if last.refused_by else "")
            + ". Run the pipeline first, or let a new candidate pass whatever it is like with "
            "`graftline run --force --bless --reason TEXT`."
        )
    raise UserError("There is no candidate to bless: start a run with `graftline run`.")


def _bless(project: Project, request: Request, manner: Manner) -> RunRecord:
    """Publishes the candidate that the model gate refused in the last run.

    It is that run once more, with its configuration and its plan: what was trained and judged comes
    from the cache, and the version to compare with is the one in service now.

    Raises:
        UserError: there is none, or it cannot be had any more.
    """
    # Under the lock a run that was cut off would seem to be under way.
    refused = _refused_candidate(project, request.span)
    with run_record.lock(project.runs, manner.cluster):
        begun, asked = as_begun(project, refused)
        _check_writable(begun)
        if refused.digest != _digest(begun):
            raise candidate_gone(refused.run_id)
        baseline, uri = planning.hold_in_service(begun)
        plan = msgspec.structs.replace(
            Plan.read(project.runs / refused.run_id),
            baseline=baseline,
            baseline_uri=uri,
            bless=request.reason,
        )
        asked = msgspec.structs.replace(asked, bless=True, reason=request.reason)
        return _begin(begun, asked, refused.target, manner, taken_up=(refused.run_id, plan))


def _published_by(project: Project, record: RunRecord) -> int | None:
    """The version that a run has published, whatever its record says."""
    began = datetime.datetime.fromisoformat(record.started)
    for version in BasePath(project.base_path).versions():
        manifest = version.manifest
        # A folder of runs that was emptied counts from 1 again.
        if manifest and manifest.run_id == record.run_id and (manifest.created or began) >= began:
            return version.number
    return None


def _begin(
    project: Project,
    request: Request,
    target: SpanVersion,
    manner: Manner,
    *,
    taken_up: tuple[str, Plan] | None = None,
) -> RunRecord:
    """Makes the folder and the record of a new run, under the lock, and runs it.

    Args:
        project: the project.
        request: what was asked.
        target: the span.
        manner: how it is run.
        taken_up: an earlier run and the plan to go by, where it is not decided anew.
    """
    run_id = run_record.new_run_id(project.runs)
    folder = project.runs / run_id
    folder.mkdir()
    write_config(project.config, folder / "config.yaml")
    (folder / "request.json").write_bytes(msgspec.json.encode(request))
    record = RunRecord(
        run_id=run_id,
        span=target.span,
        version=target.version,
        digest=_digest(project),
        tunes=request.tune,
        cluster=manner.cluster,
        lease_minutes=project.config.kubeflow.lease_minutes if manner.cluster else 0,
    )
    if taken_up:
        record.took_up, plan = taken_up
        msgspec.structs.replace(plan, run_id=run_id).write(folder)
    # The record comes last: a run that has one can be resumed.
    record.write(project.runs)
    return _execute(project, request, record, manner)


def as_begun(project: Project, record: RunRecord) -> tuple[Project, Request]:
    """The project with the configuration that a run began with, and what was asked of it.

    Raises:
        UserError: a span that it trains on has been replaced since.
    """
    folder = project.runs / record.run_id
    begun = Project(project.root, load_config(folder / "config.yaml"))
    planned = (folder / PLAN_NAME).exists()
    for entry in Plan.read(folder).window if planned else (record.target,):
        newest = find_span(begun.spans, entry.span)
        if newest.version != entry.version:
            raise UserError(
                f"{record.run_id} cannot go on: {entry} has been replaced by version "
                f"{newest.version} meanwhile. Start anew with `graftline run --span {record.span}`."
            )
    return begun, msgspec.json.decode((folder / "request.json").read_bytes(), type=Request)


def _digest(project: Project) -> str:
    return f"{code_digest()} {file_digest(project.schema)}"


def _execute(project: Project, request: Request, record: RunRecord, manner: Manner) -> RunRecord:
    """Runs under the lock; whatever happens ends up in the record."""
    folder = project.runs / record.run_id
    log = folder / run_record.LOG_NAME
    try:
        with stop_on_signal(), Console(log, quiet=manner.quiet) as console:
            console.line(f"{record.run_id}: {record.target}    log: {log}")
            values = tuned.in_force(project)
            if values:
                console.line(f"  as tuned before ({tuned.FILE_NAME}): {tuned.told(values)}")
            if record.took_up:
                console.line(
                    f"  takes up the candidate that was refused in {record.took_up}, as it was "
                    "configured there"
                )
            manner.work(Execution(project, request, record, console))
    except Refused:
        record.state = run_record.REFUSED
        raise
    except KeyboardInterrupt:
        record.state = run_record.INTERRUPTED
        record.error = "interrupted"
        raise
    except UserError as error:
        record.state, record.error = run_record.FAILED, str(error)
        raise
    except Exception as error:
        record.state = run_record.FAILED
        record.error = traceback.format_exception_only(error)[-1].strip()
        raise
    finally:
        if record.state != run_record.RUNNING:
            record.finished = run_record.now()
        record.write(project.runs)
        if not record.cluster:  # there the last step tells
            tell_of_run(project, record)
    return record


def _trained(project: Project, target: SpanVersion) -> RunRecord | None:
    """The run that published a model of this very version of the span."""
    for record in run_record.records(project.runs):
        if record.target == target and record.state == run_record.PUBLISHED:
            return record
    return None


def _require_reason(reason: str) -> None:
    if not reason:
        raise UserError("An override is recorded with its reason: add --reason TEXT.")


def _check_weights(project: Project) -> None:
    file = project.weights_file
    if file is not None and not file.is_file():
        raise UserError(f"There is no weight file {file} (trainer.weights). Nothing was run.")


def _check_beam(project: Project, *, quiet: bool) -> None:
    beam = project.config.beam
    if {beam.runner_of(node) for node in NODES} == {"direct"}:
        return
    # The version in service is the baseline: the Evaluator reads it where it is.
    baseline = [project.base_path] if project.base_path.is_dir() else []
    with Console(project.runs / "beam.log", quiet=quiet):
        check_beam(beam, [project.artifacts, project.spans], stages=NODES, sources=baseline)


def _check_probe(project: Project) -> None:
    command = project.config.probe.command
    if project.config.probe.enabled and command and shutil.which(command[0]) is None:
        raise UserError(
            f"There is no program {command[0]} for the serving probe (probe.command). Install it, "
            "or leave probe.command empty for the embedded server. Nothing was run."
        )


def _check_writable(project: Project) -> None:
    """Fails before hours of training rather than after.

    Raises:
        UserError: a folder that the run writes cannot be written.
    """
    for purpose, folder in (
        ("base path", project.base_path),
        ("folder of the pipeline's artifacts", project.artifacts),
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"The {purpose}, {folder}, cannot be written: {error.strerror}. Nothing was run."
            ) from error
