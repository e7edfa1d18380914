"""One run from start to end, plan, ingest, train, gate, publish, and its resumption.

This is what `graftline run` and `graftline resume` do. It imports TFX only once there is something
to run, so that a mistake or a span already trained is told at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import traceback
from collections.abc import Iterator
from types import FrameType

import msgspec

from graftline.components.ingest.spans import find_span, latest_span, list_spans
from graftline.components.verdict import Verdict
from graftline.pipeline import run_record
from graftline.pipeline.config import load_config, write_config
from graftline.pipeline.console import Console
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
    if (request.bless or request.accept_anomalies) and not request.reason:
        raise UserError("An override is recorded with its reason: add --reason TEXT.")
    if request.reason and not (request.bless or request.accept_anomalies):
        raise UserError("--reason belongs to --bless or --accept-anomalies.")
    curated.read(project.schema)
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
        run_id = run_record.new_run_id(project.runs)
        record = RunRecord(run_id=run_id, span=target.span, version=target.version)
        folder = project.runs / run_id
        folder.mkdir()
        record.write(project.runs)
        write_config(project.config, folder / "config.yaml")
        (folder / "request.json").write_bytes(msgspec.json.encode(request))
        return _execute(project, request, record, quiet=quiet)


def resume(project: Project, *, quiet: bool = False) -> RunRecord:
    """Takes up the last run, which crashed or was killed, from the node that it stopped at.

    It goes on with the configuration and the plan that the run began with.

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
        folder = project.runs / last.run_id
        begun = Project(project.root, load_config(folder / "config.yaml"))
        request = msgspec.json.decode((folder / "request.json").read_bytes(), type=Request)
        newest = find_span(project.spans, last.span)
        if newest.version != last.version:
            raise UserError(
                f"{last.run_id} cannot go on: {last.target} has been replaced by version "
                f"{newest.version} meanwhile. Start anew with `graftline run --span {last.span}`."
            )
        last.state, last.error, last.pid, last.nodes = run_record.RUNNING, "", os.getpid(), []
        last.write(project.runs)
        return _execute(begun, request, last, quiet=quiet)


def _execute(project: Project, request: Request, record: RunRecord, *, quiet: bool) -> RunRecord:
    """Runs under the lock; whatever happens ends up in the record."""
    folder = project.runs / record.run_id
    log = folder / run_record.LOG_NAME
    try:
        with _stop_on_signal(), Console(log, quiet=quiet) as console:
            console.line(f"{record.run_id}: {record.target}    log: {log}")
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
        from graftline.pipeline.local_runner import blessed_spans, clean_after_kill, open_store

        with open_store(self._project.metadata) as self._store:
            for node in clean_after_kill(self._store, self._project.artifacts):
                self._console.line(
                    f"  cleaned up after {node.rsplit('.', 1)[-1]}, which was cut off"
                )
            for missing in self._never_ingested(blessed_spans(self._store)):
                self._console.line(f"  {missing} is in the window and was never ingested:")
                self._ingest(self._plan(missing, blessed_spans(self._store)))
            plan = self._decide(blessed_spans(self._store))
            self._record.window = plan.window
            self._console.line(self._describe(plan))
            self._run(plan, data_only=False)
            self._conclude()

    def _never_ingested(self, blessed: set[SpanVersion]) -> list[SpanVersion]:
        """Spans of the window that no run has seen; a span that was refused stays out."""
        seen = {
            span
            for record in run_record.records(self._project.runs)
            for span in record.refused_spans
        }
        earlier = [
            span for span in self._newest_spans() if span < self._record.target and span not in seen
        ]
        last = self._project.config.window.last
        within = earlier if last is None else earlier[len(earlier) - min(last - 1, len(earlier)) :]
        return [span for span in within if span not in blessed]

    def _newest_spans(self) -> list[SpanVersion]:
        newest = {span.number: span.version for span in list_spans(self._project.spans)}
        return [SpanVersion(number, version) for number, version in sorted(newest.items())]

    def _decide(self, blessed: set[SpanVersion]) -> Plan:
        """The plan of the run: the saved one where the run is resumed."""
        if (self._folder / "plan.json").exists():
            return Plan.read(self._folder)
        plan = self._plan(self._record.target, blessed)
        plan.write(self._folder)
        return plan

    def _plan(self, target: SpanVersion, blessed: set[SpanVersion]) -> Plan:
        newest: dict[int, SpanVersion] = {}
        for span in sorted(blessed):
            if span.span < target.span:
                newest[span.span] = span
        earlier = list(newest.values())
        last = self._project.config.window.last
        kept = earlier if last is None else earlier[len(earlier) - min(last - 1, len(earlier)) :]
        is_target = target == self._record.target
        return Plan(
            run_id=self._record.run_id,
            target=target,
            window=(*kept, target),
            previous=earlier[-1] if earlier else None,
            baseline=BasePath(self._project.base_path).in_service(),
            accept_anomalies=self._request.reason
            if self._request.accept_anomalies and is_target
            else "",
            bless=self._request.reason if self._request.bless else "",
            force=self._record.key if self._request.force else "",
        )

    def _describe(self, plan: Plan) -> str:
        spans = ", ".join(str(entry.span) for entry in plan.window)
        against = f"version {plan.baseline}" if plan.baseline else "nothing yet in service"
        return f"  trains on span{'s' * (len(plan.window) > 1)} {spans}; compared with {against}"

    def _ingest(self, plan: Plan) -> None:
        """Takes an earlier span in; when it is refused, the run goes on without it."""
        try:
            self._run(plan, data_only=True)
        except Refused as refusal:
            self._console.line(f"{refusal}\n  The run goes on without it.")

    def _run(self, plan: Plan, *, data_only: bool) -> None:
        from graftline.pipeline.create_pipeline import compile_pipeline, report_folder
        from graftline.pipeline.local_runner import run_pipeline

        ir = compile_pipeline(self._project, plan, data_only=data_only)
        # A resumed run goes by the same name: a node that failed takes its execution up again.
        run_id = self._record.key + (f"-span-{plan.target.span}" if data_only else "")
        try:
            run_pipeline(ir, run_id, self._store, self._listen)
        except Refused:
            self._record.refused_spans = (*self._record.refused_spans, plan.target)
            if not data_only:
                self._record.refused_by = "data"
            verdict = Verdict.read(report_folder(self._project, plan, data_only) / "data_gate.json")
            raise Refused(
                f"{plan.target} is refused: nothing was trained on it.\n{verdict.in_words()}\n"
                f"Mend the data and drop it again (graftline drop SOURCE --span {plan.target.span} "
                f"--version {plan.target.version + 1}), or let it through with `graftline run "
                f"--span {plan.target.span} --accept-anomalies --reason TEXT`."
            ) from None

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
                "same: `graftline run --bless --reason TEXT`."
            )
        self._record.published_version = pushed_version(self._store)
        self._record.state = run_record.PUBLISHED


def _trained(project: Project, target: SpanVersion) -> RunRecord | None:
    """The run that published a model of this very version of the span."""
    for record in run_record.records(project.runs):
        if record.target == target and record.state == run_record.PUBLISHED:
            return record
    return None


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
