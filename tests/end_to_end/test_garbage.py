"""`graftline gc`: what it frees, what it keeps, and that every later run works."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from commands import Command, answer, draw, graftline, last_run, there
from graftline.components.batch_prediction.output import WORK
from graftline.pipeline.garbage import EXAMPLES
from graftline.pipeline.plan import SpanVersion
from graftline.serving.base_path import BasePath

pytestmark = pytest.mark.end_to_end


def outputs(project: Path, node: str, output: str) -> list[str]:
    """Which executions of a node have an output on disk."""
    return sorted(path.name for path in (project / "tfx" / node / output).iterdir())


def nodes(project: Path) -> dict[str, str]:
    """How each node of the last run ended."""
    record = last_run(project)
    assert record is not None
    return {node.id: node.state for node in record.nodes}


def tree(folder: Path) -> set[str]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


OVERRIDE = ("--accept-anomalies", "--bless", "--reason", "few images")


def test_versions_their_lineage_and_what_the_window_needs_stay(published, tmp_path):
    graftline(published, "drop", str(draw(tmp_path / "images" / "2", 16, seed=2)))
    graftline(published, "run", "--force", *OVERRIDE)
    root = BasePath(published / "serving" / "blobs").root
    versions, before = tree(root), tree(published / "tfx")
    assert len(outputs(published, "Trainer", "model")) == 2

    assert "nothing is removed yet" in graftline(published, "gc", "--dry-run")
    assert tree(published / "tfx") == before

    assert answer(published, "gc")["bytes"] > 0
    assert len(outputs(published, "Trainer", "model")) == 1
    for node, output in (
        ("Trainer", "model_run"),
        ("Evaluator", "evaluation"),
        ("ImportExampleGen", "examples"),
        ("DataGate", "blessing"),
    ):
        assert len(outputs(published, node, output)) == 2
    assert tree(root) == versions
    graftline(published, "verify")
    assert "Nothing to remove" in graftline(published, "gc")


def lineage(project: Path) -> dict[str, list[str]]:
    """What tells how versions came about, by node: which executions have it on disk."""
    told = {
        "ImportExampleGen": "examples",
        "StatisticsGen": "statistics",
        "Transform": "transform_graph",
        "Trainer": "model_run",
        "Evaluator": "evaluation",
    }
    return {node: outputs(project, node, output) for node, output in told.items()}


def test_a_withdrawn_version_keeps_its_files_and_its_lineage(published):
    before = lineage(published)
    assert all(len(executions) == 2 for executions in before.values())
    graftline(published, "withdraw", "1", "--reason", "bad")
    assert "Nothing to remove" in graftline(published, "gc")
    assert lineage(published) == before
    graftline(published, "restore", "1", "--reason", "good after all")
    graftline(published, "verify", "1")


def test_of_a_version_that_is_gone_for_good_only_the_records_stay(published, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(published, copy)
    shutil.rmtree(copy / "serving" / "blobs" / "1")
    graftline(copy, "gc")
    count = {node: len(executions) for node, executions in lineage(copy).items()}
    # The examples are those that the window reaches.
    assert count == {
        "ImportExampleGen": 2,
        "StatisticsGen": 2,
        "Transform": 1,
        "Trainer": 2,
        "Evaluator": 1,
    }


def test_what_was_removed_is_made_again_when_a_run_wants_it(published):
    graftline(published, "run", "--force", "window.last=1", *OVERRIDE)
    statistics = outputs(published, "StatisticsGen", "statistics")
    gone = answer(published, "gc", "window.last=1")["kinds"]
    # Examples of span 1, an earlier copy of those of span 2, and the copy of version 1 that the
    # second run was compared with; the statistics of all runs stay.
    assert gone[EXAMPLES]["items"] == 2
    assert len(outputs(published, "ImportExampleGen", "examples")) == 1
    assert outputs(published, "StatisticsGen", "statistics") == statistics
    assert not list((published / "tfx" / "in_service").glob("1-*"))

    for reason in ("one back", "two back"):
        graftline(published, "rollback", "--reason", reason)
    said = graftline(published, "run", "--force", *OVERRIDE)
    assert "span 1 is in the window and its examples were removed" in said
    assert "compared with version 1" in said
    assert last_run(published).window == (SpanVersion(1, 1), SpanVersion(2, 1))


def test_a_run_under_way_is_not_touched_and_resumes_after(published):
    before = outputs(published, "Trainer", "model")
    run = Command(published, "run", "--force", "--bless", "--reason", "cut off", halt_in="Trainer")
    run.wait_halted()
    said = graftline(published, "gc", expect=2)
    assert "under way" in said
    assert set(before) < set(outputs(published, "Trainer", "model"))

    assert run.kill(signal.SIGKILL) == -signal.SIGKILL
    graftline(published, "gc")
    graftline(published, "resume")
    states = nodes(published)
    assert (states["ImportExampleGen"], states["Transform"]) == ("cached", "cached")
    assert states["Trainer"] == "done"


def test_a_project_that_was_moved_loses_nothing_that_it_needs(published, tmp_path):
    graftline(published, "gc")
    moved = tmp_path / "moved"
    shutil.copytree(published, moved)
    before = {name for name in tree(moved / "tfx") if "/.system/" not in name}
    graftline(moved, "gc")
    assert {name for name in tree(moved / "tfx") if "/.system/" not in name} == before


def test_a_batch_prediction_goes_on_after_its_version_was_withdrawn_and_garbage_removed(
    published, tmp_path
):
    source = draw(tmp_path / "many", 60, seed=9)
    output = tmp_path / "output"
    begun = Command(
        published,
        "predict-batch",
        str(source),
        "--output",
        str(output),
        "--part-size",
        "10",
        "--batch-size",
        "2",
    )
    while not there(output, "predictions-*"):
        assert begun.process.is_alive(), begun.output
    begun.process.kill()
    begun.wait()
    assert not (output / "summary.json").exists()
    done = {path.name: path.stat().st_mtime_ns for path in output.glob("predictions-*")}
    version = json.loads((output / WORK / "plan.json").read_text())["version"]

    graftline(published, "withdraw", str(version), "--reason", "bad")
    graftline(published, "gc")
    graftline(published, "predict-batch", str(source), "--output", str(output))
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["images"], summary["version"]) == (180, version)
    assert all((output / name).stat().st_mtime_ns == time for name, time in done.items())
    rows = [json.loads(line) for path in output.glob("predictions-*") for line in path.open()]
    assert len({row["file"] for row in rows}) == 180
