"""A project for the end-to-end tests: blobs of three colours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from commands import draw, graftline

# Small and quick: the frozen phase alone tells colours apart.
QUICK = """
image: {size: 32}
trainer: {frozen: {epochs: 20}, fine_tune: {epochs: 0}, batch_size: 16}
drop: {eval_share: 0.15, test_share: 0.25}
model_gate: {min_test_images: 5, resamples: 1000}
data_gate: {shift: true}
"""


@pytest.fixture
def new_project(tmp_path: Path) -> Callable[[], Path]:
    """Makes a project for blobs of three colours, with one span taken in."""

    def make() -> Path:
        images = draw(tmp_path / "images" / "first", 40, seed=1)
        folder = tmp_path / "project"
        graftline(tmp_path, "init", "project", "--images", str(images), "--name", "blobs")
        (folder / "graftline.yaml").write_text(f"model: {{name: blobs}}\n{QUICK}")
        graftline(folder, "drop", str(images))
        return folder

    return make
