"""`graftline predict-batch` as processes: two at one folder, one bad image among thousands."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from commands import Command, graftline, there
from graftline.serving.base_path import BasePath
from graftline.serving.manifest import Manifest
from model_servers import colour_model, coloured_image, until

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a version in service that names colours."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "graftline.yaml").write_text("model: {name: colours}\n")
    saved_model = colour_model(tmp_path / "model" / "1")
    manifest = Manifest(model="colours", model_id="a")
    BasePath(folder / "serving" / "colours").publish(saved_model, manifest)
    return folder


def many(folder: Path, count: int) -> Path:
    """So many names of one red image."""
    folder.mkdir()
    first = folder / "000000.png"
    first.write_bytes(coloured_image((255, 0, 0)))
    for number in range(1, count):
        (folder / f"{number:06d}.png").hardlink_to(first)
    return folder


def files(output: Path, table: str) -> list[str]:
    """The files that the rows of a table are about."""
    rows = [json.loads(line) for path in output.glob(f"{table}-*") for line in path.open("rb")]
    return sorted(row["file"] for row in rows)


def test_of_two_that_write_one_folder_the_second_is_turned_away_and_the_first_ends_well(
    project, tmp_path
):
    source, output = many(tmp_path / "many", 300), tmp_path / "output"
    command = ("predict-batch", str(source), "--output", str(output), "--part-size", "20")
    first = Command(project, *command)
    until(lambda: there(output, "predictions-*") or not first.process.is_alive())
    os.kill(first.process.pid or 0, signal.SIGSTOP)
    try:
        said = graftline(project, *command, expect=2)
    finally:
        os.kill(first.process.pid or 0, signal.SIGCONT)
    assert f"Another batch prediction writes to {output} (process {first.process.pid}," in said
    assert first.wait() == 0, first.output
    assert files(output, "predictions") == sorted(path.name for path in source.iterdir())


def test_one_unreadable_image_in_the_middle_of_thousands_costs_itself_only(project, tmp_path):
    source, output = many(tmp_path / "many", 20_000), tmp_path / "output"
    (source / "010000.png").unlink()
    (source / "010000.png").symlink_to(tmp_path / "nowhere")
    graftline(project, "predict-batch", str(source), "--output", str(output))
    assert files(output, "bad") == ["010000.png"]
    predicted = files(output, "predictions")
    assert (len(predicted), len(set(predicted))) == (19_999, 19_999)
