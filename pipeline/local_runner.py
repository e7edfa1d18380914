"""Runs the compiled pipeline on this machine, node by node, and tells how each one went.

TFX's portable launcher does the work, as under LocalDagRunner, which does not tell how a node went
and draws a new run id for a resumed run. Finished nodes of a run that died come from the cache.
What a killed process leaves behind, an execution that stays RUNNING and half-written outputs, is
cleaned here before the next run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import ml_metadata as mlmd
from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.compiler import constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.portable import launcher, runtime_parameter_utils
from tfx.proto.orchestration import pipeline_pb2
from tfx.types import standard_artifacts

from graftline.components.data_gate.component import DataBlessing
from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.beam.failures import explained
from graftline.pipeline.beam.operator import executor_operators
from graftline.pipeline.create_pipeline import metadata_connection
from graftline.pipeline.plan import SpanVersion

Listener = Callable[[str, str, float], None]


class NotInCache(Exception):
    """A node whose result was to come from the cache would have had to be executed."""


def run_pipeline(
    ir: pipeline_pb2.Pipeline,
    run_id: str,
    store: mlmd.MetadataStore,
    beam: BeamConfig,
    listener: Listener,
    cache_only: Collection[str] = (),
) -> None:
    """Executes all nodes in order.

    Args:
        ir: the compiled pipeline; the run's id is written into it.
        run_id: groups the executions of this run in the metadata store.
        store: the metadata store that the pipeline uses, to see how each node ended.
        beam: where Beam stages run.
        listener: told of each node with its state (`running`, `done`, `cached`, `failed`) and the
            seconds it took.
        cache_only: nodes that are not executed; what they give has to be there already.

    Raises:
        NotInCache: it is not.
        Exception: whatever a node raised; the nodes after it did not run.
    """
    runtime_parameter_utils.substitute_runtime_parameter(
        ir, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id}
    )
    for entry in ir.nodes:
        node = entry.pipeline_node
        began = time.monotonic()
        listener(node.node_info.id, "running", 0.0)
        state = "failed"
        try:
            state = _run_node(ir, node, store, beam, cache_only)
        finally:
            listener(node.node_info.id, state, time.monotonic() - began)


class _CacheOnlyLauncher(launcher.Launcher):
    """Takes a node's result from the cache, or fails."""

    def _run_executor(self, execution_info: object) -> NoReturn:
        raise NotInCache(self._pipeline_node.node_info.id)


def _run_node(
    ir: pipeline_pb2.Pipeline,
    node: pipeline_pb2.PipelineNode,
    store: mlmd.MetadataStore,
    beam: BeamConfig,
    cache_only: Collection[str],
) -> str:
    """Runs one node with TFX's portable launcher; returns how it ended."""
    began = time.time()
    deployment = runner_utils.extract_local_deployment_config(ir)
    connection = deployment.metadata_connection_config
    node_id = node.node_info.id
    kind = _CacheOnlyLauncher if node_id in cache_only else launcher.Launcher
    launched = kind(
        pipeline_node=node,
        mlmd_connection=metadata.Metadata(
            getattr(connection, connection.WhichOneof("connection_config"))
        ),
        pipeline_info=ir.pipeline_info,
        pipeline_runtime_spec=ir.runtime_spec,
        executor_spec=runner_utils.extract_executor_spec(deployment, node_id),
        custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, node_id),
        custom_executor_operators=executor_operators(beam, node_id),
    )
    with explained(beam, node_id):
        executed = launched.launch()
    if executed is None or executed.execution_id is None:
        return "done"
    [execution] = store.get_executions_by_id([executed.execution_id])
    if execution.last_known_state == metadata_store_pb2.Execution.CACHED:
        return "cached"
    if execution.last_known_state == metadata_store_pb2.Execution.COMPLETE:
        # A resumed run finds what it completed before it died and leaves it as it is.
        return "cached" if execution.last_update_time_since_epoch < began * 1000 else "done"
    # Inputs that cannot be resolved end in a failed execution, not in an exception.
    raise RuntimeError(
        f"{node_id} could not run: its inputs are not there. The log has the details."
    )


@contextmanager
def open_store(database: Path) -> Iterator[mlmd.MetadataStore]:
    """Opens the metadata database, making it when it is missing."""
    database.parent.mkdir(parents=True, exist_ok=True)
    yield mlmd.MetadataStore(metadata_connection(database))


def blessed_spans(store: mlmd.MetadataStore) -> set[SpanVersion]:
    """Every version of a span that the data gate passed or a person let through."""
    if DataBlessing.TYPE_NAME not in {kind.name for kind in store.get_artifact_types()}:
        return set()
    return {
        SpanVersion(artifact.properties["span"].int_value, artifact.properties["version"].int_value)
        for artifact in store.get_artifacts_by_type(DataBlessing.TYPE_NAME)
        if artifact.state == metadata_store_pb2.Artifact.LIVE
        and artifact.properties["blessed"].int_value
    }


def lost_spans(store: mlmd.MetadataStore, blessed: Collection[SpanVersion]) -> set[SpanVersion]:
    """Those of some spans whose examples were removed: `graftline gc` does so."""
    if not blessed:
        return set()
    there = {
        SpanVersion(
            artifact.custom_properties["span"].int_value,
            artifact.custom_properties["version"].int_value,
        )
        for artifact in store.get_artifacts_by_type(standard_artifacts.Examples.TYPE_NAME)
        if artifact.state == metadata_store_pb2.Artifact.LIVE
    }
    return {span for span in blessed if span not in there}


def pushed_version(store: mlmd.MetadataStore) -> int | None:
    """The version that the last run of the publisher shipped, or took up again from the cache."""
    for artifact in _last_outputs(store, "tfx.components.pusher.component.Pusher"):
        if artifact.custom_properties["pushed"].int_value:
            return int(artifact.custom_properties["pushed_version"].string_value)
    return None


def tuner_results(store: mlmd.MetadataStore) -> Path:
    """The folder of the trials of the last run of the tuner, or of the one it was cached from."""
    [results] = [
        artifact
        for artifact in _last_outputs(store, "tfx.components.tuner.component.Tuner")
        if artifact.type == "TunerResults"
    ]
    return Path(results.uri)


def _last_outputs(store: mlmd.MetadataStore, node_type: str) -> list[metadata_store_pb2.Artifact]:
    executions = store.get_executions_by_type(node_type)
    if not executions:
        return []
    newest = max(executions, key=lambda execution: execution.id)
    return store.get_artifacts_by_id(
        [
            event.artifact_id
            for event in store.get_events_by_execution_ids([newest.id])
            if event.type == metadata_store_pb2.Event.OUTPUT
        ]
    )


def clean_after_kill(store: mlmd.MetadataStore, pipeline_root: Path) -> list[str]:
    """Ends executions that a killed process left RUNNING and removes what they had half written.

    Call it only while holding the project's lock.

    Returns:
        the ids of the nodes that were cut off.
    """
    cut_off = [
        execution
        for execution in store.get_executions()
        if execution.last_known_state
        in (metadata_store_pb2.Execution.RUNNING, metadata_store_pb2.Execution.NEW)
    ]
    for execution in cut_off:
        execution.last_known_state = metadata_store_pb2.Execution.FAILED
        for pattern in (f"*/*/{execution.id}", f"*/.system/*/{execution.id}"):
            for leftover in pipeline_root.glob(pattern):
                shutil.rmtree(leftover)
    store.put_executions(cut_off)
    return [execution.type or str(execution.id) for execution in cut_off]
