"""Stages in several processes of this machine: what they make, how they end, what they leave."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from drops import assert_nothing_left, examples, folders, take_in

from commands import Command, graftline, there
from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.beam.options import beam_options
from graftline.pipeline.beam.workers import preload
from graftline.serving.errors import UserError
from model_servers import until

pytestmark = pytest.mark.end_to_end

BEAM = BeamConfig(parallelism=2)
TWO = beam_options(BEAM, "drop")
OUTCOMES = "spans/.graftline/building/*/outcomes"


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    """As every command does, once."""
    preload(BEAM, ["drop"])


def test_a_drop_by_two_processes_is_that_of_one(tmp_path):
    source = folders(tmp_path / "images", 300)
    (source / "rose" / "broken.png").write_bytes(b"no image")
    one = take_in(source, tmp_path / "one")
    two = take_in(source, tmp_path / "two", beam_options=TWO)
    assert two.summary.shards == one.summary.shards
    assert two.summary.quarantined == one.summary.quarantined == {"not-an-image": 1}
    assert examples(two) == examples(one)


def test_what_stops_a_worker_is_said_as_in_one_process(disks, tmp_path):
    project = disks.mount("80k")
    with pytest.raises(UserError, match=r"The disk of .*spans is full\. Nothing was taken in"):
        take_in(folders(tmp_path / "images", 8), project, beam_options=TWO)
    assert_nothing_left(project)


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    """A project without a span; beside it, images that take a while."""
    source = folders(tmp_path / "images", 2000)
    graftline(tmp_path, "init", "project", "--images", str(source))
    return tmp_path / "project"


class Examining:
    """A drop on two processes that are examining images."""

    def __init__(self, project: Path) -> None:
        self.command = Command(
            project, "drop", str(project.parent / "images"), "beam.parallelism=2"
        )
        until(lambda: there(project, f"{OUTCOMES}/*.outcomes"), "the first outcome")
        [nursery] = psutil.Process(self.command.process.pid).children()
        self.workers = nursery.children()
        self.others = [nursery, *self.workers]

    def assert_alone(self) -> None:
        """None of its processes is left."""
        assert len(self.workers) == 2
        assert psutil.wait_procs(self.others, timeout=30)[1] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_a_drop_leaves_no_worker_behind(blank, number):
    drop = Examining(blank)
    os.kill(drop.command.process.pid or 0, number)
    assert drop.command.wait() == -number
    drop.assert_alone()


def test_interrupted_a_drop_leaves_nothing_behind(blank):
    drop = Examining(blank)
    os.kill(drop.command.process.pid or 0, signal.SIGINT)
    assert drop.command.wait() == 130
    assert "Interrupted" in drop.command.output
    drop.assert_alone()
    assert_nothing_left(blank)


def test_a_worker_that_is_killed_ends_the_drop_with_the_reason(blank):
    drop = Examining(blank)
    drop.workers[0].kill()
    assert drop.command.wait() == 1
    assert "A worker process of Beam ended in the middle of its work" in drop.command.output
    drop.assert_alone()
    assert_nothing_left(blank)
