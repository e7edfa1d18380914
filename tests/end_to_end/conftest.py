"""A project for the end-to-end tests: blobs of three colours."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import draw, graftline

# Small and quick: the frozen phase alone tells colours apart.
QUICK = """
image: {size: 32}
trainer: {phases: [{name: frozen, epochs: 20, rate: 1e-3}], batch_size: 16}
drop: {eval_share: 0.15, test_share: 0.25}
model_gate: {min_test_images: 5, resamples: 1000}
data_gate: {shift: true}
probe: {enabled: false}
"""


def make_project(folder: Path) -> Path:
    """A project for blobs of three colours, with one span taken in."""
    images = draw(folder / "images" / "first", 40, seed=1)
    project = folder / "project"
    graftline(folder, "init", "project", "--images", str(images), "--name", "blobs")
    (project / "graftline.yaml").write_text(f"model: {{name: blobs}}\n{QUICK}")
    graftline(project, "drop", str(images))
    return project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of its own for a test: one span, not yet trained on."""
    return make_project(tmp_path)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one span, which the tests of a module share."""
    return make_project(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def published(untrained: Path) -> Path:
    """A project with at least one version in service, which the tests of a module share."""
    graftline(untrained, "run")
    return untrained
