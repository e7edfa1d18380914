"""What the end-to-end tests share: a project for blobs of three colours, tiny models to serve."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from commands import FROM_SCRATCH, draw, graftline
from model_servers import linear_model

# Small and quick.
OTHERS = """
image: {size: 32}
drop: {eval_share: 0.15, test_share: 0.25}
model_gate: {min_test_images: 5, resamples: 1000}
data_gate: {shift: true}
probe: {enabled: false}
"""


@pytest.fixture(scope="session")
def taken_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of three colours and a project that has taken them in, to copy."""
    folder = tmp_path_factory.mktemp("taken_in")
    images = draw(folder / "images" / "first", 40, seed=1)
    graftline(folder, "init", "project", "--images", str(images), "--name", "blobs")
    configure(folder / "project", FROM_SCRATCH)
    graftline(folder / "project", "drop", str(images))
    return folder


def copy_project(taken_in: Path, folder: Path, trainer: str) -> Path:
    """A project for blobs of three colours in a folder, with one span taken in."""
    shutil.copytree(taken_in, folder, dirs_exist_ok=True)
    configure(folder / "project", trainer)
    return folder / "project"


def configure(project: Path, trainer: str) -> None:
    """Writes a project's configuration."""
    (project / "graftline.yaml").write_text(f"model: {{name: blobs}}\ntrainer:{trainer}{OTHERS}")


@pytest.fixture(scope="module")
def trainer() -> str:
    """The section `trainer` of a module's projects."""
    return FROM_SCRATCH


@pytest.fixture
def project(taken_in: Path, tmp_path: Path, trainer: str) -> Path:
    """A project of its own for a test: one span, not yet trained on."""
    return copy_project(taken_in, tmp_path, trainer)


@pytest.fixture(scope="module")
def untrained(taken_in: Path, tmp_path_factory: pytest.TempPathFactory, trainer: str) -> Path:
    """A project with one span, which the tests of a module share."""
    return copy_project(taken_in, tmp_path_factory.mktemp("shared"), trainer)


@pytest.fixture(scope="module")
def published(untrained: Path) -> Path:
    """A project with at least one version in service, which the tests of a module share."""
    graftline(untrained, "run")
    return untrained


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models to copy: version n adds n."""
    folder = tmp_path_factory.mktemp("models")
    for number in (1, 2, 3):
        linear_model(folder / str(number), add=number)
    return folder
