"""The main job: drop, run, drop, run, predict, roll back; and every way in which it says no."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from commands import COLOURS, Command, answer, draw, graftline, last_run
from graftline.components.verdict import Verdict
from graftline.pipeline import run_record
from graftline.pipeline.plan import SpanVersion

pytestmark = pytest.mark.end_to_end

NODES = (
    "ImportSchemaGen",
    "ImportExampleGen",
    "StatisticsGen",
    "ExampleValidator",
    "DataGate",
    "window",
    "Transform",
    "Trainer",
    "in_service",
    "Evaluator",
    "ModelGate",
    "Pusher",
)


def versions(project: Path) -> list[str]:
    return sorted(path.name for path in (project / "serving" / "blobs").glob("[0-9]*"))


def test_from_images_to_a_version_and_on_to_the_next_and_back(new_project, tmp_path):
    project = new_project()

    output = graftline(project, "run")
    assert "Version 1 is published" in output
    assert versions(project) == ["1"]
    for node in NODES:
        assert node in output

    image = next((tmp_path / "images" / "first" / "red").iterdir())
    assert "red" in graftline(project, "predict", str(image))

    draw(tmp_path / "images" / "second", 20, seed=2)
    graftline(project, "drop", str(tmp_path / "images" / "second"))
    assert "Version 2 is published" in graftline(project, "run")
    record = last_run(project)
    assert record is not None
    assert record.window == (SpanVersion(1, 1), SpanVersion(2, 1))
    verdict = Verdict.read(project / "runs" / record.run_id / "model_gate.json")
    assert any(check.baseline is not None for check in verdict.checks)

    before = record.run_id
    assert "nothing to do" in graftline(project, "run")
    assert last_run(project).run_id == before

    graftline(project, "rollback", "--reason", "it is Friday")
    assert versions(project) == ["1"]
    assert "Version 3 is published" in graftline(project, "run", "--force")
    assert versions(project) == ["1", "3"]
    graftline(project, "verify")


def test_spans_that_were_never_run_are_taken_into_the_window(new_project, tmp_path):
    project = new_project()
    for number in (9, 10):
        images = draw(tmp_path / "images" / str(number), 12, seed=number)
        graftline(project, "drop", str(images), "--span", str(number))

    graftline(project, "run")

    record = last_run(project)
    assert record.window == (SpanVersion(1, 1), SpanVersion(9, 1), SpanVersion(10, 1))
    graftline(project, "run", "--span", "9", "--force")
    assert last_run(project).window == (SpanVersion(1, 1), SpanVersion(9, 1))
    graftline(project, "run", "--span", "10", "--force", "window.last=2")
    assert last_run(project).window == (SpanVersion(9, 1), SpanVersion(10, 1))


def test_a_class_that_the_schema_does_not_know_stops_the_run_with_the_reason(new_project, tmp_path):
    project = new_project()
    images = draw(tmp_path / "images" / "odd", 12, seed=3, **COLOURS, purple=(120, 20, 160))

    assert "'purple' is not in the schema" in graftline(project, "drop", str(images))
    output = graftline(project, "run", expect=3)

    assert "purple" in output
    assert "Trainer" not in output
    assert versions(project) == []
    assert last_run(project).refused_by == "data"


def test_a_span_that_was_refused_stays_out_of_later_windows(new_project, tmp_path):
    project = new_project()
    dark = draw(tmp_path / "images" / "dark", 40, seed=4)
    for path in dark.rglob("*.png"):
        from PIL import Image

        Image.open(path).point(lambda value: value // 4).save(path)
    graftline(project, "run")
    graftline(project, "drop", str(dark))

    assert "luma_mean" in graftline(project, "run", expect=3)

    third = draw(tmp_path / "images" / "third", 20, seed=5)
    graftline(project, "drop", str(third))
    graftline(project, "run")
    assert last_run(project).window == (SpanVersion(1, 1), SpanVersion(3, 1))


def test_a_shift_that_a_person_accepts_is_trained_on_and_recorded(new_project, tmp_path):
    project = new_project()
    graftline(project, "run")
    images = draw(tmp_path / "images" / "more", 40, seed=6, red=COLOURS["red"])
    graftline(project, "drop", str(images))
    graftline(project, "run", expect=3)

    graftline(project, "run", "--accept-anomalies", expect=2)
    graftline(project, "run", "--accept-anomalies", "--reason", "a season of reds")

    record = last_run(project)
    assert record.window == (SpanVersion(1, 1), SpanVersion(2, 1))
    verdict = Verdict.read(project / "runs" / record.run_id / "data_gate.json")
    assert verdict.overridden == "a season of reds"


def test_a_worse_candidate_is_refused_and_kept_and_can_be_blessed(new_project):
    project = new_project()
    graftline(project, "run")
    worse = ["trainer.frozen.rate=1e-9", "trainer.frozen.epochs=1", "model_gate.min_accuracy=0"]
    worse += ["model_gate.min_class_recall=0"]

    output = graftline(project, "run", "--force", *worse, expect=3)

    assert "version 1" in output or "in service" in output
    assert versions(project) == ["1"]
    assert (project / "runs" / last_run(project).run_id / "model_gate.json").exists()
    graftline(project, "run", "--force", "--bless", *worse, expect=2)
    graftline(project, "run", "--force", "--bless", "--reason", "a drill", *worse)
    manifest = json.loads((project / "serving" / "blobs" / "2" / "manifest.json").read_text())
    assert manifest["overridden"] == "a drill"


def test_a_class_below_its_bound_is_refused(new_project):
    project = new_project()
    output = graftline(
        project,
        "run",
        "model_gate.min_class_recall=1.0",
        "trainer.frozen.epochs=1",
        "trainer.frozen.rate=1e-9",
        "model_gate.min_accuracy=0",
        expect=3,
    )
    assert any(f"{colour}" in output for colour in COLOURS)
    assert versions(project) == []


def test_killed_in_every_node_a_run_resumes_and_does_nothing_twice(new_project):
    project = new_project()
    command = Command(project, "run")
    killed = []
    for node in NODES:
        if command.kill_in(node):
            killed.append(node)
            record = last_run(project)
            assert record.state == run_record.INTERRUPTED
            command = Command(project, "resume")
        else:
            assert command.wait() == 0, command.output
            break
    assert command.wait() == 0, command.output

    assert set(killed) >= {"StatisticsGen", "Trainer", "Evaluator"}
    assert versions(project) == ["1"]
    record = last_run(project)
    assert record.run_id == "run-0001"
    states = {node.id: node.state for node in record.nodes}
    assert states["StatisticsGen"] == states["Trainer"] == "cached"
    leftovers = [path for path in (project / "spans").iterdir() if "building" in path.name]
    assert leftovers == []
    graftline(project, "verify")
    assert "nothing to resume" in graftline(project, "resume", expect=2)


def test_an_interrupted_run_says_so_and_resumes(new_project):
    project = new_project()
    command = Command(project, "run")
    assert command.kill_in("Trainer", signal.SIGINT)
    assert command.wait() == 130
    assert last_run(project).state == run_record.INTERRUPTED
    assert "interrupted" in graftline(project, "status")
    graftline(project, "resume")
    assert versions(project) == ["1"]


def test_a_second_run_at_the_same_time_is_turned_away(new_project):
    project = new_project()
    first = Command(project, "run")
    while not last_run(project):
        assert first.process.is_alive(), first.output
    assert "Another run is under way" in graftline(project, "run", expect=2)
    assert first.wait() == 0, first.output
    assert versions(project) == ["1"]


def test_a_base_path_that_cannot_be_written_is_told_before_anything_runs(new_project):
    project = new_project()
    (project / "serving").write_text("a file where the folder should be")
    output = graftline(project, "run", expect=2)
    assert "base path" in output
    assert "ImportExampleGen" not in output


def test_changed_code_or_schema_is_not_served_from_the_cache(new_project):
    project = new_project()
    graftline(project, "run")
    schema = project / "schema" / "schema.pbtxt"
    schema.write_text(schema.read_text().replace("max: 255", "max: 254.5", 1))
    shutil.rmtree(project / "runs")
    graftline(project, "run")
    states = {node.id: node.state for node in last_run(project).nodes}
    assert states["ImportSchemaGen"] == "done"
    assert states["Trainer"] == "done"


def test_a_lost_metadata_store_does_not_lose_the_baseline(new_project):
    project = new_project()
    graftline(project, "run")
    shutil.rmtree(project / "tfx")
    graftline(project, "run", "--force")
    record = last_run(project)
    verdict = Verdict.read(project / "runs" / record.run_id / "model_gate.json")
    assert any(check.baseline is not None for check in verdict.checks)


def test_status_and_drops_tell_what_happened(new_project):
    project = new_project()
    assert "No run yet" in graftline(project, "status")
    graftline(project, "run")
    assert answer(project, "status")["state"] == "published"
    [span] = answer(project, "drops")
    assert "version 1" in span["trained"]
