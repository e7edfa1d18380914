"""Runs side by side: what was configured, what came of it, how long each part took.

The record, the configuration and the verdict of a run lie in its folder; what its training did is
found through the metadata store, which knows which artifacts a run used, also one from the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from graftline.components.trainer.record import FILE_NAME as TRAINING
from graftline.components.trainer.record import TrainingRecord
from graftline.components.verdict import OVERALL, Verdict
from graftline.pipeline import run_record
from graftline.pipeline.config import Config, load_config, to_tree
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord
from graftline.serving.errors import UserError

_TRAINER = "tfx.components.trainer.component.Trainer"


class ComparedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as it is compared with others.

    Attributes:
        record: how it went.
        configuration: every key with its value, e.g. `trainer.batch_size`.
        config: the same as it is read; None where it is gone or of an older Graftline.
        measures: on the test split: `accuracy`, and `recall of CLASS` for each class.
        training: what its training did; None where it did not come so far or was lost.
    """

    record: RunRecord
    configuration: dict[str, Any]
    config: Config | None
    measures: dict[str, float]
    training: TrainingRecord | None

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the test split, where it was judged."""
        return self.measures.get("accuracy")


def compared_runs(project: Project) -> Iterator[ComparedRun]:
    """All runs of a project, the newest first."""
    trainings = _trainings(project)
    for record in run_record.records(project.runs):
        folder = project.runs / record.run_id
        config = _configuration(folder / "config.yaml")
        yield ComparedRun(
            record=record,
            configuration=flatten(to_tree(config)) if config else {},
            config=config,
            measures=_measures(folder / "model_gate.json"),
            training=_read_training(trainings.get(record.key)),
        )


def find_runs(project: Project, names: tuple[str, ...]) -> list[ComparedRun]:
    """The runs of these names, in their order.

    Raises:
        UserError: there is none of a name.
    """
    known = {run.record.run_id: run for run in compared_runs(project)}
    for name in names:
        if name not in known:
            raise UserError(
                f"There is no run called {name!r}. There are: {', '.join(known) or 'none yet'}."
            )
    return [known[name] for name in names]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two configurations, by key; None where one has no such key.

    Nothing differs from a configuration that is not known.
    """
    if not one or not other:
        return {}
    keys = dict.fromkeys([*one, *other])
    pairs = {key: (one.get(key), other.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _configuration(path: Path) -> Config | None:
    """A run's configuration; None where it is gone or of an older Graftline."""
    try:
        return load_config(path)
    except UserError:
        return None


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`; members of a list go by their name, if they have one."""
    if isinstance(tree, dict):
        members = tree.items()
    elif isinstance(tree, list) and tree and all(isinstance(m, dict) for m in tree):
        members = {
            str(m.get("name", number)): {k: v for k, v in m.items() if k != "name"}
            for number, m in enumerate(tree)
        }.items()
    else:
        return {path: tree}
    flat: dict[str, Any] = {}
    for name, member in members:
        flat |= flatten(member, f"{path}.{name}" if path else str(name))
    return flat


def _measures(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    found: dict[str, float] = {}
    for check in Verdict.read(path).checks:
        if check.candidate is not None:
            of = "" if check.slice == OVERALL else f" of {check.slice}"
            found.setdefault(f"{check.metric}{of}", check.candidate)
    return found


def _trainings(project: Project) -> dict[str, Path]:
    """The file that a run's training left, by the name that the run has in the metadata store."""
    if not project.metadata.is_file():
        return {}
    import ml_metadata as mlmd
    from ml_metadata.proto import metadata_store_pb2

    connection = metadata_store_pb2.ConnectionConfig()
    connection.sqlite.filename_uri = str(project.metadata)
    connection.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READONLY
    found: dict[str, Path] = {}
    try:
        store = mlmd.MetadataStore(connection)
    except RuntimeError:  # a run that was cut off before it wrote anything
        return found
    for run in store.get_contexts_by_type("pipeline_run"):
        executions = [e for e in store.get_executions_by_context(run.id) if e.type == _TRAINER]
        events = store.get_events_by_execution_ids([execution.id for execution in executions])
        outputs = [e.artifact_id for e in events if e.type == metadata_store_pb2.Event.OUTPUT]
        for artifact in store.get_artifacts_by_id(outputs):
            if artifact.type == "ModelRun":
                found[run.name] = Path(artifact.uri) / TRAINING
    return found


def _read_training(path: Path | None) -> TrainingRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=TrainingRecord) if path else None
    except (OSError, msgspec.DecodeError):
        return None
