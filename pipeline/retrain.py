"""One run from start to end, plan, ingest, train, gate, publish, and its resumption.

This is what `graftline run` and `graftline resume` do. It imports TFX only once there is something
to run, so that a mistake or a span already trained is told at once.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import msgspec

from graftline.components.ingest.spans import find_span, latest_span
from graftline.components.verdict import Verdict
from graftline.pipeline import planning, run_record
from graftline.pipeline.code_digest import code_digest, file_digest
from graftline.pipeline.config import load_config, write_config
from graftline.pipeline.console import Console
from graftline.pipeline.plan import FILE_NAME as PLAN_NAME
from graftline.pipeline.plan import Plan, SpanVersion
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import NodeRecord, RunRecord
from graftline.schemas import curated
from graftline.serving.base_path import BasePath
from graftline.serving.errors import Refused, UserError


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked of a run.

    Attributes:
        span: number of the span, None for the latest.
        force: train again although the span was trained, and take nothing from the cache.
        accept_anomalies: let the data gate's refusal pass.
        bless: let the model gate's refusal pass.
        reason: why; wanted by both overrides.
    """

    span: int | None = None
    force: bool = False
    accept_anomalies: bool = False
    bless: bool = False
    reason: str = ""


def run(project: Project, request: Request, *, quiet: bool = False) -> RunRecord:
    """Runs the pipeline on a span, after those of its window that were never ingested.

    Args:
        project: the project.
        request: what was asked.
        quiet: show nothing on screen.

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
    curated.read(project.schema)
    if request.bless and not request.force:
        return _bless(project, request, quiet=quiet)
    found = (
        latest_span(project.spans)
        if request.span is None
        else find_span(project.spans, request.span)
    )
    target = SpanVersion(found.number, found.version)
    if not request.force:
        trained = _trained(project, target)
        if trained:
            return trained
    with run_record.lock(project.runs):
        _check_writable(project)
        _check_weights(project)
        return _begin(project, request, target, quiet=quiet)


def resume(project: Project, *, quiet: bool = False) -> RunRecord:
    """Takes up the last run, which crashed or was killed, from the node that it stopped at.

    It goes on with the configuration and the plan that the run began with. Where the code or the
    schema has changed since, every node is looked at anew, and only what does not depend on the
    change comes from the cache.

    Raises:
        UserError: the last run came to its end, or there is none.
        Refused: a gate said no.
    """
    last = next(run_record.records(project.runs), None)
    if last is None:
        raise UserError("There is no run to resume: start one with `graftline run`.")
    if last.state in (run_record.PUBLISHED, run_record.REFUSED):
        raise UserError(
            f"The last run, {last.run_id}, came to its end ({last.state}): nothing to resume. "
            "Start the next with `graftline run`."
        )
    with run_record.lock(project.runs):
        begun, request = _begun(project, last)
        curated.read(begun.schema)
        _check_weights(begun)
        if last.digest != _digest(begun):
            if last.took_up:
                raise _gone(last.took_up)
            published = _published_by(begun, last)
            if published is not None:
                # It died between the rename and its record, and other code must not judge it anew.
                last.state, last.published_version = run_record.PUBLISHED, published
                last.write(project.runs)
                return last
            last.digest, last.attempt = _digest(begun), last.attempt + 1
            _renew_baseline(begun, project.runs / last.run_id)
        last.state, last.error, last.finished = run_record.RUNNING, "", ""
        last.pid, last.nodes = os.getpid(), []
        last.write(project.runs)
        return _execute(begun, request, last, quiet=quiet)


def _refused_candidate(project: Project, span: int | None) -> RunRecord:
    """The last run, whose candidate the model gate refused, and which was of the span asked for.

    Runs that were to publish it and came to no end are passed over.

    Raises:
        UserError: the last run is another one, or there is none.
    """
    unfinished = (run_record.INTERRUPTED, run_record.FAILED)
    for last in run_record.records(project.runs):
        if last.took_up and last.state in unfinished:
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
            + (" by the data gate" if last.refused_by else "")
            + ". Run the pipeline first, or let a new candidate pass whatever it is like with "
            "`graftline run --force --bless --reason TEXT`."
        )
    raise UserError("There is no candidate to bless: start a run with `graftline run`.")


def _bless(project: Project, request: Request, *, quiet: bool) -> RunRecord:
    """Publishes the candidate that the model gate refused in the last run.

    It is that run once more, with its configuration and its plan: what was trained and judged comes
    from the cache, and the version to compare with is the one in service now.

    Raises:
        UserError: there is none, or it cannot be had any more.
    """
    # Under the lock a run that was cut off would seem to be under way.
    refused = _refused_candidate(project, request.span)
    with run_record.lock(project.runs):
        begun, asked = _begun(project, refused)
        _check_writable(begun)
        if refused.digest != _digest(begun):
            raise _gone(refused.run_id)
        baseline, uri = planning.hold_in_service(begun)
        plan = msgspec.structs.replace(
            Plan.read(project.runs / refused.run_id),
            baseline=baseline,
            baseline_uri=uri,
            bless=request.reason,
        )
        asked = msgspec.structs.replace(asked, bless=True, reason=request.reason)
        return _begin(begun, asked, refused.target, quiet=quiet, taken_up=(refused.run_id, plan))


def _gone(refused: str) -> UserError:
    return UserError(
        f"The candidate that was refused in {refused} cannot be had any more: code, schema, "
        "weights or the folder of artifacts are others by now, and it would not be made again as "
        "it was. Train a new one with `graftline run --force`."
    )


def _published_by(project: Project, record: RunRecord) -> int | None:
    """The version that a run has published, whatever its record says."""
    began = datetime.datetime.fromisoformat(record.started)
    for version in BasePath(project.base_path).versions():
        manifest = version.manifest
        # A folder of runs that was emptied counts from 1 again.
        if manifest and manifest.run_id == record.run_id and (manifest.created or began) >= began:
            return version.number
    return None


def _renew_baseline(project: Project, folder: Path) -> None:
    """Lets a run that begins anew compare with what is in service now."""
    if not (folder / PLAN_NAME).exists():
        return
    baseline, uri = planning.hold_in_service(project)
    plan = Plan.read(folder)
    msgspec.structs.replace(plan, baseline=baseline, baseline_uri=uri).write(folder)


def _begin(
    project: Project,
    request: Request,
    target: SpanVersion,
    *,
    quiet: bool,
    taken_up: tuple[str, Plan] | None = None,
) -> RunRecord:
    """Makes the folder and the record of a new run, under the lock, and runs it.

    Args:
        project: the project.
        request: what was asked.
        target: the span.
        quiet: show nothing on screen.
        taken_up: an earlier run and the plan to go by, where it is not decided anew.
    """
    run_id = run_record.new_run_id(project.runs)
    folder = project.runs / run_id
    folder.mkdir()
    write_config(project.config, folder / "config.yaml")
    (folder / "request.json").write_bytes(msgspec.json.encode(request))
    record = RunRecord(
        run_id=run_id, span=target.span, version=target.version, digest=_digest(project)
    )
    if taken_up:
        record.took_up, plan = taken_up
        msgspec.structs.replace(plan, run_id=run_id).write(folder)
    # The record comes last: a run that has one can be resumed.
    record.write(project.runs)
    return _execute(project, request, record, quiet=quiet)


def _begun(project: Project, record: RunRecord) -> tuple[Project, Request]:
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


def _execute(project: Project, request: Request, record: RunRecord, *, quiet: bool) -> RunRecord:
    """Runs under the lock; whatever happens ends up in the record."""
    folder = project.runs / record.run_id
    log = folder / run_record.LOG_NAME
    try:
        with _stop_on_signal(), Console(log, quiet=quiet) as console:
            console.line(f"{record.run_id}: {record.target}    log: {log}")
            if record.took_up:
                console.line(
                    f"  takes up the candidate that was refused in {record.took_up}, as it was "
                    "configured there"
                )
            _Execution(project, request, record, console).all()
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
        record.finished = run_record.now()
        record.write(project.runs)
    return record


class _Execution:
    """The stages of one run, sharing its record, console and metadata store."""

    def __init__(self, project: Project, request: Request, record: RunRecord, console: Console):
        self._project = project
        self._request = request
        self._record = record
        self._console = console
        self._folder = project.runs / record.run_id

    def all(self) -> None:
        """Plans, ingests the missing spans of the window, then runs the whole pipeline."""
        self._console.progress("loading TensorFlow and TFX")
        from graftline.pipeline.local_runner import clean_after_kill, open_store

        with open_store(self._project.metadata) as self._store:
            for node in clean_after_kill(self._store, self._project.artifacts):
                self._console.line(
                    f"  cleaned up after {node.rsplit('.', 1)[-1]}, which was cut off"
                )
            plan = self._decide()
            self._record.window = plan.window
            self._console.line(self._describe(plan))
            self._run(plan, data_only=False)
            self._conclude()

    def _decide(self) -> Plan:
        """The plan of the run, made once; spans of its window that no run has seen come first."""
        if (self._folder / PLAN_NAME).exists():
            plan = Plan.read(self._folder)
            if plan.baseline and not Path(plan.baseline_uri or "?").is_dir():
                _renew_baseline(self._project, self._folder)
            return Plan.read(self._folder)
        from graftline.pipeline.local_runner import blessed_spans

        for missing in planning.never_ingested(
            self._project, self._record.target, blessed_spans(self._store), self._refused_spans()
        ):
            self._console.line(f"  {missing} is in the window and was never ingested:")
            self._ingest(self._plan(missing))
        plan = self._plan(self._record.target)
        plan.write(self._folder)
        return plan

    def _plan(self, target: SpanVersion) -> Plan:
        from graftline.pipeline.local_runner import blessed_spans

        request, reason = self._request, self._request.reason
        accepted = request.accept_anomalies and target == self._record.target
        return msgspec.structs.replace(
            planning.make_plan(
                self._project, self._record.run_id, target, blessed_spans(self._store)
            ),
            accept_anomalies=reason if accepted else "",
            bless=reason if request.bless else "",
            force=self._record.key if request.force else "",
        )

    def _describe(self, plan: Plan) -> str:
        spans = ", ".join(str(entry) for entry in plan.window)
        against = f"version {plan.baseline}" if plan.baseline else "nothing yet in service"
        refused = self._refused_spans()
        out = [
            f"{span} ({'refused' if span in refused else 'came later'})"
            for span in planning.left_out(self._project, plan)
        ]
        without = f", without {', '.join(out)}" if out else ""
        return f"  trains on {spans}{without}; compared with {against}"

    def _refused_spans(self) -> set[SpanVersion]:
        """What the data gate has refused so far."""
        return {
            span
            for record in run_record.records(self._project.runs)
            for span in record.refused_spans
        }

    def _ingest(self, plan: Plan) -> None:
        """Takes an earlier span in; when it is refused, the run goes on without it."""
        try:
            self._run(plan, data_only=True)
        except Refused as refusal:
            self._console.line(f"{refusal}\n  The run goes on without it.")

    def _run(self, plan: Plan, *, data_only: bool) -> None:
        from graftline.pipeline.create_pipeline import compile_pipeline, report_folder
        from graftline.pipeline.local_runner import NotInCache, run_pipeline

        ir = compile_pipeline(self._project, plan, data_only=data_only)
        # A resumed run goes by the same name: a node that failed takes its execution up again.
        run_id = self._record.key + (f"-span-{plan.target.span}" if data_only else "")
        # A candidate that was judged is published as it is; another one is not let through for it.
        cache_only = ("Trainer",) if self._record.took_up else ()
        try:
            run_pipeline(ir, run_id, self._store, self._listen, cache_only)
        except NotInCache as error:
            raise _gone(self._record.took_up) from error
        except Refused:
            self._record.refused_spans = (*self._record.refused_spans, plan.target)
            if not data_only:
                self._record.refused_by = "data"
            verdict = Verdict.read(report_folder(self._project, plan, data_only) / "data_gate.json")
            raise Refused(
                f"{plan.target} is refused: nothing was trained on it.\n{verdict.in_words()}\n"
                f"{self._what_to_do(plan.target, verdict)}",
                msgspec.to_builtins(verdict),
            ) from None

    def _what_to_do(self, target: SpanVersion, verdict: Verdict) -> str:
        again = (
            f"Mend the data and drop it again (graftline drop SOURCE --span {target.span} "
            f"--version {target.version + 1})"
        )
        if verdict.final:
            return (
                f"{again}; nothing can be trained on it as it is. A class that is to be learnt "
                f"from now on belongs into the schema, {self._project.schema}."
            )
        return (
            f"{again}, or let it through with `graftline run --span {target.span} "
            "--accept-anomalies --reason TEXT`."
        )

    def _listen(self, node: str, state: str, seconds: float) -> None:
        if state == "running":
            self._record.nodes.append(NodeRecord(id=node, state=state))
            self._console.progress(f"{node} …")
        else:
            self._record.nodes[-1] = NodeRecord(id=node, state=state, seconds=round(seconds, 2))
            marks = {"done": "", "cached": "  (from the cache)", "failed": "  FAILED"}
            self._console.line(f"  {node:<20}{seconds:8.1f} s{marks[state]}")
        self._record.write(self._project.runs)

    def _conclude(self) -> None:
        from graftline.pipeline.local_runner import pushed_version

        verdict = Verdict.read(self._folder / "model_gate.json")
        self._console.table(verdict.table())
        if not verdict.passed:
            self._record.refused_by = "model"
            raise Refused(
                f"The candidate of {self._record.run_id} is refused: nothing was published.\n"
                f"{verdict.in_words()}\nIts report stays in {self._folder}. To publish it all the "
                "same: `graftline run --bless --reason TEXT`.",
                msgspec.to_builtins(verdict),
            )
        self._record.published_version = pushed_version(self._store)
        self._record.state = run_record.PUBLISHED


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


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[None]:
    """Treats a polite kill as Ctrl-C, so that the record is written in both cases."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
