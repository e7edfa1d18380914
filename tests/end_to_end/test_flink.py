"""The whole pipeline on a real Flink cluster makes what it makes on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tensorflow as tf
import tensorflow_data_validation as tfdv
import tensorflow_model_analysis as tfma
from drops import examples
from google.protobuf import json_format
from tensorflow_transform import TFTransformOutput
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import proto_utils

from commands import FROM_SCRATCH, Command, draw, graftline, last_run
from flink_cluster import FlinkCluster, flink_cluster
from graftline.components.ingest.spans import SPLITS, list_spans
from graftline.components.model_gate.evaluator import Executor as Evaluator
from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.beam.options import beam_options
from graftline.pipeline.evaluation import eval_config
from graftline.pipeline.project import Project
from graftline.serving.base_path import BasePath
from model_servers import until

pytestmark = [pytest.mark.end_to_end, pytest.mark.flink]

# States of a job that does nothing more.
ENDED = ("CANCELED", "FAILED", "FINISHED")
CONFIG = """
model: {{name: blobs}}
trainer:{trainer}
image: {{size: 32}}
drop: {{eval_share: 0.2, test_share: 0.3}}
model_gate:
  {{min_accuracy: 0, min_class_recall: 0, min_test_images: 3, tolerance: 1, resamples: 100}}
data_gate: {{shift: false}}
probe: {{enabled: false}}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    with flink_cluster(tmp_path_factory.mktemp("flink")) as running:
        yield running


@pytest.fixture(autouse=True)
def whole(cluster: FlinkCluster) -> None:
    """Whatever the test before has killed is there again."""
    cluster.start_missing_task_managers()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose first version was made on this machine."""
    folder = tmp_path_factory.mktemp("projects")
    images = draw(folder / "images" / "first", 16, seed=1)
    graftline(folder, "init", "here", "--images", str(images), "--name", "blobs")
    (folder / "here" / "graftline.yaml").write_text(CONFIG.format(trainer=FROM_SCRATCH))
    shutil.copytree(folder / "here", folder / "there")
    graftline(folder / "here", "drop", str(images))
    graftline(folder / "here", "run")
    return folder / "here"


@pytest.fixture(scope="module")
def there(here: Path, cluster: FlinkCluster) -> Path:
    """The same on Flink."""
    project = here.parent / "there"
    with (project / "graftline.yaml").open("a") as config:
        config.write(
            f"beam: {{runner: flink, job_server: '{cluster.job_server}', parallelism: 2}}\n"
        )
    graftline(project, "drop", str(here.parent / "images" / "first"))
    graftline(project, "run")
    return project


def output(project: Path, node: str, name: str) -> Path:
    """What a node wrote last."""
    return max((project / "tfx" / node / name).iterdir(), key=lambda path: int(path.name))


def test_the_nodes_ran_there(there, cluster):
    assert BasePath(there / "serving" / "blobs").in_service() == 1
    jobs = cluster.ask("/jobs/overview")["jobs"]
    # Two of the drop, one each of ExampleGen, statistics and Evaluator, and two looks before; for a
    # graph without analyzers, as ours is, Transform needs no data and thus no job.
    assert len(jobs) == 7
    assert {job["state"] for job in jobs} == {"FINISHED"}


def test_a_drop_is_the_same(here, there):
    [mine], [theirs] = (list_spans(project / "spans") for project in (here, there))
    assert theirs.summary.shards == mine.summary.shards
    assert theirs.summary.counts == mine.summary.counts


def test_every_example_is_taken_in_once(here, there):
    def records(project: Path, split: str) -> list[bytes]:
        files = (output(project, "ImportExampleGen", "examples") / f"Split-{split}").iterdir()
        found = tf.data.TFRecordDataset([str(file) for file in files], "GZIP")
        return sorted(record.numpy() for record in found)

    for split in SPLITS:
        assert records(there, split) == records(here, split)


def test_statistics_are_the_same(here, there):
    for split in SPLITS:
        mine, theirs = (_statistics(project, split) for project in (here, there))
        assert theirs.keys() == mine.keys()
        for name, of_feature in mine.items():
            assert theirs[name] == pytest.approx(of_feature, rel=1e-6), name


def _statistics(project: Path, split: str) -> dict[str, dict[str, float]]:
    folder = output(project, "StatisticsGen", "statistics")
    [dataset] = tfdv.load_stats_binary(str(folder / f"Split-{split}" / "FeatureStats.pb")).datasets
    found = {"": {"examples": float(dataset.num_examples)}}
    for feature in dataset.features:
        numbers: dict[str, float] = {}
        _flatten(json_format.MessageToDict(feature), "", numbers)
        found[feature.path.step[0]] = numbers
    return found


def _flatten(node: Any, path: str, into: dict[str, float]) -> None:
    """All numbers of nested data, and how often each text stands in it."""
    if isinstance(node, dict):
        # Of equally many the order is not defined.
        label = node.get("label", node.get("value")) if "sampleCount" in node else None
        for key, value in node.items():
            if key not in ("lowRank", "highRank", "topValues"):
                _flatten(value, f"{path}.{label or ''}{key}", into)
    elif isinstance(node, list):
        keyed = all(isinstance(item, dict) and "label" in item for item in node)
        for place, item in enumerate(node):
            _flatten(item, path if keyed else f"{path}[{place}]", into)
    elif isinstance(node, int | float):
        into[path] = float(node)
    else:
        into[f"{path}={node}"] = into.get(f"{path}={node}", 0) + 1


def test_the_graph_of_the_preprocessing_and_its_labels_are_the_same(here, there):
    mine, theirs = (
        TFTransformOutput(str(output(project, "Transform", "transform_graph")))
        for project in (here, there)
    )
    assert theirs.transformed_feature_spec() == mine.transformed_feature_spec()
    image = examples(list_spans(here / "spans")[0])["test"][0].features.feature["image"]
    encoded = tf.constant([image.bytes_list.value[0]])
    label = tf.constant([b"red"])
    for name, tensor in mine.transform_raw_features({"image": encoded, "label": label}).items():
        again = theirs.transform_raw_features({"image": encoded, "label": label})[name]
        assert tf.reduce_all(tf.equal(again, tensor))


def test_nothing_is_anomalous_in_either(here, there):
    for split in SPLITS:
        name = Path(f"Split-{split}") / "SchemaDiff.pb"
        folders = [output(project, "ExampleValidator", "anomalies") for project in (here, there)]
        mine, theirs = ((folder / name).read_bytes() for folder in folders)
        assert theirs == mine


def test_the_metrics_of_one_model_are_the_same(there, tmp_path):
    again = _evaluate_here(there, tmp_path / "evaluation")
    assert _metrics(output(there, "Evaluator", "evaluation")) == pytest.approx(_metrics(again))


def _evaluate_here(project: Path, folder: Path) -> Path:
    opened = Project.find(project)
    evaluated = _artifact(standard_artifacts.ModelEvaluation, folder)
    taken = _artifact(standard_artifacts.Examples, output(project, "ImportExampleGen", "examples"))
    taken.split_names = artifact_utils.encode_split_names(list(SPLITS))
    model = _artifact(standard_artifacts.Model, output(project, "Trainer", "model"))
    schema = _artifact(standard_artifacts.Schema, output(project, "ImportSchemaGen", "schema"))
    classes = ["blue", "green", "red"]
    context = Evaluator.Context(
        beam_pipeline_args=beam_options(BeamConfig(), "Evaluator"),
        tmp_dir=str(folder.parent / "tmp"),
        unique_id="1",
    )
    Evaluator(context).Do(
        {"examples": [taken], "model": [model], "schema": [schema]},
        {"evaluation": [evaluated]},
        {
            "eval_config": proto_utils.proto_to_json(
                eval_config(opened.config.model_gate, classes)
            ),
            "example_splits": msgspec.json.encode(["test"]).decode(),
            "fairness_indicator_thresholds": "null",
        },
    )
    return folder


def _artifact(kind: type, folder: Path) -> Any:
    made = kind()
    made.uri = str(folder)
    return made


def _metrics(folder: Path) -> dict[str, float]:
    """Every number by slice and name."""
    found = {}
    for sliced, outputs in tfma.load_eval_result(str(folder)).slicing_metrics:
        for per_class in outputs.values():
            for keys, metrics in per_class.items():
                for name, value in metrics.items():
                    if "doubleValue" in value:
                        found[f"{sliced} {keys} {name}"] = value["doubleValue"]
    assert len(found) > 5
    return found


def test_a_batch_prediction_is_the_same(here, cluster, tmp_path):
    on_flink = ["beam.runner=flink", f"beam.job_server={cluster.job_server}", "beam.parallelism=2"]
    tables = []
    for name, options in (("here", []), ("flink", on_flink)):
        command = ["predict-batch", str(here.parent / "images" / "first"), "--part-size", "10"]
        graftline(here, *command, "--output", str(tmp_path / name), *options)
        parts = sorted((tmp_path / name).glob("predictions-*"))
        assert len(parts) == 5
        lines = [line for part in parts for line in part.read_text().splitlines()]
        tables.append({row["file"]: row for row in map(msgspec.json.decode, lines)})
    mine, theirs = tables
    assert len(mine) == 48
    assert theirs.keys() == mine.keys()
    for file, row in mine.items():
        assert (theirs[file]["id"], theirs[file]["label"]) == (row["id"], row["label"])
        assert theirs[file]["probabilities"] == pytest.approx(row["probabilities"], abs=1e-5)


def test_a_drop_goes_on_when_a_task_manager_is_killed_and_comes_back(here, there, cluster):
    images = str(draw(here.parent / "images" / "second", 12, seed=2))
    graftline(here, "drop", images)
    dropping = Command(there, "drop", images, "beam.probe=false")
    _kill_at_work(cluster, 2)

    cluster.start_task_manager(2)

    assert dropping.wait() == 0, dropping.output
    mine, theirs = (list_spans(project / "spans")[-1] for project in (here, there))
    assert theirs.summary.shards == mine.summary.shards
    assert not list((there / "spans").rglob("*.tfrecord.gz.*"))


def test_a_task_manager_lost_for_good_fails_the_node_and_the_run_can_be_resumed(there, cluster):
    """The span that was dropped when one had been killed; what is slow runs on this machine."""
    rest = ["beam.nodes.Transform.runner=direct", "beam.nodes.Evaluator.runner=direct"]
    running = Command(there, "run", "beam.probe=false", *rest)
    _kill_at_work(cluster, 1)

    assert running.wait() == 2, running.output
    assert "failed on flink" in running.output
    assert "graftline resume" in running.output
    stopped = last_run(there).nodes[-1]
    assert (stopped.id, stopped.state) == ("ImportExampleGen", "failed")

    cluster.start_missing_task_managers()
    graftline(there, "resume")
    assert BasePath(there / "serving" / "blobs").in_service() == 2


def test_an_interrupted_drop_takes_nothing_in_whatever_becomes_of_its_job(there, cluster, tmp_path):
    images = str(draw(tmp_path / "images", 12, seed=4))
    before = list_spans(there / "spans")
    dropping = Command(there, "drop", images, "beam.probe=false")
    job = _job_at_work(cluster)

    os.kill(dropping.process.pid or 0, signal.SIGINT)

    assert dropping.wait() == 130, dropping.output
    # The job server is asked to end it, and may let it run to its end.
    until(lambda: cluster.ask(f"/jobs/{job}")["state"] in ENDED, "the end of the job")
    assert list_spans(there / "spans") == before


def _kill_at_work(cluster: FlinkCluster, number: int) -> None:
    """Kills a TaskManager once a job is being worked on."""
    _job_at_work(cluster)
    time.sleep(1.0)  # both TaskManagers start their workers
    cluster.kill_task_manager(number)


def _job_at_work(cluster: FlinkCluster) -> str:
    """The id of the next job, once it is being worked on."""
    before = {job["jid"] for job in cluster.ask("/jobs/overview")["jobs"]}

    def working() -> str | None:
        for job in cluster.ask("/jobs/overview")["jobs"]:
            if job["jid"] not in before and job["tasks"]["running"]:
                return str(job["jid"])
        return None

    return str(until(working, "a job"))


def test_too_little_network_memory_is_told_with_the_setting(there, cluster, tmp_path):
    for number in (1, 2):
        cluster.kill_task_manager(number)
        cluster.start_task_manager(number, network="64k")
    cluster.wait_for_task_managers()

    images = str(draw(tmp_path / "images", 4, seed=3))
    said = graftline(there, "drop", images, "beam.probe=false", expect=2)

    assert "too little network memory" in said
    assert "taskmanager.memory.network.min" in said
    assert len(list_spans(there / "spans")) == 2
