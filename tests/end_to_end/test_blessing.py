"""A refused candidate that a person publishes: that one and no other, or none."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from commands import Command, graftline, last_run
from graftline.pipeline import run_record
from graftline.serving.base_path import BasePath

pytestmark = pytest.mark.end_to_end

BLESS = ("run", "--bless", "--reason", "a drill")


@pytest.fixture(scope="module")
def refused_once(taken_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose only candidate the model gate has refused, and beside it a copy."""
    folder = tmp_path_factory.mktemp("refused")
    shutil.copytree(taken_in, folder, dirs_exist_ok=True)
    project = folder / "project"
    bounds = ("model_gate.min_class_recall=1.0", "trainer.phases.all.epochs=1")
    graftline(project, "run", *bounds, "trainer.phases.all.rate=1e-9", expect=3)
    shutil.copytree(project, folder / "copy", symlinks=True)
    return project


@pytest.fixture
def refused(refused_once: Path) -> Path:
    """The same, as it was: a run's artifacts know where they are, so that it is the one place."""
    shutil.rmtree(refused_once)
    shutil.copytree(refused_once.with_name("copy"), refused_once, symlinks=True)
    return refused_once


def versions(project: Path) -> list[int]:
    return [v.number for v in BasePath(project / "serving" / "blobs").versions()]


def test_a_candidate_whose_artifacts_are_lost_is_not_made_again(refused):
    shutil.rmtree(refused / "tfx")

    assert "cannot be had any more" in graftline(refused, *BLESS, expect=2)

    assert versions(refused) == []
    assert "Evaluator" not in {node.id for node in last_run(refused).nodes}


def test_cut_off_while_it_is_published_the_same_candidate_is_taken_up_again(refused):
    Command(refused, *BLESS, halt_in="ModelGate").kill(signal.SIGKILL)
    schema = refused / "schema" / "schema.pbtxt"
    as_it_was = schema.read_text()
    schema.write_text(as_it_was + "# Reviewed.\n")
    for command in (("resume",), BLESS):
        assert "cannot be had any more" in graftline(refused, *command, expect=2)
    assert versions(refused) == []

    schema.write_text(as_it_was)
    graftline(refused, *BLESS)

    record = last_run(refused)
    assert record.took_up == "run-0001"
    assert {node.id: node.state for node in record.nodes}["Trainer"] == "cached"
    assert versions(refused) == [1]


def test_it_is_published_as_it_was_made(refused):
    assert "as it was made" in graftline(refused, *BLESS, "trainer.seed=3", expect=2)
    assert "of span 1, not of span 2" in graftline(refused, *BLESS, "--span", "2", expect=2)
    assert versions(refused) == []


def test_trained_from_the_version_then_in_service_it_is_published_after_a_rollback(published):
    graftline(published, "run", "--force", "trainer.seed=3", "model_gate.tolerance=1")
    spoilt = ("trainer.phases.all.epochs=1", "trainer.phases.all.rate=1e3")
    started = ("--force", "trainer.warm_start=true", "model_gate.min_class_recall=1.0")
    graftline(published, "run", *started, *spoilt, expect=3)
    graftline(published, "rollback")

    graftline(published, *BLESS)

    assert versions(published) == [1, 2, 3]
    assert {node.id: node.state for node in last_run(published).nodes}["Trainer"] == "cached"


def test_without_a_refused_candidate_nothing_is_trained_in_its_place(project):
    assert "no candidate to bless" in graftline(project, *BLESS, expect=2)
    Command(project, "run", halt_in="StatisticsGen").kill(signal.SIGKILL)
    said = graftline(project, *BLESS, expect=2)
    assert "no candidate to bless: the last run, run-0001, is interrupted" in said
    assert last_run(project).state == run_record.INTERRUPTED
