"""The serving probe within runs: what is published, refused, blessed, resumed, and left running."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
from pathlib import Path

import psutil
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from commands import Command, answer, graftline, last_run
from graftline.components.verdict import Verdict
from graftline.pipeline import run_record
from graftline.serving.base_path import BasePath
from model_servers import serving, until

pytestmark = pytest.mark.end_to_end

# The model gate refuses it, whatever it is like.
REFUSED_BY_THE_GATE = "model_gate.min_test_images=100000"


@pytest.fixture(scope="module")
def project(untrained: Path) -> Path:
    """A project whose probe starts `server`, a program of its own.

    What all tests try to publish is trained here, once, and refused by the model gate.
    """
    text = (untrained / "graftline.yaml").read_text().replace("probe: {enabled: false}\n", "")
    (untrained / "graftline.yaml").write_text(f"{text}probe: {{command: [{untrained}/server]}}\n")
    start(untrained, "exit 4")
    graftline(untrained, "run", REFUSED_BY_THE_GATE, expect=3)
    return untrained


@pytest.fixture
def published(project: Path) -> Path:
    """The same, with a version that passed the probe."""
    if not versions(project):
        start_embedded(project)
        graftline(project, "run")
    return project


def start(project: Path, line: str) -> None:
    """Makes the project's server a shell script of one line."""
    program = project / "server"
    program.write_text(f"#!/bin/sh\necho $$ > {project}/pid\n{line}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (project / "pid").unlink(missing_ok=True)


def start_embedded(project: Path) -> None:
    """Makes it the embedded server."""
    start(project, f'exec {sys.executable} -m graftline.serving.server "$@"')


def states(project: Path) -> dict[str, str]:
    return {node.id: node.state for node in last_run(project).nodes}


def versions(project: Path) -> list[int]:
    return [version.number for version in BasePath(project / "serving" / "blobs").versions()]


def test_a_program_that_is_not_there_is_said_before_anything_runs(project):
    before = last_run(project)
    (project / "server").unlink()
    said = graftline(project, "run", expect=2)
    assert "no program" in said
    assert "probe.command" in said
    assert last_run(project).run_id == before.run_id


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_while_it_probes_leaves_no_server_running(project, number):
    start(project, "exec sleep 600")
    run = Command(project, "run")
    until(lambda: (project / "pid").exists() and (project / "pid").read_text(), "the server")
    server = psutil.Process(int((project / "pid").read_text()))

    os.kill(run.process.pid, number)
    run.wait()

    assert psutil.wait_procs([server], timeout=20)[1] == []
    assert versions(project) == []
    assert last_run(project).state == run_record.INTERRUPTED


def test_what_no_server_serves_is_refused_and_published_once_one_does(project):
    start(project, "echo no memory; exit 3")

    refusal = answer(project, "run", expect=3)

    assert "The serving probe: refused, 1 of 1 checks failed." in refusal["refused"]
    assert "the server ended with code 3: no memory" in refusal["refused"]
    [check] = refusal["verdict"]["checks"]
    assert (refusal["verdict"]["gate"], check["passed"]) == ("probe", False)
    assert versions(project) == []
    assert (states(project)["ServingProbe"], "Pusher" in states(project)) == ("failed", False)
    refused = last_run(project).run_id
    assert "serving probe said no" in graftline(project, "status")
    assert "refused, serving probe" in graftline(project, "runs")
    bless = graftline(project, "run", "--bless", "--reason", "a drill", expect=2)
    assert f"the last run, {refused}, is refused by the serving probe" in bless
    assert "no memory" in graftline(project, "resume", expect=3)

    start_embedded(project)
    assert "serving probe" in graftline(project, "resume")

    assert (last_run(project).run_id, versions(project)) == (refused, [1])
    assert {states(project)[node] for node in ("Trainer", "ModelGate")} == {"cached"}


def test_what_is_published_was_served(published):
    verdict = Verdict.read(published / "runs" / last_run(published).run_id / "serving_probe.json")
    assert (verdict.gate, verdict.passed, len(verdict.checks)) == ("probe", True, 5)
    assert not psutil.pid_exists(int((published / "pid").read_text()))
    assert BasePath(published / "serving" / "blobs").verify() == {1: []}


def test_what_is_published_warms_its_servers_up(published, tmp_path):
    version = BasePath(published / "serving" / "blobs").versions()[0]
    requests = "assets.extra/tf_serving_warmup_requests"
    assert requests in version.manifest.files
    records = tf.data.TFRecordDataset(str(version.path / requests)).as_numpy_iterator()
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    images = [log.predict_log.request.inputs["image_bytes"].string_val for log in logs]
    assert [len(batch) for batch in images] == [1, 4, 16]
    (tmp_path / "monitoring").write_text("prometheus_config { enable: true }")
    flags = (
        f"--model_base_path={version.path.parent}",
        f"--monitoring_config_file={tmp_path}/monitoring",
    )
    with serving(tmp_path, *flags) as server:
        _, metrics = server.raw("GET", "/monitoring/prometheus/metrics")
    assert ":tensorflow:serving:model_warmup_latency_count{" in metrics.decode()


def test_a_candidate_that_the_gate_refused_is_tried_only_once_it_is_blessed(published):
    shutil.rmtree(published / "runs")  # as if none of its spans had been trained
    start(published, "exit 4")
    graftline(published, "run", REFUSED_BY_THE_GATE, expect=3)
    assert last_run(published).refused_by == "model"
    assert not (published / "pid").exists()
    blessing = ("run", "--bless", "--reason", "a drill")

    assert "ended with code 4" in graftline(published, *blessing, expect=3)
    start_embedded(published)
    graftline(published, *blessing)

    assert last_run(published).state == run_record.PUBLISHED
    assert states(published)["Trainer"] == "cached"
