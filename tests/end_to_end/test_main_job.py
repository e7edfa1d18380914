"""The main job: drop, run, predict, drop, run, roll back; and every way in which it says no."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from commands import COLOURS, answer, draw, graftline, last_run
from graftline.components.verdict import Verdict
from graftline.pipeline.plan import SpanVersion
from graftline.serving.base_path import BasePath

pytestmark = pytest.mark.end_to_end


def in_service(project: Path) -> int | None:
    return BasePath(project / "serving" / "blobs").in_service()


def verdict(project: Path, gate: str) -> Verdict:
    return Verdict.read(project / "runs" / last_run(project).run_id / f"{gate}_gate.json")


def test_a_published_version_classifies_images(published):
    image = next((published.parent / "images" / "first" / "red").iterdir())
    assert "red" in graftline(published, "predict", str(image))
    graftline(published, "verify")


def test_a_span_already_trained_is_not_trained_again(published):
    before = last_run(published).run_id
    assert "nothing to do" in graftline(published, "run")
    assert last_run(published).run_id == before


def test_status_and_drops_tell_what_happened(published):
    assert answer(published, "status")["state"] == "published"
    assert "version" in answer(published, "drops")[0]["trained"]


def test_a_worse_candidate_is_refused_and_kept_and_a_person_can_bless_it(published):
    before = in_service(published)
    worse = ["trainer.frozen.rate=1e-9", "trainer.frozen.epochs=1"]
    worse += ["model_gate.min_accuracy=0", "model_gate.min_class_recall=0"]

    output = graftline(published, "run", "--force", *worse, expect=3)

    assert "nothing was published" in output
    assert in_service(published) == before
    assert any(
        check.passed is False and check.baseline for check in verdict(published, "model").checks
    )
    assert "--reason" in graftline(published, "run", "--force", "--bless", *worse, expect=2)
    graftline(published, "run", "--bless", "--reason", "a drill", "--force", *worse)
    folder = BasePath(published / "serving" / "blobs").folder()
    assert json.loads((folder / "manifest.json").read_text())["overridden"] == "a drill"
    graftline(published, "rollback", "--reason", "the drill is over")
    assert in_service(published) == before


def test_after_a_rollback_a_forced_run_publishes_anew_and_compares_with_what_serves(published):
    graftline(published, "run", "--force")
    newest = in_service(published)
    graftline(published, "rollback")
    shutil.rmtree(published / "tfx")  # a lost metadata store does not lose the baseline

    graftline(published, "run", "--force")

    assert in_service(published) == newest + 1
    assert any(check.baseline is not None for check in verdict(published, "model").checks)


def test_a_class_below_its_bound_is_refused(project):
    output = graftline(
        project,
        "run",
        "model_gate.min_class_recall=1.0",
        "model_gate.min_accuracy=0",
        "trainer.frozen.epochs=1",
        "trainer.frozen.rate=1e-9",
        expect=3,
    )
    assert "recall" in output
    assert in_service(project) is None


def test_spans_never_run_join_the_window_in_the_order_of_their_numbers(project, tmp_path):
    for number in (9, 10):
        images = draw(tmp_path / "images" / str(number), 12, seed=number)
        graftline(project, "drop", str(images), "--span", str(number))

    graftline(project, "run")

    assert last_run(project).window == (SpanVersion(1, 1), SpanVersion(9, 1), SpanVersion(10, 1))
    assert last_run(project).target == SpanVersion(10, 1)
    graftline(project, "run", "--span", "9", "window.last=1")
    assert last_run(project).window == (SpanVersion(9, 1),)


def test_a_span_that_is_not_there_is_an_error_that_names_those_that_are(project):
    assert "There: 1" in graftline(project, "run", "--span", "7", expect=2)


def test_a_class_that_the_schema_does_not_know_stops_the_run_with_the_reason(project, tmp_path):
    images = draw(tmp_path / "images" / "odd", 12, seed=3, **COLOURS, purple=(120, 20, 160))

    assert "purple" in graftline(project, "drop", str(images))
    output = graftline(project, "run", expect=3)

    assert "purple" in output
    assert "Trainer" not in output
    assert in_service(project) is None
    assert last_run(project).refused_by == "data"


def test_a_shifted_span_is_refused_stays_out_and_can_be_let_through(project, tmp_path):
    dark = draw(tmp_path / "images" / "dark", 40, seed=4)
    for path in dark.rglob("*.png"):
        Image.open(path).point(lambda value: value // 4).save(path)
    graftline(project, "drop", str(dark))

    output = graftline(project, "run", expect=3)
    assert "luma_mean" in output
    assert "Trainer" not in output

    third = draw(tmp_path / "images" / "third", 20, seed=5)
    graftline(project, "drop", str(third))
    graftline(project, "run")
    assert last_run(project).window == (SpanVersion(1, 1), SpanVersion(3, 1))

    reason = ["--accept-anomalies", "--reason", "the lamp was out"]
    graftline(project, "run", "--span", "2", *reason)
    assert last_run(project).window == (SpanVersion(1, 1), SpanVersion(2, 1))
    assert verdict(project, "data").overridden == "the lamp was out"


def test_a_base_path_that_cannot_be_written_is_told_before_anything_runs(project):
    (project / "serving").write_text("a file where the folder should be")
    output = graftline(project, "run", expect=2)
    assert "base path" in output
    assert "ImportExampleGen" not in output


def test_a_schema_with_another_set_of_classes_is_refused_before_training(project):
    schema = project / "schema" / "schema.pbtxt"
    schema.write_text(schema.read_text().replace('value: "red"', 'value: "crimson"'))
    output = graftline(project, "run", expect=3)
    assert "red" in output
    assert "Trainer" not in output
