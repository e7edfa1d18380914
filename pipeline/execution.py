"""The stages of one run: plan, ingest what its window lacks, run the nodes, conclude.

It imports TFX only once there is something to run, so that a mistake or a span already trained is
told at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from graftline.components import memory
from graftline.components.ingest.spans import find_span
from graftline.pipeline import outcome, planning, run_record, tuned
from graftline.pipeline.beam.config import NODES
from graftline.pipeline.beam.workers import preload
from graftline.pipeline.console import Console
from graftline.pipeline.plan import FILE_NAME as PLAN_NAME
from graftline.pipeline.plan import Plan, SpanVersion
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import NodeRecord, RunRecord
from graftline.serving.errors import Refused, UserError

if TYPE_CHECKING:
    from graftline.pipeline.create_pipeline import Extent

_TRIALS = "trials.json"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked of a run.

    Attributes:
        span: number of the span, None for the latest.
        force: train again although the span was trained, and take nothing from the cache.
        accept_anomalies: let the data gate's refusal pass.
        bless: let the model gate's refusal pass.
        reason: why; wanted by both overrides.
        tune: try values for the trainer, and publish nothing.
    """

    span: int | None = None
    force: bool = False
    accept_anomalies: bool = False
    bless: bool = False
    reason: str = ""
    tune: bool = False


class Execution:
    """The stages of one run, sharing its record, console and metadata store."""

    def __init__(self, project: Project, request: Request, record: RunRecord, console: Console):
        self._project = project
        self._request = request
        self._record = record
        self._console = console
        self._folder = project.runs / record.run_id

    @property
    def project(self) -> Project:
        """The project, configured as this run is: as the one whose candidate it takes up was."""
        return self._project

    def all(self) -> None:
        """Plans, ingests the missing spans of the window, then runs the whole pipeline."""
        preload(self._project.config.beam, NODES)
        plan = self.plan()
        self._run(plan, "tuning" if self._request.tune else "publication")
        if self._request.tune:
            self._keep_values()
        else:
            self._judge()
            outcome.conclude(self._record, self._store)

    def plan(self) -> Plan:
        """Decides what the run does, and ingests the spans that its window lacks."""
        self._console.progress("loading TensorFlow and TFX")
        from graftline.components.trainer.devices import take_gpus
        from graftline.pipeline.store import clean_after_kill, connection, open_store

        if not self._record.cluster:
            # All nodes share this process, and the first of them may use a GPU.
            take_gpus(self._project.config.trainer.devices)
        self._connection = connection(self._project, cluster=bool(self._record.cluster))
        self._store = open_store(self._connection)
        for node in clean_after_kill(
            self._store, self._project.artifacts, self._store.get_executions()
        ):
            self._console.line(f"  cleaned up after {node}, which was cut off")
        plan = self._decide()
        self._record.window = plan.window
        self._console.line(self._describe(plan))
        return plan

    def _decide(self) -> Plan:
        """The plan of the run, made once; spans of its window that no run has seen come first."""
        if (self._folder / PLAN_NAME).exists():
            plan = Plan.read(self._folder)
            if plan.baseline and not Path(plan.baseline_uri or "?").is_dir():
                renew_baseline(self._project, self._folder)
            return Plan.read(self._folder)
        from graftline.pipeline.store import blessed_spans, lost_spans

        blessed = blessed_spans(self._store)
        lost = lost_spans(self._store, blessed)
        for missing in planning.never_ingested(
            self._project, self._record.target, blessed, self._refused_spans(), lost
        ):
            why = "its examples were removed" if missing in lost else "was never ingested"
            self._console.line(f"  {missing} is in the window and {why}:")
            plan = self._plan(missing)
            if missing in lost:
                plan = msgspec.structs.replace(plan, accept_anomalies="it has passed before")
            self._ingest(plan)
        plan = self._plan(self._record.target)
        plan.write(self._folder)
        return plan

    def _plan(self, target: SpanVersion) -> Plan:
        from graftline.pipeline.store import blessed_spans

        find_span(self._project.spans, target.span, target.version).check_files()
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
        if self._request.tune:
            return f"  tries {self._project.config.tuner.trials} trainings on {spans}{without}"
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
            self._run(plan, "data")
        except Refused as refusal:
            self._console.line(f"{refusal}\n  The run goes on without it.")

    def _run(self, plan: Plan, extent: Extent) -> None:
        from graftline.components.serving_probe.component import ServingProbe
        from graftline.pipeline.create_pipeline import compile_pipeline, report_folder
        from graftline.pipeline.launch import NotInCache
        from graftline.pipeline.local_runner import run_pipeline

        ir = compile_pipeline(self._project, plan, extent)
        # A resumed run goes by the same name: nodes that are done are not looked at again.
        run_id = self._record.key + (f"-span-{plan.target.span}" if extent == "data" else "")
        # A candidate that was judged is published as it is; another one is not let through for it.
        cache_only = ("Trainer",) if self._record.took_up else ()
        try:
            run_pipeline(
                ir,
                run_id,
                self._connection,
                self._project.config.beam,
                self._listen,
                cache_only,
            )
        except NotInCache as error:
            raise candidate_gone(self._record.took_up) from error
        except Refused:
            if self._record.nodes[-1].id == ServingProbe.__name__:
                self._judge()
                raise
            report = report_folder(self._project, plan, extent)
            raise outcome.data_refused(
                self._project, self._record, plan.target, report, earlier=extent == "data"
            ) from None

    def _listen(self, node: str, state: str, seconds: float) -> None:
        if state == "running":
            memory.begin()
            self._record.nodes.append(NodeRecord(id=node, state=state))
            self._console.progress(f"{node} …")
        else:
            self._record.nodes[-1] = NodeRecord(
                id=node, state=state, seconds=round(seconds, 2), peak_mb=memory.peak_mb()
            )
            marks = {"done": "", "cached": "  (from the cache)", "failed": "  FAILED"}
            self._console.line(f"  {node:<20}{seconds:8.1f} s{marks[state]}")
        self._record.write(self._project.runs)

    def _keep_values(self) -> None:
        """Writes the best trial's values into the project, for all runs from now on."""
        from graftline.pipeline.store import tuner_results

        trials = tuned.read_trials(tuner_results(self._store), self._project.config.tuner.space)
        (self._folder / _TRIALS).write_bytes(msgspec.json.encode(trials))
        self._console.table(tuned.table(trials))
        tuned.write_tuned(self._project.root, trials, self._record.run_id)
        self._record.state = run_record.TUNED

    def _judge(self) -> None:
        probes = ("serving_probe",) if self._project.config.probe.enabled else ()
        outcome.judge(self._project, self._record, self._console, "model_gate", *probes)


def candidate_gone(refused: str) -> UserError:
    """The error where the candidate that a run was refused for cannot be published any more."""
    return UserError(
        f"The candidate that was refused in {refused} cannot be had any more: code, schema, "
        "weights or the folder of artifacts are others by now, and it would not be made again as "
        "it was. Train a new one with `graftline run --force`."
    )


def renew_baseline(project: Project, folder: Path) -> None:
    """Lets a run that begins anew compare with what is in service now."""
    if not (folder / PLAN_NAME).exists():
        return
    baseline, uri = planning.hold_in_service(project)
    plan = Plan.read(folder)
    gone = plan.start_from and not Path(plan.start_from).is_dir()
    msgspec.structs.replace(
        plan,
        baseline=baseline,
        baseline_uri=uri,
        start_from=uri if gone else plan.start_from,
    ).write(folder)
