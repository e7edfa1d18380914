"""The metadata store: how it is reached, and what runs ask it.

One machine keeps it in a SQLite file among the artifacts. Steps on a cluster share a MySQL or
MariaDB, whose user and password come from the environment and nowhere else: neither the compiled
pipeline nor a command line holds them.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Collection, Iterable
from pathlib import Path

import ml_metadata as mlmd
from ml_metadata.proto import metadata_store_pb2
from tfx.types import standard_artifacts

from graftline.components.data_gate.component import DataBlessing
from graftline.pipeline import garbage
from graftline.pipeline.kubeflow_config import (
    PASSWORD_VARIABLE,
    USER_VARIABLE,
    MetadataConfig,
)
from graftline.pipeline.plan import SpanVersion
from graftline.pipeline.project import Project
from graftline.serving.errors import UserError

_Execution = metadata_store_pb2.Execution


def connection(project: Project, *, cluster: bool) -> metadata_store_pb2.ConnectionConfig:
    """How the runs of a project reach their metadata.

    Args:
        project: the project.
        cluster: whether it is asked by a step on a cluster.

    Raises:
        UserError: the environment has no user or password for the database.
    """
    if cluster and project.config.kubeflow.metadata.host:
        return _mysql(project.config.kubeflow.metadata)
    found = metadata_store_pb2.ConnectionConfig()
    found.sqlite.filename_uri = str(project.metadata)
    found.sqlite.connection_mode = 3  # READWRITE_OPENCREATE
    return found


def _mysql(config: MetadataConfig) -> metadata_store_pb2.ConnectionConfig:
    missing = [name for name in (USER_VARIABLE, PASSWORD_VARIABLE) if name not in os.environ]
    if missing:
        raise UserError(
            f"The environment variable {' and '.join(missing)} is not set: user and password of "
            f"the metadata database at {config.host}. On a cluster they come from the secret "
            "that kubeflow.metadata.secret names."
        )
    found = metadata_store_pb2.ConnectionConfig()
    found.mysql.host, found.mysql.port = config.host, config.port
    found.mysql.database = config.database
    found.mysql.user = os.environ[USER_VARIABLE]
    found.mysql.password = os.environ[PASSWORD_VARIABLE]
    return found


def open_store(found: metadata_store_pb2.ConnectionConfig) -> mlmd.MetadataStore:
    """Opens the metadata store; the first to do so makes its tables.

    Raises:
        UserError: the database does not let us in.
    """
    if found.HasField("sqlite"):
        Path(found.sqlite.filename_uri).parent.mkdir(parents=True, exist_ok=True)
        return mlmd.MetadataStore(found)
    try:
        return mlmd.MetadataStore(found)
    except (RuntimeError, mlmd.errors.StatusError) as error:
        where = f"{found.mysql.database} at {found.mysql.host}:{found.mysql.port}"
        raise UserError(
            f"The metadata database {where} does not let user {found.mysql.user!r} in "
            f"({str(error).strip().rstrip(':, ')}). See that it runs, that this machine reaches it "
            f"and that {USER_VARIABLE} and {PASSWORD_VARIABLE} are right; MySQL 8 needs its plugin "
            "mysql_native_password, MySQL 9 cannot be used."
        ) from error


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


def clean_after_kill(
    store: mlmd.MetadataStore,
    pipeline_root: Path,
    executions: Iterable[metadata_store_pb2.Execution],
) -> list[str]:
    """Ends executions that a killed process left RUNNING and removes what they had half written.

    Call it only while nobody else executes them.

    Args:
        store: the metadata store.
        pipeline_root: root of the artifacts.
        executions: those that are nobody's any more; others than RUNNING ones are left alone.

    Returns:
        the ids of the nodes that were cut off.
    """
    cut_off = [
        execution
        for execution in executions
        if execution.last_known_state in (_Execution.RUNNING, _Execution.NEW)
    ]
    trash = pipeline_root / garbage.TRASH
    for execution in cut_off:
        execution.last_known_state = _Execution.FAILED
        for pattern in (f"*/*/{execution.id}", f"*/.system/*/{execution.id}"):
            for leftover in pipeline_root.glob(pattern):
                # A cluster may still be writing there: out of the way at once, then removed.
                trash.mkdir(parents=True, exist_ok=True)
                moved = trash / uuid.uuid4().hex
                garbage.move(leftover, moved)
                shutil.rmtree(moved, ignore_errors=True)
    store.put_executions(cut_off)
    names = (execution.type or str(execution.id) for execution in cut_off)
    return [name.rsplit(".", 1)[-1] for name in names]
