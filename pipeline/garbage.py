"""What earlier runs have left that nothing needs any more: found, told, and removed.

Kept are the last run with all that it read or made, so that it can be resumed, blessed or taken
from the cache; the examples of every span that the window can reach; what tells how the versions
under the base path came about; and all small records. A span whose examples are removed is taken in
anew from `spans/` should a wider window want it. Spans, quarantine, versions and the folders of the
runs are nobody's garbage.

Only to be called while the lock on the runs is held: nothing is under way then.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import ml_metadata as mlmd
import msgspec
from ml_metadata.proto import metadata_store_pb2

from graftline.components.trainer.feature_store import beyond, made_by
from graftline.pipeline import run_record
from graftline.pipeline.code_digest import features_digest
from graftline.pipeline.config import load_config
from graftline.pipeline.plan import FILE_NAME as PLAN_NAME
from graftline.pipeline.plan import Plan
from graftline.pipeline.planning import spans_within_reach
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError

EXAMPLES = "examples that are there twice, or of spans that the window does not reach"
MODELS = "models of earlier runs, which the base path has or no gate let through"
OUTPUTS = "other outputs of runs that left no version"
FAILED = "working folders, and what nodes that failed have left"
IN_SERVICE = "copies of versions that were in service"
FEATURES = "features that no run can use, or beyond trainer.feature_store_gb"
UNFINISHED = "checkpoints and trials of trainings that are over"
KINDS = (EXAMPLES, MODELS, OUTPUTS, FAILED, IN_SERVICE, FEATURES, UNFINISHED)

# Small, and what a version's lineage and the comparison of runs are read from.
_RECORDS = (
    "DataBlessing",
    "ExampleAnomalies",
    "ExampleStatistics",
    "HyperParameters",
    "InfraBlessing",
    "ModelBlessing",
    "ModelRun",
    "PushedModel",
    "Schema",
)
# Renamed to here first: an artifact is there or not, and TFX looks whether it is.
TRASH = ".trash"
_IN_SERVICE = "in_service"
_LIVE = metadata_store_pb2.Artifact.LIVE
_DELETED = metadata_store_pb2.Artifact.DELETED


class Garbage(msgspec.Struct, frozen=True, kw_only=True):
    """Something that can go.

    Attributes:
        kind: one of KINDS.
        path: file or folder.
        bytes: what the disk gains.
    """

    kind: str
    path: Path
    bytes: int


def open_stores(project: Project) -> list[mlmd.MetadataStore]:
    """The metadata stores that know the outputs below the project's folder of artifacts.

    Raises:
        UserError: there were runs on a cluster, and its store cannot be asked from here.
    """
    stores = []
    if project.metadata.is_file():
        local = metadata_store_pb2.ConnectionConfig()
        local.sqlite.filename_uri = str(project.metadata)
        local.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READWRITE
        stores.append(mlmd.MetadataStore(local))
    hosts = {
        load_config(project.runs / record.run_id / "config.yaml").kubeflow.metadata.host
        for record in run_record.records(project.runs)
        if record.cluster
    } - {""}
    if hosts:
        host = project.config.kubeflow.metadata.host
        if hosts != {host}:
            raise UserError(
                f"Runs on a cluster kept their metadata at {', '.join(sorted(hosts))}, and "
                f"kubeflow.metadata.host is {host or 'empty'}: what they left cannot be told from "
                "what is needed. Set it to where that metadata is."
            )
        # TFX comes with it, which is wanted here only.
        from graftline.pipeline.store import connection, open_store

        stores.append(open_store(connection(project, cluster=True)))
    return stores


def find(project: Project, stores: Sequence[mlmd.MetadataStore]) -> list[Garbage]:
    """All that can go.

    Args:
        project: the project.
        stores: its metadata stores; without one nothing is known of outputs, and all stay.

    Raises:
        UserError: a record of a run, or the base path, cannot be read.
    """
    records = list(run_record.records(project.runs))
    found = list(_in_service(project, records))
    if stores:
        found += _outputs(project, stores, records)
    found += _features(project)
    if not (records and records[0].can_go_on):
        found += [
            _garbage(UNFINISHED, path)
            for folder in (project.checkpoints, project.trials)
            for path in _children(folder)
        ]
    found += [_garbage(FAILED, path) for path in _children(project.artifacts / TRASH)]
    return found


def remove(
    project: Project, stores: Sequence[mlmd.MetadataStore], found: Iterable[Garbage]
) -> None:
    """Removes it, and marks artifacts as deleted, so that TFX's cache does not serve them.

    A kill on the way leaves things that the next call removes.

    Raises:
        OSError: something cannot be removed.
    """
    trash = project.artifacts / TRASH
    trash.mkdir(parents=True, exist_ok=True)
    for garbage in found:
        if garbage.path.parent != trash:
            move(garbage.path, trash / uuid.uuid4().hex)
    for store in stores:
        _mark_deleted(project, store)
    shutil.rmtree(trash)


def move(path: Path, target: Path) -> None:
    """Renames a folder into the trash, which the next `remove` empties."""
    try:
        path.rename(target)
    except FileNotFoundError:
        pass  # a store of features that a worker on another machine removes, too
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.rmtree(path)  # a folder that a person has put on another disk


def _mark_deleted(project: Project, store: mlmd.MetadataStore) -> None:
    """Every artifact of this folder whose files are gone, whoever removed them."""
    gone = []
    for artifact in store.get_artifacts():
        path = _here(project, artifact.uri)
        if artifact.state == _LIVE and path and not path.exists():
            artifact.state = _DELETED
            gone.append(artifact)
    if gone:
        store.put_artifacts(gone)


def _here(project: Project, uri: str) -> Path | None:
    """Where an artifact is for this machine; None where that cannot be told.

    Where the project was moved, or a cluster mounts it elsewhere, the beginning is another one.
    """
    parts = Path(uri).parts
    if "://" in uri or len(parts) < 3:
        return None
    if parts[-1].isdigit():  # of an execution, below node and output
        return project.artifacts.joinpath(*parts[-3:])
    return project.artifacts.joinpath(*parts[-2:]) if parts[-2] == _IN_SERVICE else None


def _outputs(
    project: Project, stores: Sequence[mlmd.MetadataStore], records: list[RunRecord]
) -> Iterator[Garbage]:
    """Outputs of nodes that nothing needs, and folders that are nobody's output."""
    kinds: dict[Path | None, str] = {}
    for store in stores:
        artifacts = [one for one in store.get_artifacts() if one.state == _LIVE]
        kept = _needed(project, store, records) | _examples_within_reach(project, artifacts)
        for artifact in artifacts:
            output = _here(project, artifact.uri)
            if artifact.id in kept or artifact.type in _RECORDS:
                kinds[output] = ""
            else:
                kind = {"Examples": EXAMPLES, "Model": MODELS}.get(artifact.type, OUTPUTS)
                kinds.setdefault(output, kind)
    for path in project.artifacts.glob("*/*/[0-9]*"):
        is_node = (path.parents[1] / ".system").is_dir()
        if not (is_node and path.name.isdigit()) or path.parent.name.startswith("."):
            continue
        kind = kinds.get(path, FAILED)
        if kind:
            yield _garbage(kind, path)
    if not (records and records[0].can_go_on):
        yield from (_garbage(FAILED, path) for path in project.artifacts.glob("*/.system/*/[0-9]*"))


def _needed(project: Project, store: mlmd.MetadataStore, records: list[RunRecord]) -> set[int]:
    """The artifacts of the last run, and those that tell how a version came about."""
    whole = _runs_to_keep(records)
    versions = {version.number for version in BasePath(project.base_path).versions()}
    needed: set[int] = set()
    contexts = {context.name: context.id for context in _runs_in(store)}
    for record in records:
        keys = [name for name in contexts if name.startswith(record.key)]
        of_run = {event.artifact_id for key in keys for event in _events(store, contexts[key])}
        if record.run_id in whole:
            needed |= of_run
        elif record.published_version in versions:
            # The base path has the model itself; which examples stay is the window's matter.
            needed |= {
                artifact.id
                for artifact in store.get_artifacts_by_id(sorted(of_run))
                if artifact.type not in ("Examples", "Model")
            }
    return needed


def _runs_to_keep(records: list[RunRecord]) -> set[str]:
    """The last run, the last that can be blessed, and those that they took a candidate from."""
    last = records[:1]
    last += [r for r in records if not r.tunes and not (r.took_up and r.can_go_on)][:1]
    return {run for record in last for run in (record.run_id, record.took_up) if run}


def _examples_within_reach(
    project: Project, artifacts: list[metadata_store_pb2.Artifact]
) -> set[int]:
    """The newest examples of each span that the window of a coming run can hold."""
    newest = {
        (
            artifact.custom_properties["span"].int_value,
            artifact.custom_properties["version"].int_value,
        ): artifact.id
        for artifact in sorted(artifacts, key=lambda artifact: artifact.id)
        if artifact.type == "Examples"
    }
    reach = {(span.span, span.version) for span in spans_within_reach(project)}
    return {artifact for span, artifact in newest.items() if span in reach}


def _runs_in(store: mlmd.MetadataStore) -> list[metadata_store_pb2.Context]:
    known = {kind.name for kind in store.get_context_types()}
    return store.get_contexts_by_type("pipeline_run") if "pipeline_run" in known else []


def _events(store: mlmd.MetadataStore, context: int) -> list[metadata_store_pb2.Event]:
    executions = [execution.id for execution in store.get_executions_by_context(context)]
    return store.get_events_by_execution_ids(executions) if executions else []


def _in_service(project: Project, records: list[RunRecord]) -> Iterator[Garbage]:
    """Copies of versions that were compared with; a coming run makes its own where it lacks one."""
    wanted: set[str] = set()
    for run in _runs_to_keep(records):
        folder = project.runs / run
        if (folder / PLAN_NAME).exists():
            plan = Plan.read(folder)
            wanted |= {Path(uri).name for uri in (plan.baseline_uri, plan.start_from)}
    current = BasePath(project.base_path).in_service()
    for path in _children(project.artifacts / _IN_SERVICE):
        if path.name not in wanted and not path.name.startswith(f"{current}-"):
            yield _garbage(IN_SERVICE, path)


def _features(project: Project) -> Iterator[Garbage]:
    """Stores of features that other code made, and those unused for longest beyond the bound."""
    code = features_digest()
    stores = [path for path in _children(project.features) if path.is_dir()]
    stale = {path for path in stores if made_by(path).get("code", code) != code}
    most = project.config.trainer.feature_store_gb * 1e9
    stale |= set(beyond([path for path in stores if path not in stale], most))
    yield from (_garbage(FEATURES, path) for path in sorted(stale))


def _garbage(kind: str, path: Path) -> Garbage:
    return Garbage(kind=kind, path=path, bytes=freed_by(path))


def freed_by(path: Path) -> int:
    """Bytes that the disk gains where a file or folder goes; a second name of a file gives none."""
    files: Collection[Path] = [path] if path.is_file() else list(path.rglob("*"))
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            status = file.lstat()
            total += status.st_blocks * 512 if status.st_nlink == 1 or file.is_dir() else 0
    return total


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
