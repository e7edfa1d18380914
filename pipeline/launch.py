"""Runs one node of a compiled pipeline, and tells from the metadata store how it ended.

TFX's portable launcher does the work, as under LocalDagRunner, which does not tell how a node went
and draws a new run id for a resumed run. The local runner calls it for one node after the other; on
a cluster every step is a process of its own that calls it once.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any, NoReturn

import ml_metadata as mlmd
from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.compiler import constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.portable import (
    execution_publish_utils,
    launcher,
    runtime_parameter_utils,
)
from tfx.orchestration.portable.mlmd import execution_lib
from tfx.proto.orchestration import pipeline_pb2

from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.beam.failures import explained
from graftline.pipeline.beam.operator import executor_operators

DONE, CACHED = "done", "cached"

_Execution = metadata_store_pb2.Execution


class NotInCache(Exception):
    """A node whose result was to come from the cache would have had to be executed."""


class InputsMissing(RuntimeError):
    """A node whose inputs cannot be had."""


def name_run(ir: pipeline_pb2.Pipeline, run_id: str) -> None:
    """Writes the run's id, which groups its executions in the metadata store, into the pipeline."""
    runtime_parameter_utils.substitute_runtime_parameter(
        ir, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id}
    )


class _AnewLauncher(launcher.Launcher):
    """Gives every try an execution of its own, and so folders that no other try writes to.

    TFX takes up the execution of a try that was cut off, whose job a cluster may still be at.
    """

    def _register_or_reuse_execution(
        self,
        metadata_handle: metadata.Metadata,
        contexts: list[metadata_store_pb2.Context],
        input_artifacts: Any = None,
        exec_properties: Any = None,
    ) -> metadata_store_pb2.Execution:
        tries = execution_lib.get_executions_associated_with_all_contexts(metadata_handle, contexts)
        whole = next(filter(how_it_ended, tries), None)
        return whole or execution_publish_utils.register_execution(
            metadata_handle,
            self._pipeline_node.node_info.type,
            contexts,
            input_artifacts,
            exec_properties,
        )


class _CacheOnlyLauncher(launcher.Launcher):
    """Takes a node's result from the cache, or fails."""

    def _run_executor(self, execution_info: object) -> NoReturn:
        raise NotInCache(self._pipeline_node.node_info.id)


def run_node(
    ir: pipeline_pb2.Pipeline,
    node: pipeline_pb2.PipelineNode,
    connection: metadata_store_pb2.ConnectionConfig,
    beam: BeamConfig,
    cache_only: Collection[str] = (),
) -> str:
    """Runs one node. One that failed in this run takes its execution up again, but on a cluster.

    Args:
        ir: the compiled pipeline, with the run's id.
        node: the node.
        connection: the metadata store.
        beam: where Beam stages run.
        cache_only: nodes that are not executed; what they give has to be there already.

    Returns:
        `done` or `cached`.

    Raises:
        NotInCache: it is not.
        UserError: a stage failed on a cluster for a cause that a person can mend.
        InputsMissing: its inputs are not there.
        Exception: whatever the node raised.
    """
    began = time.time()
    deployment = runner_utils.extract_local_deployment_config(ir)
    node_id = node.node_info.id
    kind = launcher.Launcher if beam.runner_of(node_id) == "direct" else _AnewLauncher
    if node_id in cache_only:
        kind = _CacheOnlyLauncher
    handle = metadata.Metadata(connection)
    launched = kind(
        pipeline_node=node,
        mlmd_connection=handle,
        pipeline_info=ir.pipeline_info,
        pipeline_runtime_spec=ir.runtime_spec,
        executor_spec=runner_utils.extract_executor_spec(deployment, node_id),
        custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, node_id),
        custom_executor_operators=executor_operators(beam, node_id),
    )
    with explained(beam, node_id):
        executed = launched.launch()
    if executed is None or executed.execution_id is None:
        return DONE
    with handle as opened:
        [execution] = opened.store.get_executions_by_id([executed.execution_id])
    state = how_it_ended(execution)
    if state == DONE and execution.last_update_time_since_epoch < began * 1000:
        # A resumed run finds what it completed before it died and leaves it as it is.
        return CACHED
    if state:
        return state
    # Inputs that cannot be resolved end in a failed execution, not in an exception.
    raise InputsMissing(
        f"{node_id} could not run: its inputs are not there. The log has the details."
    )


def how_it_ended(execution: metadata_store_pb2.Execution) -> str:
    """`done`, `cached`, or empty where it did not succeed."""
    if execution.last_known_state == _Execution.CACHED:
        return CACHED
    return DONE if execution.last_known_state == _Execution.COMPLETE else ""


def executions_of(
    store: mlmd.MetadataStore, node: pipeline_pb2.PipelineNode
) -> list[metadata_store_pb2.Execution]:
    """The executions of one node in the run whose id its pipeline has.

    None yet, or one; on a cluster one for each try.
    """
    common: dict[int, metadata_store_pb2.Execution] | None = None
    for spec in node.contexts.contexts:
        context = store.get_context_by_type_and_name(
            spec.type.name, spec.name.field_value.string_value
        )
        if context is None:
            return []
        found = {one.id: one for one in store.get_executions_by_context(context.id)}
        common = found if common is None else {key: common[key] for key in common if key in found}
    return list((common or {}).values())
