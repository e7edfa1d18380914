"""Runs the compiled pipeline on this machine, node by node, and tells how each one went.

Finished nodes of a run that died come from the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from ml_metadata.proto import metadata_store_pb2
from tfx.proto.orchestration import pipeline_pb2

from graftline.pipeline import launch
from graftline.pipeline.beam.config import BeamConfig

Listener = Callable[[str, str, float], None]


def run_pipeline(
    ir: pipeline_pb2.Pipeline,
    run_id: str,
    connection: metadata_store_pb2.ConnectionConfig,
    beam: BeamConfig,
    listener: Listener,
    cache_only: Collection[str] = (),
) -> None:
    """Executes all nodes in order.

    Args:
        ir: the compiled pipeline; the run's id is written into it.
        run_id: groups the executions of this run in the metadata store.
        connection: the metadata store.
        beam: where Beam stages run.
        listener: told of each node with its state (`running`, `done`, `cached`, `failed`) and the
            seconds it took.
        cache_only: nodes that are not executed; what they give has to be there already.

    Raises:
        NotInCache: it is not.
        Exception: whatever a node raised; the nodes after it did not run.
    """
    launch.name_run(ir, run_id)
    for entry in ir.nodes:
        node = entry.pipeline_node
        began = time.monotonic()
        listener(node.node_info.id, "running", 0.0)
        state = "failed"
        try:
            state = launch.run_node(ir, node, connection, beam, cache_only)
        finally:
            listener(node.node_info.id, state, time.monotonic() - began)
