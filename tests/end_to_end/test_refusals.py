"""Every way in which a run says no: the reason on screen, and nothing published."""

from __future__ import annotations

import pytest

from commands import COLOURS, draw, graftline, last_run
from graftline.serving.base_path import BasePath

pytestmark = pytest.mark.end_to_end


def test_a_class_below_its_bound_is_refused(project):
    output = graftline(
        project,
        "run",
        "model_gate.min_class_recall=1.0",
        "model_gate.min_accuracy=0",
        "trainer.phases.all.epochs=1",
        "trainer.phases.all.rate=1e-9",
        expect=3,
    )
    assert "recall" in output
    assert BasePath(project / "serving" / "blobs").in_service() is None


def test_a_class_that_the_schema_does_not_know_stops_the_run_with_the_reason(project, tmp_path):
    images = draw(tmp_path / "images" / "odd", 12, seed=3, **COLOURS, purple=(120, 20, 160))

    assert "purple" in graftline(project, "drop", str(images))
    output = graftline(project, "run", expect=3)

    assert "purple" in output
    assert "Trainer" not in output
    assert BasePath(project / "serving" / "blobs").in_service() is None
    assert last_run(project).refused_by == "data"


def test_a_schema_with_another_set_of_classes_is_refused_before_training(project):
    schema = project / "schema" / "schema.pbtxt"
    schema.write_text(schema.read_text().replace('value: "red"', 'value: "crimson"'))
    output = graftline(project, "run", expect=3)
    assert "red" in output
    assert "Trainer" not in output


def test_a_base_path_that_cannot_be_written_is_told_before_anything_runs(project):
    (project / "serving").write_text("a file where the folder should be")
    output = graftline(project, "run", expect=2)
    assert "base path" in output
    assert "ImportExampleGen" not in output


def test_a_damaged_or_lost_file_of_a_span_is_named_and_taken_once_it_is_back(project):
    [shard] = (project / "spans" / "span-1" / "version-1" / "train").iterdir()
    whole = shard.read_bytes()

    shard.write_bytes(whole[:-100] + bytes(100))
    output = graftline(project, "run", expect=2)
    assert f"{shard} is damaged" in output
    assert "Traceback" not in output

    shard.unlink()
    output = graftline(project, "run", expect=2)
    assert f"{shard} is gone" in output

    shard.write_bytes(whole)
    graftline(project, "run", "trainer.phases.all.epochs=1", "model_gate.min_accuracy=0")
    assert BasePath(project / "serving" / "blobs").in_service() == 1
