"""The whole pipeline on a real Flink cluster makes what it makes on this machine."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from apache_beam.options.pipeline_options import PipelineOptions
from drops import examples
from tensorflow_transform import TFTransformOutput
from tensorflow_transform.tf_metadata import schema_utils
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import proto_utils
from tfx_bsl.public.tfxio import TFExampleRecord

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
from node_outputs import metrics, output, records, statistics

pytestmark = [pytest.mark.end_to_end, pytest.mark.flink]

# What is slow runs on this machine.
ONLY_EXAMPLES_THERE = [
    f"beam.nodes.{node}.runner=direct" for node in ("StatisticsGen", "Transform", "Evaluator")
]
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
    for split in SPLITS:
        assert records(there, split) == records(here, split)


def test_statistics_are_the_same(here, there):
    for split in SPLITS:
        mine, theirs = (statistics(project, split) for project in (here, there))
        assert theirs.keys() == mine.keys()
        for name, of_feature in mine.items():
            assert theirs[name] == pytest.approx(of_feature, rel=1e-6), name


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
    assert metrics(output(there, "Evaluator", "evaluation")) == pytest.approx(metrics(again))


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


def test_a_vocabulary_is_the_same(here, cluster, tmp_path):
    """Of what a span has; the project's own preprocessing wants none, and so starts no job."""
    flink = BeamConfig(runner="flink", job_server=cluster.job_server, parallelism=2)
    before = {job["jid"] for job in cluster.ask("/jobs/overview")["jobs"]}
    mine = _vocabularies(BeamConfig(), here, tmp_path / "here")
    theirs = _vocabularies(flink, here, tmp_path / "there")
    [job] = [job for job in cluster.ask("/jobs/overview")["jobs"] if job["jid"] not in before]
    assert job["state"] == "FINISHED"
    assert sorted(mine["labels"]) == [b"blue", b"green", b"red"]
    assert len(mine["beginnings"]) > 10
    assert theirs == mine


def _vocabularies(config: BeamConfig, project: Path, folder: Path) -> dict[str, list[bytes]]:
    """Labels, and how ids begin, in the order of how often they occur."""

    def preprocess(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        tft.vocabulary(tf.strings.substr(inputs["id"], 0, 1), vocab_filename="beginnings")
        label = tft.compute_and_apply_vocabulary(inputs["label"], vocab_filename="labels")
        return {"label": label}

    examples = output(project, "ImportExampleGen", "examples") / "Split-train"
    schema = schema_utils.schema_from_feature_spec(
        {name: tf.io.FixedLenFeature([], tf.string) for name in ("id", "label")}
    )
    source = TFExampleRecord(str(examples / "*"), schema=schema)
    options = PipelineOptions(beam_options(config, "Transform"))
    with beam.Pipeline(options=options) as pipeline, tft_beam.Context(str(folder / "tmp")):
        read = pipeline | source.BeamSource()
        analyzed = (read, source.TensorAdapterConfig()) | tft_beam.AnalyzeDataset(preprocess)
        _ = analyzed | tft_beam.WriteTransformFn(str(folder / "graph"))
    written = TFTransformOutput(str(folder / "graph"))
    return {name: written.vocabulary_by_name(name) for name in ("labels", "beginnings")}


def test_a_drop_goes_on_when_a_task_manager_is_killed_and_comes_back(here, there, cluster):
    images = str(draw(here.parent / "images" / "second", 12, seed=2))
    graftline(here, "drop", images)
    dropping = Command(there, "drop", images, "beam.probe=false")
    job = _kill_at_work(cluster, 2)

    cluster.start_task_manager(2)

    assert dropping.wait() == 0, dropping.output
    assert cluster.ask(f"/jobs/{job}")["state"] == "FINISHED"
    assert cluster.losses(job) and max(task["attempt"] for task in cluster.tasks(job)) > 0
    mine, theirs = (list_spans(project / "spans")[-1] for project in (here, there))
    assert theirs.summary.shards == mine.summary.shards
    assert not list((there / "spans").rglob("*.tfrecord.gz.*"))


def test_a_task_manager_lost_for_good_fails_the_node_and_the_run_can_be_resumed(
    here, there, cluster
):
    """The span that was dropped when one had been killed; what is slow runs on this machine."""
    graftline(here, "run")
    running = Command(there, "run", "beam.probe=false", *ONLY_EXAMPLES_THERE)
    job = _kill_at_work(cluster, 1)

    assert running.wait() == 2, running.output
    assert "failed on flink" in running.output
    assert "graftline resume" in running.output
    assert cluster.ask(f"/jobs/{job}")["state"] == "FAILED"
    assert cluster.losses(job)
    stopped = last_run(there).nodes[-1]
    assert (stopped.id, stopped.state) == ("ImportExampleGen", "failed")

    cluster.start_missing_task_managers()
    graftline(there, "resume")
    assert BasePath(there / "serving" / "blobs").in_service() == 2
    _assert_same_examples(here, there)


def test_a_resumed_run_has_nothing_of_a_job_that_goes_on_after_the_command_was_killed(
    here, there, cluster
):
    """The job's worker stands still until the resumed run is over; its folder is gone by then."""
    before = cluster.workers()
    command = ["run", "--force", "beam.probe=false", "beam.parallelism=1", *ONLY_EXAMPLES_THERE]
    running = Command(there, *command)
    job = _job_at_work(cluster)
    worker = until(lambda: cluster.workers() - before, "a worker").pop()
    os.kill(worker, signal.SIGSTOP)
    os.kill(running.process.pid or 0, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert last_run(there).nodes[-1].id == "ImportExampleGen"
    cut_off = output(there, "ImportExampleGen", "examples")

    graftline(there, "resume")
    examples = output(there, "ImportExampleGen", "examples")
    whole = _files(examples)
    assert cluster.ask(f"/jobs/{job}")["state"] == "RUNNING"
    os.kill(worker, signal.SIGCONT)

    assert _end_of(job, cluster) == "FAILED"
    assert not _files(cut_off)
    assert _files(examples) == whole
    _assert_same_examples(here, there)


def _files(folder: Path) -> dict[Path, tuple[int, int, bytes]]:
    """Which files lie there: those that were written again are others."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {
        path: (stat.st_ino, stat.st_mtime_ns, path.read_bytes()) for path, stat in found.items()
    }


def _assert_same_examples(here: Path, there: Path) -> None:
    for split in SPLITS:
        mine, theirs = records(here, split), records(there, split)
        assert mine, "counts and ids are compared, not nothing with nothing"
        assert theirs == mine


def test_an_interrupted_drop_takes_nothing_in_whatever_becomes_of_its_job(there, cluster, tmp_path):
    images = str(draw(tmp_path / "images", 12, seed=4))
    before = list_spans(there / "spans")
    dropping = Command(there, "drop", images, "beam.probe=false")
    job = _job_at_work(cluster)

    os.kill(dropping.process.pid or 0, signal.SIGINT)

    assert dropping.wait() == 130, dropping.output
    # The job server is asked to end it, and may let it run to its end.
    _end_of(job, cluster)
    assert list_spans(there / "spans") == before


def _end_of(job: str, cluster: FlinkCluster) -> str:
    """The state in which a job ends."""

    def ended() -> str | None:
        state = str(cluster.ask(f"/jobs/{job}")["state"])
        return state if state in ENDED else None

    return str(until(ended, "the end of the job", patience=300))


def _kill_at_work(cluster: FlinkCluster, number: int) -> str:
    """Kills a TaskManager that works on a job; returns the job's id."""
    job = _job_at_work(cluster)
    until(lambda: cluster.works_at(number, job), "a task of the job")
    cluster.kill_task_manager(number)
    return job


def _job_at_work(cluster: FlinkCluster) -> str:
    """The id of the next job, once it is being worked on."""
    before = {job["jid"] for job in cluster.ask("/jobs/overview")["jobs"]}

    def working() -> str | None:
        for job in cluster.ask("/jobs/overview")["jobs"]:
            if job["jid"] not in before and job["tasks"]["running"]:
                return str(job["jid"])
        return None

    return str(until(working, "a job"))


def test_a_cluster_without_free_slots_is_told_before_anything_is_begun(there, cluster, tmp_path):
    for number in (1, 2):
        cluster.kill_task_manager(number)
    cluster.wait_for_task_managers()

    images = str(draw(tmp_path / "images", 4, seed=5))
    said = graftline(there, "drop", images, "beam.probe_seconds=5", expect=2)

    assert "Nothing runs on flink yet" in said
    assert "for 5 s (beam.probe_seconds)" in said
    assert "free task slot" in said
    assert len(list_spans(there / "spans")) == 2


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
