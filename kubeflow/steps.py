"""The steps of a run on a cluster after the first: a node each, the refused run, the end.

A run here is the same run as on one machine: the same folder, record, configuration, plan and
pipeline. Only its nodes are executed by steps that know of each other through these files alone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.kubeflow.beginning import COMPILE_ANEW, PIPELINE_NAME, nothing_to_do
from graftline.pipeline import outcome, run_record
from graftline.pipeline.config import FILE_NAME, load_config
from graftline.pipeline.console import Console
from graftline.pipeline.execution import candidate_gone
from graftline.pipeline.interruption import stop_on_signal
from graftline.pipeline.notify.tell import tell_not_begun, tell_of_run
from graftline.pipeline.plan import Plan
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import NodeRecord, RunRecord
from graftline.serving.errors import Refused, UserError

if TYPE_CHECKING:
    from ml_metadata.proto import metadata_store_pb2
    from tfx.proto.orchestration import pipeline_pb2

# What the gates do.
PASSED, REFUSED = "passed", "refused"
# Nodes that may say no, with the report of those whose step goes on without an error.
GATES = {"DataGate": "", "ModelGate": "model_gate", "ServingProbe": "serving_probe"}
LAST_NODE = "Pusher"

_HEARTBEAT = 30.0  # seconds


def run(project_folder: Path, runs: Path, run_id: str, name: str) -> str:
    """Executes one node of a run.

    Args:
        project_folder: the project.
        runs: folder of its runs.
        run_id: name of the run.
        name: id of the node.

    Returns:
        `passed`, or `refused` where it is a gate that said no.

    Raises:
        UserError: there is no such run or node, the pipeline is another version's, or the metadata
            database does not answer.
        Exception: whatever the node raised.
    """
    record = _find(runs, run_id)
    project = Project(project_folder, load_config(runs / run_id / "config.yaml"))
    with (
        stop_on_signal(),
        _signs_of_life(project, run_id),
        Console(project.runs / run_id / run_record.LOG_NAME) as console,
    ):
        step = _Step(project, record, name, console)
        try:
            return step.run()
        except BaseException as error:
            step.failed(error)
            raise


class _Step:
    """One try of one node."""

    def __init__(self, project: Project, record: RunRecord, name: str, console: Console):
        self._project, self._record, self._name = project, record, name
        self._console = console
        self._began = time.monotonic()
        # The record says how the run stood before this step.
        self._record.state = run_record.RUNNING
        self._clean: Callable[[], list[str]] = list

    def run(self) -> str:
        self._console.progress("loading TensorFlow and TFX")
        from graftline.pipeline import launch, store

        ir = self._pipeline()
        launch.name_run(ir, self._record.key)
        [node] = [e.pipeline_node for e in ir.nodes if e.pipeline_node.node_info.id == self._name]
        connection = store.connection(self._project, cluster=True)
        metadata = store.open_store(connection)
        self._note("running")
        try:
            if self._is_elsewhere:
                state = self._train_in_other_pods(connection, node)
            else:
                state = self._execute(ir, node, connection)
            gate = GATES.get(self._name)
            if gate:
                outcome.judge(self._project, self._record, self._console, gate)
        except Refused as refusal:
            self._refuse(refusal)
            return REFUSED
        if self._name == LAST_NODE:
            outcome.conclude(self._record, metadata)
        self._note(state)
        return PASSED

    def _execute(
        self,
        ir: pipeline_pb2.Pipeline,
        node: pipeline_pb2.PipelineNode,
        connection: metadata_store_pb2.ConnectionConfig,
    ) -> str:
        from graftline.components.trainer.devices import take_gpus
        from graftline.pipeline import launch, store

        def clean() -> list[str]:
            metadata = store.open_store(connection)
            mine = launch.executions_of(metadata, node)
            return store.clean_after_kill(metadata, self._project.artifacts, mine)

        if clean():
            self._console.line(f"  cleaned up after {self._name}, which was cut off")
        self._clean = clean
        if self._name != "Trainer":  # which takes those that it is told to
            take_gpus(None)
        # A candidate that was judged is published as it is; another one is not let through for it.
        cache_only = ("Trainer",) if self._record.took_up else ()
        try:
            return launch.run_node(ir, node, connection, self._project.config.beam, cache_only)
        except launch.NotInCache as error:
            raise candidate_gone(self._record.took_up) from error
        except Exception:
            store.open_store(connection)  # says so where the database is what was lost
            raise

    @property
    def _is_elsewhere(self) -> bool:
        """Whether this step has a TFJob train, whose chief comes here too, with its TF_CONFIG."""
        from graftline.components.trainer.cluster import cluster_size

        several = self._name == "Trainer" and self._project.config.kubeflow.training_pods > 1
        return several and not self._record.took_up and cluster_size() == 1

    def _train_in_other_pods(
        self,
        connection: metadata_store_pb2.ConnectionConfig,
        node: pipeline_pb2.PipelineNode,
    ) -> str:
        from graftline.components.trainer.cluster import forget
        from graftline.kubeflow import training_job
        from graftline.kubeflow.kubernetes_api import KubernetesApi
        from graftline.pipeline import launch, store

        config = self._project.config
        training_job.refuse_workers(config)
        name = training_job.job_name(config.model.name, self._record.run_id, self._record.cluster)
        chief, worker = (
            training_job.arguments(
                part, self._project.root, self._project.runs, self._record.run_id
            )
            for part in ("run", "work")
        )
        forget(self._project.cluster)
        job = training_job.TrainingJob(KubernetesApi.of_this_pod(), name)
        with job.submitted(training_job.manifest(config.kubeflow, name, chief, worker)):
            self._console.line(f"  {config.kubeflow.training_pods} pods train: TFJob {name}")
            ended, said = job.follow(self._console.line)
        executions = launch.executions_of(store.open_store(connection), node)
        state = launch.how_it_ended(executions[0]) if executions else ""
        if not state:
            raise RuntimeError(
                f"The TFJob {name} ended as {ended} ({said}), and the Trainer's execution in the "
                "metadata store is not complete. The log of its chief is above."
            )
        return state

    def _pipeline(self) -> pipeline_pb2.Pipeline:
        from google.protobuf.message import DecodeError
        from tfx.proto.orchestration import pipeline_pb2

        from graftline.pipeline.code_digest import code_digest

        path = self._project.runs / self._record.run_id / PIPELINE_NAME
        ir = pipeline_pb2.Pipeline()
        try:
            ir.ParseFromString(path.read_bytes())
        except (OSError, DecodeError) as error:
            raise UserError(
                f"The compiled pipeline {path} cannot be read ({error}): the step `begin` of this "
                "run has not ended, or another version wrote it. Start a new run."
            ) from error
        nodes = {entry.pipeline_node.node_info.id: entry.pipeline_node for entry in ir.nodes}
        if self._name not in nodes:
            raise UserError(
                f"The pipeline has no node {self._name!r}; it has {', '.join(nodes)}. "
                f"{COMPILE_ANEW}"
            )
        made_by = nodes[self._name].parameters.parameters["code_digest"].field_value.string_value
        if made_by != code_digest():
            raise UserError(
                f"The pipeline of {self._record.run_id} was compiled by other code than this step "
                "has: the image changed under its tag while the run was under way. Give every "
                "version of the image a tag of its own, and start a new run."
            )
        return ir

    def _refuse(self, refusal: Refused) -> None:
        """Records that the gate said no, and shows its verdict."""
        if self._name == "DataGate":
            from graftline.pipeline.create_pipeline import report_folder

            plan = Plan.read(self._project.runs / self._record.run_id)
            report = report_folder(self._project, plan, "publication")
            refusal = outcome.data_refused(
                self._project, self._record, plan.target, report, earlier=False
            )
        elif self._name == "ServingProbe" and not self._record.refused_by:
            try:
                outcome.judge(self._project, self._record, self._console, GATES[self._name])
            except Refused as told:
                refusal = told
        self._record.state = run_record.REFUSED
        self._record.error = str(refusal)
        self._console.line(str(refusal))
        self._note("refused")

    def failed(self, error: BaseException) -> None:
        """Records what went wrong; the next try, if there is one, takes it up from there."""
        interrupted = isinstance(error, KeyboardInterrupt)
        self._record.state = run_record.INTERRUPTED if interrupted else run_record.FAILED
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self._record.error = f"{self._name}: {'interrupted' if interrupted else said}"
        with contextlib.suppress(Exception):  # the database may be what went wrong
            if interrupted:
                self._clean()
        with contextlib.suppress(OSError):
            self._note("failed")

    def _note(self, state: str) -> None:
        """Writes how far the node is into the record, beside what other steps have written."""
        seconds = 0.0 if state == "running" else round(time.monotonic() - self._began, 2)
        marks = {"cached": "  (from the cache)", "failed": "  FAILED", "refused": "  said no"}
        if state != "running":
            self._console.line(f"  {self._name:<20}{seconds:8.1f} s{marks.get(state, '')}")
        own, runs = self._record, self._project.runs
        with run_record.changing(runs, own.run_id) as record:
            others = [one for one in record.nodes if one.id != self._name]
            record.nodes = [*others, NodeRecord(id=self._name, state=state, seconds=seconds)]
            if state == "running" and not any(one.state == "failed" for one in others):
                # The run goes on, whatever became of an earlier try.
                record.state, record.error, record.finished = run_record.RUNNING, "", ""
            elif state != "running" and own.state != run_record.RUNNING:
                record.state, record.error = own.state, own.error
                record.finished = run_record.now()
                record.refused_by, record.refused_spans = own.refused_by, own.refused_spans
                record.published_version = own.published_version


def work(project_folder: Path, runs: Path, run_id: str) -> None:
    """Takes part in the training of a run, as the worker that TF_CONFIG says.

    Raises:
        UserError: there is no such run, or TF_CONFIG names no cluster.
    """
    from graftline.components.trainer.workers import take_part

    _find(runs, run_id)
    project = Project(project_folder, load_config(runs / run_id / "config.yaml"))
    with stop_on_signal():
        take_part(project.cluster, print, once=True)


def refused(runs: Path, run_id: str) -> None:
    """Ends a run that a gate stopped.

    Raises:
        Refused: always, with the verdict in words.
    """
    record = _find(runs, run_id)
    raise Refused(record.error or f"The {record.refuser} of {run_id} said no.")


def end(project_folder: Path, runs: Path, kubeflow_run: str) -> None:
    """Tells how a run came out, here and to whom `notify` names; closes one that broke off."""
    record = next((r for r in run_record.records(runs) if r.cluster == kubeflow_run), None)
    if record is None:
        mark = nothing_to_do(runs, kubeflow_run)
        if mark.exists():
            mark.unlink(missing_ok=True)
            print("No run was begun, for there was nothing to do.")
            return
        print("No run was begun: the step `begin` says why.")
        # That of the project: what this run was to be configured by, `begin` alone knew.
        try:
            config = load_config(project_folder / FILE_NAME)
        except UserError as error:
            print(f"Nobody was told: {error}")
            return
        tell_not_begun(Project(project_folder, config), kubeflow_run)
        return
    if record.state in (run_record.RUNNING, run_record.INTERRUPTED):
        with run_record.changing(runs, record.run_id) as record:
            record.state = run_record.INTERRUPTED
            record.error = record.error or "a step was ended before it could say why"
            record.finished = run_record.now()
    print(f"{record.run_id}: {record.state}, {record.target}")
    for node in record.nodes:
        note = "" if node.state == "done" else f"  ({node.state})"
        print(f"  {node.id:<20}{node.seconds:8.1f} s{note}")
    if record.published_version is not None:
        print(f"Version {record.published_version} is published.")
    elif record.error:
        print(record.error)
    config = load_config(runs / record.run_id / "config.yaml")
    tell_of_run(Project(project_folder, config), record)


def _find(runs: Path, run_id: str) -> RunRecord:
    """The record of a run.

    Raises:
        UserError: there is no such run.
    """
    record = next((r for r in run_record.records(runs) if r.run_id == run_id), None)
    if record is None:
        raise UserError(
            f"There is no run {run_id!r} in {runs}: is the project's volume the one that the step "
            "`begin` wrote to?"
        )
    return record


@contextlib.contextmanager
def _signs_of_life(project: Project, run_id: str) -> Iterator[None]:
    """Tells other runs that this one is under way."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                run_record.show_life(project.runs, run_id)
            ended.wait(_HEARTBEAT)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
