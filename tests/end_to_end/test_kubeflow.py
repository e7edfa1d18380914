"""The compiled package, executed without a cluster: two drops, faults, gates; equal to local runs.

The tests of this file follow one project from night to night and stand in the order of the nights.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_metadata as mlmd
import pytest

from commands import draw, graftline, last_run
from deployment import REPOSITORY
from graftline.components.verdict import Verdict
from graftline.pipeline import store
from graftline.pipeline.config import load_config, override
from graftline.pipeline.kubeflow_config import PASSWORD_VARIABLE, USER_VARIABLE
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord
from graftline.serving.base_path import BasePath
from images import stages
from kubeflow_backend import KILL, TERMINATE, Backend, KubeflowRun, RefusedRun
from mariadb import PASSWORD, USER, MariaDB, mariadb

pytestmark = pytest.mark.end_to_end

IMAGE = "registry.example/graftline:1.0"


@dataclass
class Cluster:
    """A cluster with one project, and the same project on one machine.

    Attributes:
        project: on the volume.
        local: on one machine.
        package: the compiled package.
        backend: what runs it.
        database: the metadata's.
        runs: all so far.
    """

    project: Path
    local: Path
    package: Path
    backend: Backend
    database: MariaDB
    runs: list[KubeflowRun]

    def run(self, *arguments: Any, **options: Any) -> KubeflowRun:
        self.runs.append(self.backend.run(*arguments, **options))
        return self.runs[-1]

    def drop(self, name: str, count: int, seed: int, **colours: tuple[int, int, int]) -> None:
        images = str(draw(self.local.parent / "images" / name, count, seed=seed, **colours))
        for project in (self.project, self.local):
            graftline(project, "drop", images)

    @property
    def record(self) -> RunRecord:
        return last_run(self.project)

    @property
    def versions(self) -> list[int]:
        return [version.number for version in BasePath(self.project / "serving/blobs").versions()]


@pytest.fixture(scope="module")
def cluster(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    volume = folder / "volume"
    configuration = untrained / "graftline.yaml"
    # As by default, all three gates.
    configuration.write_text(configuration.read_text().replace("probe: {enabled: false}\n", ""))
    shutil.copytree(untrained, volume / "project")
    package = folder / "package.yaml"
    with mariadb(folder / "mariadb") as database:
        graftline(
            untrained,
            "kubeflow",
            "compile",
            f"--output={package}",
            f"kubeflow.image={IMAGE}",
            f"kubeflow.project={volume / 'project'}",
            f"kubeflow.volumes=[{{claim: graftline, path: {volume}}}]",
            "kubeflow.metadata.host=127.0.0.1",
            f"kubeflow.metadata.port={database.port}",
            "kubeflow.defaults.retry_seconds=1",
        )
        secrets = {"graftline-metadata": {"username": USER, "password": PASSWORD}}
        backend = Backend(folder, secrets, image_environment())
        backend.upload(package)
        # For whoever wants to see one.
        shown = REPOSITORY / "build" / "kubeflow-package.yaml"
        shown.parent.mkdir(exist_ok=True)
        shutil.copyfile(package, shown)
        yield Cluster(volume / "project", untrained, package, backend, database, [])


def image_environment() -> dict[str, str]:
    """What the steps' image sets, but where its programs and its user's home are."""
    runtime = stages(REPOSITORY / "kubeflow" / "Dockerfile")["runtime"]
    pairs = [word.split("=", 1) for one in runtime if one.name == "ENV" for word in one.words()]
    return {name: value for name, value in pairs if name not in ("PATH", "HOME")}


def test_the_first_drop_is_published_though_the_database_was_down_and_a_step_was_killed(cluster):
    def database_down_at_first(attempt: int) -> None:
        cluster.database.stop() if attempt == 0 else cluster.database.start()

    run = cluster.run(killed={"Transform": KILL}, before={"begin": database_down_at_first})

    assert run.state == "SUCCEEDED", [step.output for step in run.steps.values()]
    assert run.steps["begin"].codes == [2, 0]
    assert "metadata database graftline at 127.0.0.1" in run.steps["begin"].output
    assert run.steps["Transform"].codes == [-KILL, 0]
    assert "cleaned up after Transform" in run.steps["Transform"].output
    assert {step.state for step in run.steps.values()} == {"SUCCEEDED"}
    assert cluster.versions == [1]
    assert (cluster.record.state, cluster.record.cluster) == ("published", run.id)
    assert "Version 1 is published" in run.steps["end"].output


def test_a_step_that_was_killed_took_up_its_own_execution(cluster):
    executions = [e for e in metadata(cluster).get_executions() if e.type.endswith("Transform")]
    assert [e.last_known_state for e in executions] == [mlmd.proto.Execution.COMPLETE]


def test_where_there_is_no_new_drop_there_is_nothing_to_do(cluster):
    run = cluster.run()
    assert run.state == "SUCCEEDED"
    assert run.steps.keys() == {"begin", "end"}
    assert "Nothing to do" in run.steps["begin"].output
    assert cluster.versions == [1]


def test_the_second_drop_has_a_window_and_a_baseline_though_the_database_goes_down_in_the_middle(
    cluster,
):
    cluster.drop("second", 30, seed=2)

    def database_down_at_first(attempt: int) -> None:
        cluster.database.stop() if attempt == 0 else cluster.database.start()

    def database_up_again(attempt: int) -> None:
        if attempt:
            cluster.database.start()

    def a_drop_arrives_meanwhile(attempt: int) -> None:
        if attempt == 0:
            dark = {"red": (90, 0, 0), "green": (0, 70, 0), "blue": (0, 0, 80)}
            cluster.drop("dark", 40, seed=3, **dark)

    run = cluster.run(
        killed={"Trainer": TERMINATE},
        before={
            "Transform": database_down_at_first,
            "Trainer": a_drop_arrives_meanwhile,
            "Pusher": database_up_again,
        },
        during={"Pusher": cluster.database.stop},
    )

    assert run.state == "SUCCEEDED", [step.output for step in run.steps.values()]
    assert run.steps["Transform"].codes == [2, 0]
    assert run.steps["Trainer"].codes == [143, 0]
    assert "Ended by a signal" in run.steps["Trainer"].output
    assert run.steps["Pusher"].codes == [2, 0]
    assert "The metadata database" in run.steps["Pusher"].output
    assert [entry.span for entry in cluster.record.window] == [1, 2]
    assert cluster.versions == [1, 2]
    assert any(check.baseline is not None for check in verdict(cluster.project).checks)


def test_versions_metrics_and_lineage_are_those_of_runs_on_one_machine(cluster):
    graftline(cluster.local, "run", "--span", "1")
    graftline(cluster.local, "run", "--span", "2")

    assert cluster.versions == [
        version.number for version in BasePath(cluster.local / "serving/blobs").versions()
    ]
    for number in cluster.versions:
        ours, theirs = (manifest(where, number) for where in (cluster.project, cluster.local))
        assert ours["measures"] == theirs["measures"]
        assert (ours["spans"], ours["images"]) == (theirs["spans"], theirs["images"])
        assert ours["classes"] == theirs["classes"]
    local = store.open_store(store.connection(Project.find(cluster.local), cluster=False))
    assert lineage(metadata(cluster)) == lineage(local)


def test_a_candidate_that_is_refused_stops_the_run_and_publishes_nothing(cluster):
    worse = ["trainer.phases.all.rate=1e-9", "trainer.phases.all.epochs=1"]

    run = cluster.run({"span": 2, "force": True, "overrides": json.dumps(worse)})

    assert run.state == "FAILED"
    assert run.steps["ModelGate"].codes == [0], "a gate's no is not retried"
    assert run.steps["refused"].codes == [3]
    assert "nothing was published" in run.steps["refused"].output
    assert run.states("Pusher") == ["SKIPPED"]
    assert "accuracy" in run.steps["end"].output
    assert (cluster.record.state, cluster.record.refused_by) == ("refused", "model")
    assert cluster.versions == [1, 2]


def test_a_person_lets_the_refused_candidate_pass_by_parameters_of_a_run_and_nothing_is_trained(
    cluster,
):
    without_reason = cluster.run({"bless": True})
    assert without_reason.state == "FAILED"
    assert "with its reason" in without_reason.steps["begin"].output
    models = sorted((cluster.project / "tfx/Trainer/model").iterdir())

    run = cluster.run({"bless": True, "reason": "the old one is withdrawn anyway"})

    assert run.state == "SUCCEEDED", [step.output for step in run.steps.values()]
    assert "from the cache" in run.steps["Trainer"].output
    assert sorted((cluster.project / "tfx/Trainer/model").iterdir()) == models
    assert cluster.versions == [1, 2, 3]
    assert "the old one is withdrawn anyway" in json.dumps(manifest(cluster.project, 3))


def test_what_no_server_serves_in_time_is_not_published(cluster):
    late = ["probe.max_latency_ms=0.001"]

    run = cluster.run({"span": 2, "force": True, "overrides": json.dumps(late)})

    assert run.state == "FAILED"
    assert run.steps["ServingProbe"].codes == [0], "a gate's no is not retried"
    assert "probe.max_latency_ms" in run.steps["refused"].output
    assert run.states("Pusher") == ["SKIPPED"]
    assert (cluster.record.state, cluster.record.refused_by) == ("refused", "probe")
    assert cluster.versions == [1, 2, 3]


def test_the_drop_that_came_meanwhile_is_next_and_refused_before_anything_is_trained(cluster):
    run = cluster.run()

    assert run.state == "FAILED"
    assert run.steps["DataGate"].codes == [0]
    assert "span 3 is refused" in run.steps["refused"].output
    assert run.states("window", "Transform", "Trainer", "Pusher") == ["SKIPPED"] * 4
    assert (cluster.record.state, cluster.record.refused_by) == ("refused", "data")
    assert cluster.run().steps.keys() == {"begin", "end"}, "nor is it tried again the next night"


def test_a_person_lets_a_span_pass_and_shortens_the_window_by_parameters_of_the_run(cluster):
    without_reason = cluster.run({"span": 3, "accept_anomalies": True})
    assert without_reason.state == "FAILED"
    assert "recorded with its reason" in without_reason.steps["begin"].output

    any_model = ["model_gate.tolerance=1", "model_gate.min_accuracy=0"]
    accepted = {"accept_anomalies": True, "reason": "a dark day"}
    run = cluster.run({"span": 3, "window": 2, **accepted, "overrides": json.dumps(any_model)})

    assert run.steps["DataGate"].codes == [0]
    assert run.state == "SUCCEEDED", [step.output for step in run.steps.values()]
    assert [entry.span for entry in cluster.record.window] == [2, 3], "and not all, as configured"
    assert manifest(cluster.project, 4)["spans"] == [[2, 1], [3, 1]]
    assert cluster.versions == [1, 2, 3, 4]


def test_a_parameter_that_is_unknown_or_of_the_wrong_type_starts_nothing(cluster):
    with pytest.raises(RefusedRun, match="no parameter spam"):
        cluster.run({"spam": 1})
    with pytest.raises(RefusedRun, match="span must be int"):
        cluster.run({"span": "newest"})
    mistaken = cluster.run({"overrides": '["trainer.batch_sice=3"]'})
    assert (mistaken.state, mistaken.steps["begin"].codes) == ("FAILED", [2, 2, 2])
    assert "Did you mean batch_size" in mistaken.steps["begin"].output
    other_steps = cluster.run({"span": 1, "force": True, "overrides": '["probe.enabled=false"]'})
    assert "ServingProbe" in other_steps.steps["begin"].output


def test_user_and_password_of_the_database_are_nowhere_but_in_the_environment(cluster):
    written = [cluster.package, *(path for path in cluster.project.rglob("*") if path.is_file())]
    assert not [path for path in written if PASSWORD.encode() in path.read_bytes()]
    for run in cluster.runs:
        for step in run.steps.values():
            assert PASSWORD not in step.output
            assert not [part for command in step.commands for part in command if PASSWORD in part]


def metadata(cluster: Cluster) -> mlmd.MetadataStore:
    config = override(
        load_config(cluster.project / "graftline.yaml"),
        ["kubeflow.metadata.host=127.0.0.1", f"kubeflow.metadata.port={cluster.database.port}"],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(USER_VARIABLE, USER)
        patch.setenv(PASSWORD_VARIABLE, PASSWORD)
        found = store.connection(Project(cluster.project, config), cluster=True)
    return store.open_store(found)


def verdict(project: Path) -> Verdict:
    return Verdict.read(project / "runs" / last_run(project).run_id / "model_gate.json")


def manifest(project: Path, version: int) -> Any:
    path = BasePath(project / "serving/blobs").folder(version) / "manifest.json"
    return json.loads(path.read_text())


def lineage(found: mlmd.MetadataStore) -> Counter[tuple[str, ...]]:
    """What every execution that succeeded took and gave: its node, the slot, where it came from."""
    complete = {
        execution.id: execution.type.rsplit(".", 1)[-1]
        for execution in found.get_executions()
        if execution.last_known_state
        in (mlmd.proto.Execution.COMPLETE, mlmd.proto.Execution.CACHED)
    }
    events = found.get_events_by_execution_ids(complete)
    made_by = {
        event.artifact_id: complete[event.execution_id]
        for event in events
        if event.type == mlmd.proto.Event.OUTPUT
    }
    return Counter(
        (
            complete[event.execution_id],
            mlmd.proto.Event.Type.Name(event.type),
            event.path.steps[0].key,
            made_by.get(event.artifact_id, ""),
        )
        for event in events
    )
