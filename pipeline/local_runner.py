"""Runs the compiled pipeline on this machine, node by node, and tells how each one went.

TFX's LocalDagRunner does the work; finished nodes of a run that died come from the cache. What the
runner leaves behind when its process is killed, an execution that stays RUNNING and half-written
outputs, is cleaned here before the next run.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_metadata as mlmd
from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.proto.orchestration import pipeline_pb2

from graftline.components.data_gate.component import DataBlessing
from graftline.pipeline.plan import SpanVersion

# What LocalDagRunner logs around each node.
_BEGIN = "Component %s is running."
_END = "Component %s is finished."

Listener = Callable[[str, str, float], None]


def run_pipeline(ir: pipeline_pb2.Pipeline, store: mlmd.MetadataStore, listener: Listener) -> None:
    """Executes all nodes in order.

    Args:
        ir: the compiled pipeline; the runner writes the run's id into it.
        store: the metadata store that the pipeline uses, to see which nodes came from the cache.
        listener: told of each node with its state (`running`, `done`, `cached`, `failed`) and the
            seconds it took.

    Raises:
        Exception: whatever a node raised; the nodes after it did not run.
    """
    watch = _NodeWatch(store, listener)
    # TFX logs through absl, whose logger swallows records below its own level.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(watch)
    try:
        LocalDagRunner().run_with_ir(ir)
    except BaseException:
        watch.failed()
        raise
    finally:
        logger.removeHandler(watch)
        logger.setLevel(level)


class _NodeWatch(logging.Handler):
    """Turns the runner's log lines into events."""

    def __init__(self, store: mlmd.MetadataStore, listener: Listener):
        super().__init__(logging.INFO)
        self._store = store
        self._listener = listener
        self._node = ""
        self._began = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == _BEGIN and record.args:
            self._node = str(record.args[0])
            self._began = time.monotonic()
            self._listener(self._node, "running", 0.0)
        elif record.msg == _END and record.args:
            state = "cached" if self._was_cached() else "done"
            self._listener(self._node, state, time.monotonic() - self._began)
            self._node = ""

    def failed(self) -> None:
        if self._node:
            self._listener(self._node, "failed", time.monotonic() - self._began)

    def _was_cached(self) -> bool:
        newest = self._store.get_executions(
            list_options=mlmd.ListOptions(
                limit=1, order_by=mlmd.OrderByField.ID, is_asc=False
            )
        )
        return bool(newest) and (
            newest[0].last_known_state == metadata_store_pb2.Execution.CACHED
        )


@contextmanager
def open_store(database: Path) -> Iterator[mlmd.MetadataStore]:
    """Opens the metadata database, making it when it is missing."""
    database.parent.mkdir(parents=True, exist_ok=True)
    connection = metadata_store_pb2.ConnectionConfig()
    connection.sqlite.filename_uri = str(database)
    connection.sqlite.connection_mode = 3  # READWRITE_OPENCREATE
    yield mlmd.MetadataStore(connection)


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


def pushed_version(store: mlmd.MetadataStore) -> int | None:
    """The version that the last run of the publisher shipped, or took up again from the cache."""
    executions = store.get_executions_by_type("tfx.components.pusher.component.Pusher")
    if not executions:
        return None
    newest = max(executions, key=lambda execution: execution.id)
    outputs = [
        event.artifact_id
        for event in store.get_events_by_execution_ids([newest.id])
        if event.type == metadata_store_pb2.Event.OUTPUT
    ]
    for artifact in store.get_artifacts_by_id(outputs):
        if artifact.custom_properties["pushed"].int_value:
            return int(artifact.custom_properties["pushed_version"].string_value)
    return None


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
