"""Killed, interrupted, or two at once: a run loses nothing and does nothing twice."""

from __future__ import annotations

import signal

import pytest

from commands import Command, graftline, last_run
from graftline.pipeline import run_record
from graftline.serving.base_path import BasePath

pytestmark = pytest.mark.end_to_end

NODES = (
    "ImportExampleGen",
    "ImportSchemaGen",
    "in_service",
    "previous_span",
    "StatisticsGen",
    "ExampleValidator",
    "DataGate",
    "window",
    "Transform",
    "Trainer",
    "Evaluator",
    "ModelGate",
    "Pusher",
)


def test_killed_in_every_node_a_run_resumes_and_does_nothing_twice(project):
    command = Command(project, "run")
    killed = []
    for node in NODES:
        if command.kill_in(node):
            killed.append(node)
            assert last_run(project).state == run_record.INTERRUPTED
            command = Command(project, "resume")
    assert command.wait() == 0, command.output

    assert set(killed) >= {"ImportExampleGen", "StatisticsGen", "Transform", "Trainer", "Evaluator"}
    assert [v.number for v in BasePath(project / "serving" / "blobs").versions()] == [1]
    record = last_run(project)
    assert record.run_id == "run-0001"
    states = {node.id: node.state for node in record.nodes}
    assert states["StatisticsGen"] == states["Trainer"] == "cached"
    graftline(project, "verify")
    assert "nothing to resume" in graftline(project, "resume", expect=2)


def test_ctrl_c_is_told_and_recorded_and_a_second_run_is_turned_away_meanwhile(project):
    assert "No run yet" in graftline(project, "status")
    first = Command(project, "run")
    while not last_run(project):
        assert first.process.is_alive(), first.output

    assert "Another run is under way" in graftline(project, "run", expect=2)

    assert first.kill_in("StatisticsGen", signal.SIGINT)
    assert first.wait() == 130
    assert last_run(project).state == run_record.INTERRUPTED
    assert "graftline resume" in graftline(project, "status")
