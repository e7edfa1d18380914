"""`graftline plan` beside what then happened, in a project with real drops and runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import answer, draw, graftline, last_run
from graftline.components.ingest.spans import RanOn, latest_span

pytestmark = pytest.mark.end_to_end

OVERRIDE = ("--force", "--accept-anomalies", "--bless", "--reason", "few images")


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_stages_memory_and_disk_are_as_they_were_planned(published, tmp_path):
    graftline(published, "drop", str(draw(tmp_path / "small", 20, seed=2)))
    graftline(published, "run", *OVERRIDE)
    coming = draw(tmp_path / "coming", 60, seed=3)
    each = size(coming) / 180
    said = answer(published, "plan", "--images", "180", "--size", f"{each:.0f}")
    stages = {stage["name"]: stage for stage in said["stages"]}
    spans, examples = published / "spans", published / "tfx" / "ImportExampleGen" / "examples"
    before = size(spans), size(examples)

    graftline(published, "drop", str(coming))
    graftline(published, "run", *OVERRIDE)

    happened = {node.id: node for node in last_run(published).nodes if node.state == "done"}
    assert happened.keys() <= stages.keys()
    peaks = {name: stage["peak_mb"] for name, stage in stages.items() if name in happened}
    assert peaks == pytest.approx({name: happened[name].peak_mb for name in peaks}, rel=0.3)
    taken_in = latest_span(spans).summary
    assert stages["drop"]["peak_mb"] == pytest.approx(taken_in.peak_mb, rel=0.3)
    assert said["runs"] == 2
    grown = size(spans) - before[0], size(examples) - before[1]
    assert stages["drop"]["disk_bytes"] == pytest.approx(grown[0], rel=0.3)
    assert stages["ImportExampleGen"]["disk_bytes"] == pytest.approx(grown[1], rel=0.3)


def test_what_was_divided_is_told_from_its_own_measurements(published, tmp_path):
    graftline(published, "drop", str(draw(tmp_path / "one", 20, seed=4)))
    alone = latest_span(published / "spans").summary
    graftline(published, "drop", str(draw(tmp_path / "two", 20, seed=5)), "beam.parallelism=2")
    divided = latest_span(published / "spans").summary
    assert (alone.ran_on, divided.ran_on) == (RanOn(parallelism=1), RanOn(parallelism=2))
    assert divided.peak_mb > alone.peak_mb

    def drop(*overrides: str) -> float:
        stages = answer(published, "plan", "--images", "60", *overrides)["stages"]
        return next(stage["peak_mb"] for stage in stages if stage["name"] == "drop")

    assert drop("beam.parallelism=2") == pytest.approx(divided.peak_mb)
    assert drop() < divided.peak_mb
